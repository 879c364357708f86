"""Named failpoints: places in the code at which a test can raise, kill the process or call a function.

A module defines its failpoints as constants and reaches them after the step that each one names::

    _BEFORE_SWITCH = Failpoint("compaction.before_switch")
    ...
    _BEFORE_SWITCH.reach()

A test arms them by name; the name of a failpoint that no imported module defines is an error::

    with failpoint.armed("compaction.before_switch", raises(Killed)):
        store.compact(target)

A failpoint that is not armed costs one method call and one comparison.  The product never arms one.  Arming is for the whole
process; a test with several stores distinguishes them in its action.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

Action = Callable[[str], object]
"""Called with the name of the failpoint that was reached, in the thread that reached it."""

_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_defined: dict[str, Failpoint] = {}


class Failpoint:
    """One place in the code; define it once, as a constant of the module that reaches it."""

    __slots__ = ("_action", "name")

    def __init__(self, name: str) -> None:
        """Define the failpoint.

        Args:
            name: component and moment, for example ``compaction.before_switch``; unique in the whole program.
        Raises:
            ValueError: the name is malformed, or a failpoint of that name exists.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"failpoint name {name!r} is malformed: write component.moment in lower case")
        if name in _defined:
            raise ValueError(f"failpoint {name!r} is defined twice")
        self.name = name
        self._action: Action | None = None
        _defined[name] = self

    def reach(self) -> None:
        """Run the armed action, if any; whatever it raises propagates."""
        if self._action is not None:
            self._action(self.name)


def names(prefix: str = "") -> list[str]:
    """Return the sorted names of all failpoints of the imported modules that start with ``prefix``."""
    return sorted(name for name in _defined if name.startswith(prefix))


@contextmanager
def armed(name: str, action: Action) -> Iterator[None]:
    """Run ``action`` each time the failpoint is reached within the block.

    The innermost block counts; the end of a block restores the action of the block around it.

    Raises:
        ValueError: no imported module defines a failpoint of that name.
    """
    point = _defined.get(name)
    if point is None:
        raise ValueError(f"there is no failpoint {name!r}; defined: {', '.join(names()) or 'none'}")
    before = point._action
    point._action = action
    try:
        yield
    finally:
        point._action = before


@contextmanager
def all_armed(action: Action, prefix: str = "") -> Iterator[None]:
    """Arm all failpoints whose names start with ``prefix``, as :func:`armed` does.

    Raises:
        ValueError: no imported module defines such a failpoint.
    """
    found = names(prefix)
    if not found:
        raise ValueError(f"there is no failpoint {prefix + '...'!r}; defined: {', '.join(names()) or 'none'}")
    with ExitStack() as stack:
        for name in found:
            stack.enter_context(armed(name, action))
        yield


def raises(error: BaseException | type[BaseException]) -> Action:
    """Return an action that raises ``error``."""

    def action(_name: str) -> None:
        raise error

    return action


def kills(_name: str) -> None:
    """Kill this process with SIGKILL; an action for a process that a test started."""
    os.kill(os.getpid(), signal.SIGKILL)
