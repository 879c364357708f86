"""The search of ``siterig bisect``: the first position at which a check fails, in as few trials as halving needs.

Invariant: the check passed at ``good`` and failed at ``bad``; each trial moves one of the two.  So the result is always an
edge from passing to failing.  If the check passes and fails several times, it is one such edge, not always the first.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from siterig.blockfs.core.errors import Code, RigError

CheckVerdict = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class ChangeGroup:
    """A group of ``count`` positions at which a disk changed; ``position`` is the last of them."""

    position: int
    time_ns: int
    count: int = 1


class History(Protocol):
    """Source of the positions at which the disks of a VM changed."""

    async def steps(self, after: int, upto: int) -> list[ChangeGroup]:
        """Return all positions with ``after < position <= upto`` in order, or at least two groups if there are many."""
        ...


@dataclass(frozen=True, slots=True)
class Edge:
    """The check passes at ``last_good`` and fails at ``first_bad``.

    ``undecided``: positions between the two, in order, at all of which the check was skipped.
    """

    last_good: int
    first_bad: ChangeGroup
    undecided: tuple[ChangeGroup, ...]


Judge = Callable[[ChangeGroup, int], Awaitable[CheckVerdict]]
"""Runs the check at a position; the second argument is the number of trials that may follow."""


async def search(history: History, judge: Judge, *, good: int, bad: int) -> Edge:
    """Find where the check begins to fail; it passes at ``good`` and fails at ``bad``.

    Raises:
        RigError: ``NothingChanged`` if no disk changed between the two positions.
    """
    skipped: set[int] = set()
    steps = await history.steps(good, bad)
    if not steps:
        raise RigError(Code.NothingChanged, f"no disk changed between positions {good} and {bad}: both are the same state")
    while True:
        candidates = [step for step in steps[:-1] if step.position not in skipped]
        if not candidates:
            if all(trial.count == 1 for trial in steps):
                return Edge(good, steps[-1], tuple(steps[:-1]))
            steps = await _split(history, good, steps)
            continue
        step = _choose(steps, candidates)
        verdict = await judge(step, trials_left(sum(trial.count for trial in steps)) - 1)
        if verdict == "skipped":
            skipped.add(step.position)
            continue
        if verdict == "passed":
            good = step.position
        else:
            bad = step.position
        if all(trial.count == 1 for trial in steps):
            steps = [trial for trial in steps if good < trial.position <= bad]
        else:
            steps = await history.steps(good, bad)


def trials_left(positions: int) -> int:
    """Return the number of trials that find one of ``positions`` positions, if none is skipped."""
    return math.ceil(math.log2(max(positions, 1)))


async def _split(history: History, good: int, steps: list[ChangeGroup]) -> list[ChangeGroup]:
    """Return the groups with the largest of them split."""
    at = max(range(len(steps)), key=lambda number: steps[number].count)
    after = steps[at - 1].position if at else good
    return [*steps[:at], *await history.steps(after, steps[at].position), *steps[at + 1 :]]


def _choose(steps: list[ChangeGroup], candidates: list[ChangeGroup]) -> ChangeGroup:
    """Choose the middle; after skips 1/4, 3/4, 1/8, ... of the way, because skipped states often lie side by side."""
    tried = len(steps) - 1 - len(candidates)
    target = _spread(tried + 1) * sum(step.count for step in steps)
    passed, at = 0, {}
    for step in steps:
        passed += step.count
        at[step.position] = passed
    return min(candidates, key=lambda step: abs(at[step.position] - target))


def _spread(number: int) -> float:
    """Return 1/2, 1/4, 3/4, 1/8, 5/8, 3/8, ... for 1, 2, 3, ..."""
    share, part = 0.0, 0.5
    while number:
        share += part * (number & 1)
        number, part = number >> 1, part / 2
    return share
