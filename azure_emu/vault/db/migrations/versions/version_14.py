"""Schema version 14: alert settings, and the queue of mails."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "14"
down_revision = "13"


def upgrade() -> None:
    """Change the database from version 13 to version 14: no mail was sent before."""
    op.create_table(
        "alert_settings",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("settings", sa.JSON, nullable=False),
        sa.Column("last_event_id", sa.Integer, nullable=False),
        sa.Column("dropped", sa.Integer, nullable=False),
        sa.Column("problem", sa.Text, nullable=True),
        sa.Column("problem_since_ns", sa.BigInteger, nullable=True),
        sa.Column("delivered_ns", sa.BigInteger, nullable=True),
    )
    op.create_table(
        "mail",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("message_id", sa.String, nullable=False),
        sa.Column("topic", sa.String, nullable=False),
        sa.Column("alerts", sa.JSON, nullable=False),
        sa.Column("alert_count", sa.Integer, nullable=False),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("due_elapsed_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_elapsed_ns", sa.BigInteger, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("receivers", sa.JSON, nullable=True),
        sa.Column("sent_elapsed_ns", sa.BigInteger, nullable=True),
    )
