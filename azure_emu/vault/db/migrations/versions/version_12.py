"""Schema version 12: disks of a VM can be excluded from its protection, and a point records the disks that it lacks."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "12"
down_revision = "11"


def upgrade() -> None:
    """Change the database from version 11 to version 12: all disks of each VM were replicated before."""
    with op.batch_alter_table("item") as item:
        item.add_column(sa.Column("excluded_disks", sa.JSON, nullable=False, server_default="[]"))
    with op.batch_alter_table("item") as item:
        item.alter_column("excluded_disks", server_default=None)
    op.add_column("point", sa.Column("lacking_disks", sa.JSON, nullable=True))
