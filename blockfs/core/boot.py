"""The id of this boot of the host.

It tells a kill from a power loss: after a kill in the same boot, all bytes that were written are there.  A role of a rig can
be given another id than the kernel's, as if its host had been rebooted.
"""

from __future__ import annotations

import uuid
from functools import cache
from pathlib import Path

NIL = "00000000-0000-0000-0000-000000000000"
"""The id of no boot."""
SOURCE = Path("/proc/sys/kernel/random/boot_id")
"""The kernel's file with the id."""

_restart: uuid.UUID | None = None
"""The last emulated reboot of this process's host."""


def kernel_boot_id() -> str:
    """Return the kernel's random id of this boot as a UUID in text form."""
    return _read(SOURCE)


@cache  # no process outlives a boot
def _read(source: Path) -> str:
    return str(uuid.UUID(source.read_text().strip()))


def current_boot_id() -> str:
    """Return the id of this boot of the process's host: the kernel's, unless a reboot was emulated."""
    kernel = kernel_boot_id()
    return kernel if _restart is None else str(uuid.uuid5(_restart, kernel))


def emulate_reboot(restart: uuid.UUID | None) -> None:
    """Let this process be one of a host that was rebooted.

    The id of the boot then follows from the kernel's id and from that of the emulated reboot, so a real reboot changes it,
    too.  Call it before the process reads or writes any state.

    Args:
        restart: the id of the last emulated reboot; None for none.
    """
    global _restart  # noqa: PLW0603 (a process belongs to one host)
    _restart = restart
