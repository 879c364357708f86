"""Schema version 7: items can be paused."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "7"
down_revision = "6"


def upgrade() -> None:
    """Change the database from version 6 to version 7: no item was paused before."""
    op.add_column("item", sa.Column("paused_ns", sa.BigInteger, nullable=True))
