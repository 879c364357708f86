"""Downloads the parts that come next while the one before them is applied.

The memory is bounded for all disks together: so many parts may be downloaded ahead, and a disk that finds none of these
places free downloads its next part when its turn comes.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_name import PartName

AHEAD_MAX = 4
"""Limit of the parts of all disks that are downloaded ahead."""
DISK_AHEAD_MAX = 2
"""Limit of those of one disk: an account that is busy with uploads takes longer for a download than a part is applied."""
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
        self.nursery = nursery
        self._begun: dict[PartName, _Download] = {}

    def begin(self, parts: Mapping[PartName, int]) -> None:
        """Begin to download parts, given with their size in bytes, as far as there are places; drop all others."""
        for part in [part for part in self._begun if part not in parts]:
            self._drop(part)
        for part, size_bytes in parts.items():
            if part in self._begun:
                continue
            if size_bytes > AHEAD_BYTES_MAX:
                return
            try:
                self._places.acquire_nowait()
            except trio.WouldBlock:
                return
            self._begun[part] = _Download(part)
            self.nursery.start_soon(self._begun[part].run, self._cache)

    async def get(self, part: PartName) -> bytes:
        """Return the bytes of a part.

        Raises:
            RigError: the errors of :meth:`CacheAccount.get`.
        """
        if part not in self._begun:
            return await self._cache.get(part)
        try:
            return await self._begun[part].wait()
        finally:
            self._drop(part)

    def drop(self) -> None:
        """Forget the downloads that were begun, and free their places."""
        self.begin({})

    def _drop(self, part: PartName) -> None:
        self._begun.pop(part).scope.cancel()
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
