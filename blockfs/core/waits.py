"""The waits of a role: the conditions that it waits for, with start times.

A role registers each wait here.  Its supervisor collects them, ``siterig status`` shows them, and the vault turns a wait
that lasts too long into a health error.  All calls are made on the role's trio thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.printable import valid_unicode
from siterig.blockfs.core.wire_model import WireModel

LISTED_MAX = 200
"""A role with more waits reports the oldest ones: those need attention."""
REASON_CHARS_MAX = 500


class Wait(WireModel):
    """A condition that a role waits for.

    ``vm`` and ``disk`` name the VM and disk that make no progress meanwhile; both None means the whole role.  ``code`` is
    stable (``CacheUnreachable``, ``DiskFull``, ...), ``reason`` is for people.  ``since_ns`` is the start of the wait by the
    wall clock of the role, ``since_monotonic_ns`` the same by the monotonic clock, which all roles of a host share.
    """

    vm: str | None
    disk: str | None
    code: str
    reason: str
    since_ns: int
    since_monotonic_ns: int | None = None


class RoleHealth(Protocol):
    """The health check that the supervisor sends to every role every few seconds, with a short deadline."""

    async def report(self) -> list[Wait]:
        """Return the role's waits.

        Raises:
            RigError: the role answers, but the process that it supervises does not.
        """
        ...


_Key = tuple[str, str | None, str | None]


class Waits:
    """The waits of one role.

    A wait is identified by its *place*, a short name of the waiting code (``upload``, ``apply``), and by VM and disk.  It
    keeps its first start time until it is cleared, even if its reason changes: it measures how long that place has made no
    progress.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._waits: dict[_Key, Wait] = {}

    def set(self, place: str, code: str, reason: str, *, vm: str | None = None, disk: str | None = None) -> None:
        """Begin a wait, or change the reason of a wait that has begun."""
        key = (place, vm, disk)
        began = self._waits.get(key)
        self._waits[key] = Wait(
            vm=vm,
            disk=disk,
            code=code,
            reason=valid_unicode(reason)[:REASON_CHARS_MAX],
            since_ns=self._clock.wall_ns() if began is None else began.since_ns,
            since_monotonic_ns=self._clock.monotonic_ns() if began is None else began.since_monotonic_ns,
        )

    def clear(self, place: str, *, vm: str | None = None, disk: str | None = None) -> None:
        """End a wait; do nothing if there is none."""
        self._waits.pop((place, vm, disk), None)

    @contextmanager
    def waiting(
        self, place: str, *, vm: str | None = None, disk: str | None = None
    ) -> Iterator[Callable[[RigError | None], None]]:
        """Yield a function for a retry loop: call it with each error, or with None to end the wait.

        Put the whole loop into the block, not one attempt.  Then all attempts are one wait with one start time, which ends
        with the block.
        """

        def because(error: RigError | None) -> None:
            if error is None:
                self.clear(place, vm=vm, disk=disk)
            else:
                self.set(place, error.code, error.message, vm=vm, disk=disk)

        try:
            yield because
        finally:
            self.clear(place, vm=vm, disk=disk)

    def list(self) -> list[Wait]:
        """Return the waits, oldest first, at most ``LISTED_MAX``."""
        return sorted(self._waits.values(), key=lambda wait: wait.since_ns)[:LISTED_MAX]
