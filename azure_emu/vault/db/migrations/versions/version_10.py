"""Schema version 10: users choose the names of the VMs that failovers make."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "10"
down_revision = "9"


def upgrade() -> None:
    """Change the database from version 9 to version 10: the names were those of the source VMs before."""
    op.add_column("item", sa.Column("recovery_vm_name", sa.String, nullable=True))
    op.add_column("item", sa.Column("test_vm_name", sa.String, nullable=True))
