"""Schema version 6: data keys, encrypted by the vault's key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Change the database from version 5 to version 6: no data was encrypted before."""
    op.create_table(
        "data_key",
        sa.Column("key_id", sa.String, primary_key=True),
        sa.Column("use", sa.String, nullable=False),
        sa.Column("disk_id", sa.String, nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("wrapped_by", sa.Integer, nullable=False),
        sa.UniqueConstraint("use", "disk_id", "generation", name="data_key_use"),
    )
    op.create_index("ix_data_key_disk_id", "data_key", ["disk_id"])
