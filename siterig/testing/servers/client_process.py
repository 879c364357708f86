"""The client of a server, which may end in a state in which the kernel releases nothing that it holds.

A process that is killed while one of its threads waits in the kernel for a disk keeps its files and locks until the disk
answers.  Its server must notice that, because only the end of a fault rule, or of the server, makes the disk answer.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

_PROC = Path("/proc")
LOOK_EVERY_S = 0.5
"""The time between two looks at a client."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
"""Signals by which a user, or a limit of time, ends a test."""


class ClientProcess:
    """A process that uses a server; its server looks at it every ``LOOK_EVERY_S`` seconds."""

    def __init__(self, pid: int, proc: Path = _PROC) -> None:
        """Watch the process with this number.

        Args:
            pid: the number.
            proc: the mount of procfs.
        """
        self._path = proc / str(pid) / "status"
        self._waited = False

    def is_ending(self) -> bool:
        """Return True if the process has ended, or must end and cannot.

        It must end if it was killed, or if its main thread waits in the kernel at two looks in a row, while a signal that
        ends a test waits for it.
        """
        try:
            lines = dict(line.split(":\t", 1) for line in self._path.read_text().splitlines() if ":\t" in line)
        except OSError:
            return True
        state = lines["State"][:1]
        pending = int(lines["SigPnd"], 16) | int(lines["ShdPnd"], 16)
        if state in ("Z", "X") or pending & _bit(signal.SIGKILL):
            return True
        waits = state == "D" and any(pending & ~int(lines["SigBlk"], 16) & _bit(number) for number in _ENDING)
        waited, self._waited = self._waited, waits
        return waits and waited


def _bit(number: signal.Signals) -> int:
    return 1 << (number - 1)


def lock_holders(fd: int) -> list[int]:
    """Return the processes that hold a lock by flock(2) on a file, as far as the kernel shows them (proc_locks(5))."""
    inode = str(os.fstat(fd).st_ino)
    found = []
    for line in (_PROC / "locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:  # a lock that is waited for has "->" there
            found.append(int(words[4]))
    return found
