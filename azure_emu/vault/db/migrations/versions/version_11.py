"""Schema version 11: users fence VMs at the site."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "11"
down_revision = "10"


def upgrade() -> None:
    """Change the database from version 10 to version 11: no VM was fenced before."""
    op.add_column("item", sa.Column("fenced_ns", sa.BigInteger, nullable=True))
