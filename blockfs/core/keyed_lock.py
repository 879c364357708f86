"""One lock for each key: tasks that work on the same thing take turns."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class KeyedLock:
    """A lock for each of any number of keys, for one trio thread; no task may hold the same key twice."""

    def __init__(self) -> None:
        self._held: dict[str, trio.Event] = {}

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Wait until no task holds ``key``, and hold it for the block."""
        while (held := self._held.get(key)) is not None:
            await held.wait()
        released = self._held[key] = trio.Event()
        try:
            yield
        finally:
            del self._held[key]
            released.set()
