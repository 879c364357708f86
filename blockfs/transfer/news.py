"""Keys to which something happened, on their way from many tasks to the one that handles them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

import trio

K = TypeVar("K")


class News(Generic[K]):
    """The keys that were noted and not taken yet; a key that is noted twice is taken once.

    A task takes the keys *before* it looks at their subjects, so that it does not miss a change during its look.  All calls
    are on one trio thread.
    """

    def __init__(self) -> None:
        self._keys: dict[K, None] = {}  # in their order: a simulation repeats a run exactly
        self._noted = trio.Event()

    def note(self, keys: Iterable[K] = ()) -> None:
        """Add keys, and wake the task that waits; without keys it is only woken."""
        self._keys.update(dict.fromkeys(keys))
        self._noted.set()

    def drop(self, keys: Iterable[K]) -> None:
        """Remove keys, because their news went another way."""
        for key in keys:
            self._keys.pop(key, None)

    def take(self) -> list[K]:
        """Return the keys in the order in which they were noted, and begin again without any."""
        keys, self._keys = list(self._keys), {}
        self._noted = trio.Event()
        return keys

    async def wait(self) -> None:
        """Return when something was noted since the last :meth:`take`."""
        await self._noted.wait()
