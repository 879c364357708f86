"""Schema version 9: reasons for bad health that a user acknowledged."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "9"
down_revision = "8"


def upgrade() -> None:
    """Change the database from version 8 to version 9: nothing was acknowledged before."""
    op.create_table(
        "acknowledged",
        sa.Column("vm", sa.String, sa.ForeignKey("item.vm", ondelete="CASCADE"), primary_key=True),
        sa.Column("error_id", sa.String, primary_key=True),
        sa.Column("code", sa.String, primary_key=True),
        sa.Column("recoverable", sa.Boolean, primary_key=True),
        sa.Column("at_ns", sa.BigInteger, nullable=False),
    )
