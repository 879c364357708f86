"""The waits of a role: what it waits for, and since when.

A role registers each wait here; its supervisor collects them, ``siterig status`` shows them, and the vault turns one
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
"""A role with more waits reports the oldest: they are the ones that somebody has to look at."""
REASON_CHARS_MAX = 500


class Wait(WireModel):
    """Something that a role waits for.

    ``vm``, ``disk``: what stands still meanwhile; both None: the whole role.  ``code`` is stable (``CacheUnreachable``,
    ``DiskFull``, ...), ``reason`` is for people.  ``since_ns``: begin of the wait, wall clock.
    """

    vm: str | None
    disk: str | None
    code: str
    reason: str
    since_ns: int


class RoleHealth(Protocol):
    """The supervisor's question to every role, every few seconds and with a short deadline."""

    async def report(self) -> list[Wait]:
        """The role's waits.  ``RigError`` if the role answers, but what it serves does not."""
        ...


_Key = tuple[str, str | None, str | None]


class Waits:
    """The waits of one role.

    A wait is known by its *place*, a short name of the code that waits (``upload``, ``apply``), and by VM and disk.  It
    keeps its first start time until it is cleared, also when its reason changes: what counts is for how long that place
    has made no progress.
    """

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._waits: dict[_Key, Wait] = {}

    def set(self, place: str, code: str, reason: str, *, vm: str | None = None, disk: str | None = None) -> None:
        """Begin a wait, or change the reason of one that has begun."""
        key = (place, vm, disk)
        began = self._waits.get(key)
        since_ns = self._clock.wall_ns() if began is None else began.since_ns
        self._waits[key] = Wait(
            vm=vm, disk=disk, code=code, reason=valid_unicode(reason)[:REASON_CHARS_MAX], since_ns=since_ns
        )

    def clear(self, place: str, *, vm: str | None = None, disk: str | None = None) -> None:
        """End a wait; no-op if there is none."""
        self._waits.pop((place, vm, disk), None)

    @contextmanager
    def waiting(
        self, place: str, *, vm: str | None = None, disk: str | None = None
    ) -> Iterator[Callable[[RigError | None], None]]:
        """For a loop that tries again: call what is given with each error; the wait ends with the block, or with None.

        Put the whole loop into the block, not one attempt: then all attempts are one wait with one start time.
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
        """The waits, oldest first, at most ``LISTED_MAX``."""
        return sorted(self._waits.values(), key=lambda wait: wait.since_ns)[:LISTED_MAX]
