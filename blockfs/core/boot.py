"""The kernel's boot id: what tells a kill, after which everything that was written is there, from a power loss."""

from __future__ import annotations

import uuid
from pathlib import Path

NIL = "00000000-0000-0000-0000-000000000000"
"""No boot's."""
SOURCE = Path("/proc/sys/kernel/random/boot_id")
"""The kernel's file that tells it."""


def current_boot_id() -> str:
    """Random, of this boot, as text."""
    return str(uuid.UUID(SOURCE.read_text().strip()))
