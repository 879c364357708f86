"""Faults of the processes of roles that last: stopped processes, limits, roles that are held down.

Fault contract: the faults are known to the supervisor only, and end with it.  A stopped process or a limit ends with its
process; limits are put on the next process of the role again.
"""

from __future__ import annotations

import contextlib
import resource
from collections import deque
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

    def limit(self, role: str, child: Child) -> None:
        """Put the limits of a role on its process, and undo those that are no more; does nothing if it has ended.

        Only the soft limits change, so that every user may undo it.
        """
        limits = self.limits(role)
        with contextlib.suppress(ProcessLookupError):
            for name, number in _LIMITS.items():
                _, hard = resource.prlimit(child.pid, number)
                most = limits.get(name)
                soft = hard if most is None else most if hard == resource.RLIM_INFINITY else min(most, hard)
                resource.prlimit(child.pid, number, (soft, hard))


def _words(fault: RoleFault) -> str:
    parts = [
        "stopped" if fault.pause else "",
        "held down" if fault.hold else "",
        "" if fault.files_max is None else f"at most {fault.files_max} open files",
        "" if fault.memory_max is None else f"at most {fault.memory_max} bytes of address space",
    ]
    text = ", ".join(part for part in parts if part)
    return f"{text} by fault {fault.fault!r}" if text else ""


async def wait_stopped(child: Child, clock: Clock) -> None:
    """Wait until all of a process that got SIGSTOP is stopped, or it has ended; the kernel reports it nowhere else."""
    stat = Path(f"/proc/{child.pid}/stat")
    with clock.move_on_after(STOP_S):
        while True:
            try:
                state = stat.read_text().rpartition(")")[2].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                return
            if state in "TtZX":
                return
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
