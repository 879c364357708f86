"""A reference to a process of this host, to wait for its end."""

from __future__ import annotations

import os
import select
from pathlib import Path
from typing import Literal

import trio
from pydantic import Field

from siterig.blockfs.core.wire_model import WireModel

_STARTED = 19
"""Index of the start time among the words after the process name in ``/proc/PID/stat``: field 22 in proc(5)."""


class HostProcess(WireModel):
    """A reference to one process.

    ``started`` (clock ticks since the boot) distinguishes it from a later process with the same number.
    """

    pid: int = Field(gt=0, lt=1 << 31)
    started: int = Field(ge=0, lt=1 << 63)

    @classmethod
    def own(cls) -> HostProcess:
        """Return a reference to this process."""
        return cls(pid=os.getpid(), started=_started("self"))

    def is_running(self) -> bool:
        """Return True if the process has not ended yet."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            return _started(self.pid) == self.started and not ended.poll(0)
        except (FileNotFoundError, ProcessLookupError):
            return False
        finally:
            os.close(pidfd)

    def is_stopped(self) -> bool:
        """Return True if a signal has stopped the process: it does nothing until another one lets it continue."""
        try:
            words = _stat(self.pid)
        except (FileNotFoundError, ProcessLookupError):
            return False
        return int(words[_STARTED]) == self.started and words[0] in (b"T", b"t")

    async def ended(self) -> None:
        """Wait until the process has ended, by exit or by a signal; return at once if it has ended already."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if _started(self.pid) == self.started:  # the descriptor is that process, not a later one
                await trio.lowlevel.wait_readable(pidfd)
        except (FileNotFoundError, ProcessLookupError):
            return
        finally:
            os.close(pidfd)


def _started(pid: int | Literal["self"]) -> int:
    """Return the start time of a process.

    Raises:
        FileNotFoundError, ProcessLookupError: there is no such process.
    """
    return int(_stat(pid)[_STARTED])


def _stat(pid: int | Literal["self"]) -> list[bytes]:
    """Return the words after the process name in ``/proc/PID/stat``; it raises as :func:`_started`."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
