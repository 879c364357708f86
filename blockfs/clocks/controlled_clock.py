"""The clock of a role: it follows the page of the rig's clock, and is the system's for as long as the page has no change.

All roles of a rig read the same page, so they see a change at the same moment; the C core of a role reads it, too
(:meth:`ControlledClock.attach_core`).  A change is an event (inotify) for each role, which then sets the deadlines of its
sleepers again, and ends those that are due, one after the other in the order of their deadlines.  Nothing polls.

:attr:`ControlledClock.real` is the system's clock: for waits on other processes, the kernel and the storage medium.
"""

from __future__ import annotations

import math
import os
import select
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
import trio

from siterig.blockfs.clocks.clock_page import ClockPage, ensure_page
from siterig.blockfs.clocks.clock_terms import MILLION, SECOND_NS, SWITCH_NS
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.watch import inotify
from siterig.cext._core import ffi, lib

POLL_S_MAX = 86400.0
"""The kernel takes no longer time; at a low rate a short sleep of the clock can be longer."""

_log = structlog.get_logger(__name__)


class _TimedScope(AbstractContextManager[trio.CancelScope]):
    """A cancel scope that ends at a time of the controlled clock."""

    __slots__ = ("_clock", "_seconds", "_shield", "due_ns", "scope")

    def __init__(self, clock: ControlledClock, seconds: float, *, shield: bool) -> None:
        self._clock = clock
        self._seconds = seconds
        self._shield = shield

    def __enter__(self) -> trio.CancelScope:
        self.due_ns = self._clock.monotonic_ns() + self._seconds * SECOND_NS
        self.scope = trio.CancelScope(shield=self._shield)
        self.set_deadline()
        self._clock.timers[self] = None
        return self.scope.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        del self._clock.timers[self]
        return self.scope.__exit__(kind, error, trace)

    def set_deadline(self) -> None:
        """Set the deadline on trio's clock."""
        self.scope.deadline = SYSTEM_CLOCK.trio_time_s() + self._clock.real_seconds_until(self.due_ns)


class ControlledClock(Clock):
    """The clock of one role; :meth:`run` makes its sleepers follow the changes.  Close it after use."""

    def __init__(self, path: Path, role: str) -> None:
        """Map the page at ``path``, which is made if there is none.

        Raises:
            RigError: ``ClockDamaged`` or ``FolderUnusable``.
        """
        ensure_page(path)
        self._page = ClockPage(path)
        self.timers: dict[_TimedScope, None] = {}
        """The sleeps and deadlines of the trio tasks, in no order."""
        try:
            slot = self._page.claim(role, HostProcess.own())
            self._slot, self._taken_over = slot.number, slot.acknowledged
            self._mapped = _mapped(self._page, slot.number)
        except BaseException:
            self._page.close()
            raise

    def close(self) -> None:
        """Unmap the page; the core no longer follows it."""
        lib.sr_clock_attach(ffi.NULL)
        lib.sr_clock_free(self._mapped)
        self._mapped = ffi.NULL
        self._page.close()

    def attach_core(self) -> None:
        """Let the records of change logs and the injections of this process have the wall time of this clock."""
        lib.sr_clock_attach(self._mapped)

    @property
    def real(self) -> Clock:
        return SYSTEM_CLOCK

    @property
    def boot_id(self) -> str:
        return current_boot_id()

    def wall_ns(self) -> int:
        return int(lib.sr_clock_wall_ns(self._mapped))

    def boottime_ns(self) -> int:
        return int(lib.sr_clock_boottime_ns(self._mapped))

    def monotonic_ns(self) -> int:
        return int(lib.sr_clock_monotonic_ns(self._mapped))

    def trio_time_s(self) -> float:
        return self.monotonic_ns() / SECOND_NS

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await trio.lowlevel.checkpoint()
            return
        with self.move_on_after(seconds):
            await trio.sleep_forever()

    def move_on_after(self, seconds: float, *, shield: bool = False) -> AbstractContextManager[trio.CancelScope]:
        return _TimedScope(self, seconds, shield=shield)

    @contextmanager
    def fail_after(self, seconds: float) -> Iterator[trio.CancelScope]:
        with self.move_on_after(seconds) as scope:
            yield scope
        if scope.cancelled_caught:
            raise trio.TooSlowError

    def sleep_thread(self, seconds: float) -> None:
        due_ns = self.monotonic_ns() + seconds * SECOND_NS
        instance = self._watch()
        try:
            changes = select.poll()
            changes.register(instance, select.POLLIN)
            while (left_s := self.real_seconds_until(due_ns)) > 0:
                if changes.poll(math.ceil(min(left_s, POLL_S_MAX) * 1000)):
                    _drain(instance)
                    SYSTEM_CLOCK.sleep_thread(SWITCH_NS / SECOND_NS)
        finally:
            os.close(instance)

    def real_seconds_until(self, due_ns: float) -> float:
        """Return the real time until a monotonic time of this clock at its present rate; infinite if it stands still."""
        rate_ppm = lib.sr_clock_rate_ppm(self._mapped)
        left_ns = due_ns - self.monotonic_ns()
        if left_ns <= 0:
            return 0.0
        return float(left_ns) / SECOND_NS * MILLION / rate_ppm if rate_ppm else math.inf

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the changes until cancelled; ``started`` means that none is missed from now on.

        Without a free inotify instance the sleepers do not follow; each change of the clock then reports this role.
        """
        try:
            instance = self._watch()
        except OSError as error:
            _log.warning("clock_not_watched", file=str(self._page.path), error=error.strerror)
            task_status.started()
            await trio.sleep_forever()
        try:
            task_status.started()
            while True:
                await self._take_over()
                await trio.lowlevel.wait_readable(instance)
                _drain(instance)
        finally:
            os.close(instance)

    def _watch(self) -> int:
        instance = inotify.open_instance()
        try:
            inotify.add_watch(instance, Path(f"/proc/self/fd/{self._page.fd}"), inotify.IN_MODIFY)
        except BaseException:
            os.close(instance)
            raise
        return instance

    async def _take_over(self) -> None:
        """Take over the last change, if it is new: sleepers that are due end in the order of their deadlines."""
        generation = int(lib.sr_clock_generation(self._mapped))
        if lib.sr_clock_is_damaged(self._mapped):
            _log.error("clock_page_damaged", file=str(self._page.path), used_change=generation)
            return
        if generation == self._taken_over:
            return
        terms = self._page.terms()
        switch_ns = terms.rate_from_ns - SYSTEM_CLOCK.monotonic_ns()
        if 0 < switch_ns <= SWITCH_NS:
            await SYSTEM_CLOCK.sleep(switch_ns / SECOND_NS)
        now_ns, due = self.monotonic_ns(), []
        for timer in self.timers:
            if timer.due_ns <= now_ns:
                due.append(timer)
            else:
                timer.set_deadline()
        for timer in sorted(due, key=lambda timer: timer.due_ns):
            if timer in self.timers:
                timer.scope.cancel()
                await trio.lowlevel.checkpoint()  # its task runs before the next one is woken
        await trio.lowlevel.checkpoint()  # the last one has run, too
        self._taken_over = generation
        self._page.acknowledge(self._slot, generation)
        _log.info("clock_changed", change=generation, due=len(due))


def _mapped(page: ClockPage, slot: int) -> Any:
    mapped = lib.sr_clock_open(page.fd, slot)
    if mapped == ffi.NULL:
        raise RigError(Code.ClockDamaged, f"{page.path} cannot be mapped: {os.strerror(ffi.errno)}")
    return mapped


def _drain(instance: int) -> None:
    for _ in inotify.events(instance):
        pass
