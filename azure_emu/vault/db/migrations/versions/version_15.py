"""Schema version 15: disks can be added to the protection of a VM, so a disk has ranges of positions that have it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "15"
down_revision = "14"


def upgrade() -> None:
    """Change the database from version 14 to version 15: every disk was there from the first state on."""
    op.add_column("disk", sa.Column("first_position", sa.BigInteger, nullable=True))
    op.execute("UPDATE disk SET first_position = 0")
    with op.batch_alter_table("disk") as disk:
        disk.add_column(sa.Column("former_ranges", sa.JSON, nullable=False, server_default="[]"))
    with op.batch_alter_table("disk") as disk:
        disk.alter_column("former_ranges", server_default=None)
    with op.batch_alter_table("item") as item:
        item.add_column(sa.Column("new_disks", sa.JSON, nullable=False, server_default="[]"))
    with op.batch_alter_table("item") as item:
        item.alter_column("new_disks", server_default=None)
