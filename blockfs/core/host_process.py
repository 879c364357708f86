"""A process of this host that another one does something for as long as it lives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import trio
from pydantic import Field

from siterig.blockfs.core.wire_model import WireModel

_STARTED = 19
"""Which word it is behind the name, in ``/proc/PID/stat``: proc(5)'s field 22."""


class HostProcess(WireModel):
    """``started`` (clock ticks since the boot) tells it from a later one of the same number."""

    pid: int = Field(gt=0, lt=1 << 31)
    started: int = Field(ge=0, lt=1 << 63)

    @classmethod
    def own(cls) -> HostProcess:
        """The one that asks."""
        return cls(pid=os.getpid(), started=_started("self"))

    async def ended(self) -> None:
        """Wait until it is gone, however it went; returns at once if it is."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if _started(self.pid) == self.started:  # then the descriptor is of this one
                await trio.lowlevel.wait_readable(pidfd)
        except (FileNotFoundError, ProcessLookupError):
            return
        finally:
            os.close(pidfd)


def _started(pid: int | Literal["self"]) -> int:
    """``FileNotFoundError``, ``ProcessLookupError``: there is no such process."""
    stat = Path(f"/proc/{pid}/stat").read_bytes()
    return int(stat.rpartition(b")")[2].split()[_STARTED])
