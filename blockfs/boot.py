"""The kernel's boot id: what tells a kill, after which everything that was written is there, from a power loss."""

from __future__ import annotations

import uuid
from pathlib import Path

NIL = "00000000-0000-0000-0000-000000000000"
"""No boot's."""


def current_boot_id() -> str:
    """Random, of this boot, as text."""
    return str(uuid.UUID(Path("/proc/sys/kernel/random/boot_id").read_text().strip()))
