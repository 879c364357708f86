"""Failback: a recovered VM's disk is read as a whole and put into the cache account as sync parts.

Fault contract: the cache account holds the only state.  An export that is repeated, after a kill or an error, makes the same
parts and keeps each that the account has already *with the same bytes*.  A part that differs, because the source was written
in between, is replaced.  Parts of a longer earlier export are removed.  Parts are made in memory: no file has the bytes of
the disk without encryption.
"""

from __future__ import annotations

import errno
import os
from collections import defaultdict, deque
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_part import DiskChunk, SyncOrigin, pack_sync_part
from siterig.cext.checksums import is_zero

GENERATION = 1
READ_BYTES = 1 << 20
PART_BYTES = 8 << 20
"""Bytes of the disk in a part; it is complete when it has so many."""
UPLOADS_MAX = 2
"""Limit of concurrent uploads; more make Azurite slower."""

# No log follows an export: its snapshot has position 1, so that equal data gives equal bytes at any time.
_POSITION, _TIME_NS, _FIRST_SEQ = 1, 0, 1


class Exporter:
    """Exports disks; one export of a disk at a time."""

    def __init__(self, cache: CacheAccount) -> None:
        self._cache = cache
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._read_bytes: dict[str, int] = {}

    def progress(self, source_id: str) -> int:
        """Return how many bytes of the source were read so far; 0 if there is no export."""
        return self._read_bytes.get(source_id, 0)

    async def export(self, *, source: Path, source_id: str, size_bytes: int) -> int:
        """Put ``source`` into the cache account as the sync stream of ``source_id``; return the number of its parts.

        Raises:
            RigError: ``SourceUnreadable``, ``SourceTooSmall``; the errors of the cache account.
        """
        async with self._locks[source_id]:
            self._read_bytes[source_id] = 0
            parts = await self._export(source, source_id, size_bytes)
            for part in (await self._cache.list(source_id)).parts:
                if part.generation == GENERATION and part.stream == "sync" and part.last > parts:
                    await self._cache.delete(part)
            return parts

    async def _export(self, source: Path, source_id: str, size_bytes: int) -> int:
        reader = await trio.to_thread.run_sync(_SourceReader, source, size_bytes)
        origin = SyncOrigin(source_id, GENERATION, size_bytes, _POSITION, _TIME_NS, _FIRST_SEQ)
        failures: list[RigError] = []
        slots = trio.Semaphore(UPLOADS_MAX)
        try:
            async with trio.open_nursery() as nursery:

                async def upload(part: _ReadPart) -> None:
                    try:
                        await self._upload(origin, part)
                    except RigError as exc:  # raised below, so that it is not in a group
                        failures.append(exc)
                        nursery.cancel_scope.cancel()
                    finally:
                        slots.release()

                while not reader.done:
                    await slots.acquire()
                    try:
                        ready = await trio.to_thread.run_sync(reader.next_part)
                    except RigError as exc:
                        failures.append(exc)
                        nursery.cancel_scope.cancel()
                        break
                    self._read_bytes[source_id] = reader.at
                    nursery.start_soon(upload, ready)
        finally:
            reader.close()
        if failures:
            raise failures[0]
        return reader.parts

    async def _upload(self, origin: SyncOrigin, read: _ReadPart) -> None:
        part = origin.part(read.number)
        data = await trio.to_thread.run_sync(lambda: pack_sync_part(origin, read.number, read.chunks, is_last=read.is_last))
        if not await self._cache.put(part, data) and not await self._holds(part, data):
            await self._cache.put(part, data, replace=True)

    async def _holds(self, part: PartName, data: bytes) -> bool:
        """Return True if the cache account has this part with these bytes; a part that cannot be read does not count."""
        try:
            return await self._cache.get(part) == data
        except RigError as exc:
            if exc.code not in (Code.PartUnreadable, Code.PartNotFound, Code.PartCorrupt):
                raise
            return False


def data_bytes(source: Path) -> int:
    """Return the number of bytes of a file that are not holes.

    Raises:
        RigError: ``SourceUnreadable``.
    """
    try:
        fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise RigError(Code.SourceUnreadable, f"{source}: cannot be opened: {exc.strerror}") from exc
    try:
        size, at, found = os.lseek(fd, 0, os.SEEK_END), 0, 0
        while at < size:
            try:
                begin = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno == errno.ENXIO:
                    break
                raise RigError(Code.SourceUnreadable, f"{source}: at byte {at}: {exc.strerror}") from exc
            at = os.lseek(fd, begin, os.SEEK_HOLE)
            found += at - begin
        return found
    finally:
        os.close(fd)


@dataclass(frozen=True, slots=True)
class _ReadPart:
    """The bytes of one part."""

    number: int
    chunks: deque[DiskChunk]
    is_last: bool


class _SourceReader:
    """Reads the source from start to end into parts, in worker threads, one call at a time."""

    def __init__(self, source: Path, size_bytes: int) -> None:
        self.source = source
        self.size_bytes = size_bytes
        self.at = 0
        self.parts = 0
        self.done = False
        try:
            self._fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as exc:
            raise RigError(Code.SourceUnreadable, f"{source}: cannot be opened: {reason(exc, source)}") from exc
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size < size_bytes:
            os.close(self._fd)
            raise RigError(Code.SourceTooSmall, f"{source}: has {size} bytes; the disk to export has {size_bytes}")

    def next_part(self) -> _ReadPart:
        """Read until a part is full; at the end of the source return the last part."""
        self.parts += 1
        chunks: deque[DiskChunk] = deque()
        read_bytes = 0
        while self.at < self.size_bytes and read_bytes < PART_BYTES:
            length = min(READ_BYTES, self.size_bytes - self.at)
            data = self._read(length)
            offset, self.at = self.at, self.at + length
            if not is_zero(data):
                chunks.append(DiskChunk(offset, length, data))
                read_bytes += length
        self.done = read_bytes < PART_BYTES
        return _ReadPart(self.parts, chunks, self.done)

    def _read(self, length: int) -> bytes:
        pieces = []
        at, end = self.at, self.at + length
        while at < end:
            try:
                piece = os.pread(self._fd, end - at, at)
            except OSError as exc:
                raise RigError(Code.SourceUnreadable, f"{self.source}: at byte {at}: {reason(exc, self.source)}") from exc
            if not piece:
                raise RigError(Code.SourceTooSmall, f"{self.source}: ends at byte {at}; the disk has {self.size_bytes}")
            pieces.append(piece)
            at += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Close the source."""
        os.close(self._fd)
