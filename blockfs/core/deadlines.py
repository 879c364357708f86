"""Deadlines of calls between roles; they stand on the methods of the Protocols.

A role that hangs must not hang the others.  A call that a role answers from its own state has a deadline.  A call that
copies, reads a disk, or waits for a job or a freeze has none, because a slow one looks like one that hangs.

A method with a deadline changes nothing that a second call could harm, so the caller may repeat it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

ANSWER_S = 20.0
"""For a call that a role answers by itself; roles of a loaded host have taken seconds."""
REPORT_S = 5.0
"""For a call between the supervisor and the vault or a user: the supervisor has no other work."""
ASKING_S = 2 * ANSWER_S
"""For a call that makes the role call another one: the inner deadline ends first, so the error names the role that hangs."""
ASKING_BOTH_S = 5 * ANSWER_S
"""For a call that makes the vault call both sides, one after the other."""
STARTING_S = 180.0
"""For the start of a role, which may fail a few times before it succeeds."""

_ATTRIBUTE = "_deadline_s"


def deadline(seconds: float) -> Callable[[F], F]:
    """Give a method of a Protocol a deadline."""

    def mark(method: F) -> F:
        setattr(method, _ATTRIBUTE, seconds)
        return method

    return mark


def deadline_s(method: Callable[..., object]) -> float:
    """Return the deadline of a method in seconds; infinity if it has none."""
    return float(getattr(method, _ATTRIBUTE, math.inf))
