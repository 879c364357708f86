"""The kernel's boot id.

It tells a kill from a power loss: after a kill in the same boot, all bytes that were written are there.
"""

from __future__ import annotations

import uuid
from pathlib import Path

NIL = "00000000-0000-0000-0000-000000000000"
"""The id of no boot."""
SOURCE = Path("/proc/sys/kernel/random/boot_id")
"""The kernel's file with the id."""


def current_boot_id() -> str:
    """Return the random id of this boot as a UUID in text form."""
    return str(uuid.UUID(SOURCE.read_text().strip()))
