"""Downloads the part that comes next while the one before it is applied.

The memory is bounded for all disks together: so many parts may be downloaded ahead, and a disk that finds none of these
places free downloads its next part when its turn comes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_name import PartName

AHEAD_MAX = 4
"""Limit of the parts of all disks that are downloaded ahead."""
AHEAD_BYTES_MAX = 32 << 20
"""A longer blob is not downloaded ahead."""


def follows(part: PartName, before: PartName) -> bool:
    """Return True if ``part`` is the one that comes after ``before`` in the same stream."""
    same = (part.disk_id, part.generation, part.stream) == (before.disk_id, before.generation, before.stream)
    return same and part.first == before.last + 1


class ReadAhead:
    """The downloads of one disk; its tasks run in the nursery of :func:`reading_ahead`."""

    def __init__(self, cache: CacheAccount, places: trio.Semaphore, nursery: trio.Nursery) -> None:
        self._cache = cache
        self._places = places
        self._nursery = nursery
        self._begun: _Download | None = None

    def begin(self, part: PartName, size_bytes: int) -> None:
        """Begin to download a part, if there is a place; a former one that was not needed is dropped."""
        self.drop()
        if size_bytes > AHEAD_BYTES_MAX:
            return
        try:
            self._places.acquire_nowait()
        except trio.WouldBlock:
            return
        self._begun = _Download(part)
        self._nursery.start_soon(self._begun.run, self._cache)

    async def get(self, part: PartName) -> bytes:
        """Return the bytes of a part.

        Raises:
            RigError: the errors of :meth:`CacheAccount.get`.
        """
        if self._begun is None or self._begun.part != part:
            return await self._cache.get(part)
        try:
            return await self._begun.wait()
        finally:
            self.drop()

    def drop(self) -> None:
        """Forget the download that was begun, and free its place."""
        if self._begun is not None:
            self._begun.scope.cancel()
            self._begun = None
            self._places.release()


class _Download:
    def __init__(self, part: PartName) -> None:
        self.part = part
        self.scope = trio.CancelScope()
        self._ended = trio.Event()
        self._data = b""
        self._error: RigError | None = None

    async def run(self, cache: CacheAccount) -> None:
        with self.scope:
            try:
                self._data = await cache.get(self.part)
            except RigError as exc:
                self._error = exc
        self._ended.set()

    async def wait(self) -> bytes:
        await self._ended.wait()
        if self._error is not None:
            raise self._error
        return self._data


@asynccontextmanager
async def reading_ahead(cache: CacheAccount, places: trio.Semaphore) -> AsyncIterator[ReadAhead]:
    """Download ahead for the time of the block; an error of the block is raised as it is, not in a group."""
    failure: RigError | OSError | None = None
    async with trio.open_nursery() as nursery:
        ahead = ReadAhead(cache, places, nursery)
        try:
            yield ahead
        except (RigError, OSError) as exc:
            failure = exc
        finally:
            ahead.drop()
    if failure is not None:
        raise failure
