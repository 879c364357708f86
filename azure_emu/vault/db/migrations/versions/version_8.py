"""Schema version 8: recovery points can be pinned."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "8"
down_revision = "7"


def upgrade() -> None:
    """Change the database from version 7 to version 8: no point was pinned before."""
    with op.batch_alter_table("point") as point:
        point.add_column(sa.Column("pinned", sa.Boolean, nullable=False, server_default=sa.false()))
    with op.batch_alter_table("point") as point:
        point.alter_column("pinned", server_default=None)
    op.create_index("point_pinned", "point", ["vm", "pinned"])
