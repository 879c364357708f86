"""Schema version 5: the first that is made by a migration."""

from __future__ import annotations

revision = "5"
down_revision = None


def upgrade() -> None:
    """From version 4."""
