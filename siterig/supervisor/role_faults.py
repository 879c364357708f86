"""Faults of the processes of roles that last: stopped processes, limits, roles that are held down.

Fault contract: the faults are known to the supervisor only, and end with it.  A stopped process or a limit ends with its
process; limits are put on the next process of the role again.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import trio

from siterig.blockfs.core.clock import Clock
from siterig.core.supervisor_contract import RoleChange, RoleChanges, RoleFault
from siterig.supervisor.process import Child

CHANGES_KEPT = 1000
STOP_S = 5.0
"""A process in an uninterruptible wait stops at its end."""
_LIMITS = {"files_max": resource.RLIMIT_NOFILE, "memory_max": resource.RLIMIT_AS}


class LastingFaults:
    """The lasting faults of all roles of a rig."""

    def __init__(self) -> None:
        self._faults: dict[tuple[str, str], RoleFault] = {}

    def all(self) -> list[RoleFault]:
        """Return all faults in force."""
        return list(self._faults.values())

    def of(self, role: str) -> list[RoleFault]:
        """Return the faults of one role."""
        return [fault for fault in self._faults.values() if fault.role == role]

    def put(self, fault: RoleFault) -> None:
        """Note a fault."""
        self._faults[fault.fault, fault.role] = fault

    def take(self, fault: str) -> list[RoleFault]:
        """Forget all faults of a rule, and return them."""
        keys = [key for key in self._faults if key[0] == fault]
        return [self._faults.pop(key) for key in keys]

    def process_ended(self, role: str) -> None:
        """Forget what ended with the process of a role."""
        for fault in self.of(role):
            if fault.ends_with_process or fault.pause:
                del self._faults[fault.fault, role]

    def is_paused(self, role: str) -> bool:
        """Return True if a fault stops the process of the role."""
        return any(fault.pause for fault in self.of(role))

    def holds(self, role: str) -> str | None:
        """Return the name of a rule that holds the role down; None if none does."""
        return next((fault.fault for fault in self.of(role) if fault.hold), None)

    def words(self, role: str) -> str:
        """Return the faults of a role in words, for its status; empty without any."""
        return "; ".join(words for fault in self.of(role) if (words := _words(fault)))

    def limits(self, role: str) -> dict[str, int]:
        """Return the smallest value of each limit that is on the role."""
        found: dict[str, int] = {}
        for name in _LIMITS:
            values = [value for fault in self.of(role) if (value := getattr(fault, name)) is not None]
            if values:
                found[name] = min(values)
        return found

    def limit(self, role: str, processes: Sequence[int]) -> None:
        """Put the limits of a role on its processes, and undo those that are no more; skips processes that have ended.

        Only the soft limits change, so that every user may undo it.
        """
        limits = self.limits(role)
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                for name, number in _LIMITS.items():
                    _, hard = resource.prlimit(pid, number)
                    most = limits.get(name)
                    soft = hard if most is None else most if hard == resource.RLIM_INFINITY else min(most, hard)
                    resource.prlimit(pid, number, (soft, hard))


def _words(fault: RoleFault) -> str:
    parts = [
        "stopped" if fault.pause else "",
        "held down" if fault.hold else "",
        "" if fault.files_max is None else f"at most {fault.files_max} open files",
        "" if fault.memory_max is None else f"at most {fault.memory_max} bytes of address space",
    ]
    text = ", ".join(part for part in parts if part)
    return f"{text} by fault {fault.fault!r}" if text else ""


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, and that have not been waited for."""
    processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [other for other in processes if (stat := _stat(other)) is not None and int(stat[1]) == pid]


def _stat(pid: int) -> list[str] | None:
    """Return the words of ``/proc/PID/stat`` after the name: state, parent and so on; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


async def stop_process(child: Child, clock: Clock, *, with_program: bool) -> None:
    """Stop a process, and the program that it serves.

    While it is stopped, it cannot wait for the end of its children: their process ids belong to nobody else.
    """
    child.send(signal.SIGSTOP)
    await _wait_stopped(child.pid, clock)
    for pid in children_of(child.pid) if with_program else ():
        _send(pid, signal.SIGSTOP)
        await _wait_stopped(pid, clock)


def continue_process(child: Child, *, with_program: bool) -> None:
    """Let a process that is stopped continue, and before it the program that it serves."""
    for pid in children_of(child.pid) if with_program else ():
        _send(pid, signal.SIGCONT)
    child.send(signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def _wait_stopped(pid: int, clock: Clock) -> None:
    """Wait until all of a process that got SIGSTOP is stopped, or it has ended; the kernel reports it nowhere else."""
    with clock.move_on_after(STOP_S):
        while (stat := _stat(pid)) is not None and stat[0] not in "TtZX":
            await clock.sleep(0.001)


class RoleChangeLog:
    """The last changes of roles, for long polls."""

    def __init__(self) -> None:
        self._changes: deque[RoleChange] = deque(maxlen=CHANGES_KEPT)
        self._last = 0
        self._news = trio.Event()

    def note(self, change: RoleChange) -> None:
        """Note a change, and wake all who wait for one."""
        self._changes.append(change)
        self._last += 1
        self._news.set()
        self._news = trio.Event()

    def after(self, number: int) -> RoleChanges:
        """Return the changes after a number."""
        count = self._last - number
        found = list(self._changes)[-count:] if 0 < count <= len(self._changes) else []
        return RoleChanges(last=self._last, changes=found)

    async def wait(self, number: int) -> None:
        """Wait for a change after a number."""
        while self._last == number:
            await self._news.wait()
