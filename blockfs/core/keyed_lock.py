"""KeyedLock: what is done to a thing of one name is done by one task at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class KeyedLock:
    """Of any number of names, on one trio thread.  A turn cannot be taken twice by the same task."""

    def __init__(self) -> None:
        self._taken: dict[str, trio.Event] = {}

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Wait until nobody has the turn at ``name``, and have it."""
        while (taken := self._taken.get(name)) is not None:
            await taken.wait()
        ended = self._taken[name] = trio.Event()
        try:
            yield
        finally:
            del self._taken[name]
            ended.set()
