"""Schema version 13: disks can be removed from the protection of a VM, so its states can have different disks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "13"
down_revision = "12"


def upgrade() -> None:
    """Change the database from version 12 to version 13: no disk was removed before."""
    op.add_column("disk", sa.Column("last_position", sa.BigInteger, nullable=True))
    op.add_column("azure_vm", sa.Column("position", sa.BigInteger, nullable=True))
