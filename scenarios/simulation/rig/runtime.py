"""The runtime of a simulation: what lies below the production code, made repeatable.

Five things of the interpreter, the host and trio make two runs of a program different.  They are replaced for the time of a
run, and nothing of siterig is (tests/unit/scenarios/simulation/test_nothing_replaced.py):

* the order in which trio runs tasks that are ready: drawn from the seed;
* the random bytes of the operating system, of which ids, keys and nonces are made: drawn from the seed;
* worker threads: a function for a thread runs in place, after a pause that is drawn from the seed.  Other tasks run during
  the pause, so whole functions interleave.  If the role is killed in the pause, the function does not run;
* the number of processors: always the same;
* time: trio's mock clock, which jumps to the next deadline when nothing can run.
"""

from __future__ import annotations

import logging
import math
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import structlog
import trio
from trio._core import _run

from siterig.blockfs.core import boot
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.files import host_calls

T = TypeVar("T")

PROCESSORS = 2


class Mortal(Protocol):
    """The owner of tasks, which a fault may kill at any point of their work."""

    @property
    def work_s(self) -> float:
        """The time that each piece of work in a thread takes."""
        ...

    async def reach_point(self) -> None:
        """Note that a task reached a point at which the owner can be killed; raises ``Cancelled`` if it is dead.

        A task that was cancelled otherwise continues: a function for a thread ends, and its result is not lost.
        """
        ...


OWNER: ContextVar[Mortal | None] = ContextVar("OWNER", default=None)
"""The role that the current task works for; None: the simulation itself."""


class WorkInPlace:
    """The worker threads of a simulation: each piece of work is a pause, and then a function that runs in place."""

    def __init__(self, draws: random.Random) -> None:
        self._draws = draws

    async def run_sync(
        self, function: Callable[..., T], *args: Any, limiter: trio.CapacityLimiter | None = None, **_options: Any
    ) -> T:
        """Stand for :func:`trio.to_thread.run_sync`."""
        await trio.lowlevel.checkpoint_if_cancelled()
        owner, holder = OWNER.get(), object()
        if limiter is not None:
            await _acquire(limiter, holder)
        try:
            await self._pause(owner)
            if owner is not None:
                await owner.reach_point()
            result = function(*args)
        finally:
            if limiter is not None:
                limiter.release_on_behalf_of(holder)
        if owner is not None:
            await owner.reach_point()
        return result

    async def _pause(self, owner: Mortal | None) -> None:
        """Let other tasks run; a cancelled task pauses, too, because its thread would run."""
        if owner is not None and owner.work_s > 0:
            with trio.CancelScope(shield=True):
                await SYSTEM_CLOCK.sleep(owner.work_s)
        for _ in range(self._draws.choice((0, 0, 1, 2))):
            await trio.lowlevel.cancel_shielded_checkpoint()


async def _acquire(limiter: trio.CapacityLimiter, holder: object) -> None:
    try:
        limiter.acquire_on_behalf_of_nowait(holder)
    except trio.WouldBlock:
        with trio.CancelScope(shield=True):
            await limiter.acquire_on_behalf_of(holder)
    else:
        await trio.lowlevel.cancel_shielded_checkpoint()


class JumpingClock(trio.abc.Clock):
    """The time of a run: it stands still while a task can run, and then jumps to the next deadline.

    It is trio's mock clock with a threshold of 0, for runs without threads: that one reads the real time in each step.
    """

    def __init__(self) -> None:
        self._now_s = 0.0

    def start_clock(self) -> None:
        """Prepare nothing."""

    def current_time(self) -> float:
        """Return the seconds since the beginning of the run."""
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump to the deadline; trio asks when no task can run."""
        if math.isfinite(deadline):
            self._now_s = max(self._now_s, deadline)
        return 0.0


def run(main: Callable[[], Awaitable[T]], seed: int) -> T:
    """Run a simulation from a seed, in a runtime that is the same each time."""
    with _repeatable(seed):
        return trio.run(main, clock=JumpingClock(), strict_exception_groups=True)


_REPLACED: tuple[tuple[Any, str], ...] = (
    (os, "urandom"),
    (random, "_urandom"),  # secrets and SystemRandom read this name
    (os, "cpu_count"),  # the agent packs as many parts at the same time
    (trio.to_thread, "run_sync"),
)
REPLACED = tuple(f"{module.__name__}.{name}" for module, name in _REPLACED)
"""The names that are replaced, besides the choices of trio's scheduler."""


class _TrioOrder:
    """The order in which trio runs ready tasks.  The names are private; Hypothesis seeds the same ones."""

    _CHOICES, _SORTED = "_r", "_ALLOW_DETERMINISTIC_SCHEDULING"

    def __init__(self) -> None:
        self._choices: random.Random = getattr(_run, self._CHOICES)
        self._before = self._choices.getstate(), getattr(_run, self._SORTED)

    def draw_from(self, seed: str) -> None:
        """Draw the order from a seed."""
        setattr(_run, self._SORTED, True)
        self._choices.seed(seed)

    def restore(self) -> None:
        """Let it be as before."""
        state, is_sorted = self._before
        self._choices.setstate(state)
        setattr(_run, self._SORTED, is_sorted)


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    draws = random.Random(f"{seed} bytes")  # noqa: S311 (a simulation has no secrets)
    work = WorkInPlace(random.Random(f"{seed} threads"))  # noqa: S311
    values = (draws.randbytes, draws.randbytes, lambda: PROCESSORS, work.run_sync)
    replaced = [(*name, value) for name, value in zip(_REPLACED, values, strict=True)]
    order = _TrioOrder()
    originals = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    log = structlog.get_config()
    try:
        order.draw_from(f"{seed} order")
        for module, name, value in replaced:
            setattr(module, name, value)
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
        yield
    finally:
        structlog.configure(**log)
        for module, name, value in originals:
            setattr(module, name, value)
        order.restore()
        boot.emulate_reboot(None)
        host_calls.uninstall()
