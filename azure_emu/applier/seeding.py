"""Fills a new managed disk from an image of the user, an offline seed, before its site sends anything.

The image is read in order, and its data become sync parts of generation 1, which are applied as if they had come through the
cache account.  The resync that follows begins a later generation, compares both sides, and sends what differs.  So nothing
depends on the content of the image: another disk's image costs time, and an image that changes meanwhile does no harm.

A seed is no state of the VM.  Its first part has another position than its ``sync-end`` tag, and no log follows, so that no
position of its generation is valid (:class:`siterig.azure_emu.disks.history.Epoch`): no recovery point, mount or failover
can show it.

Fault contract
--------------
The image is never changed.  Its bytes go from memory into the managed disk, which encrypts them; no other file gets them.
Each part is durable before the next one begins.  A seed that is repeated, after a kill of any process, skips the parts that
the watermark counts.  Their borders are computed from the data ranges of the image; if these have changed meanwhile, a range
may be left out, which is then sent by the resync.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.applier.applier import Applier
from siterig.azure_emu.applier.disk_record import AppliedDisk
from siterig.azure_emu.contracts.seeds import SeedImage
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.failpoint import Failpoint
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.images.image_reader import UNIT_BYTES, DiskRange, ImageReader, open_reader
from siterig.blockfs.transfer.part_name import PartName, Watermark
from siterig.blockfs.transfer.sync_part import DiskChunk, SyncOrigin, pack_sync_part
from siterig.cext.checksums import is_zero

GENERATION = 1
PART_BYTES = 8 << 20
"""Bytes of the image's data in a part."""
CHUNK_BYTES = 1 << 20
"""Limit of the bytes of one record of a part."""
_FIRST_POSITION, _END_POSITION, _FIRST_SEQ = 0, 1, 1
_READ = Failpoint("seed.read")
_PART_APPLIED = Failpoint("seed.part_applied")

_log = structlog.get_logger(__name__)


class Seeding:
    """The seeds of an applier; one of a disk at a time."""

    def __init__(self, applier: Applier) -> None:
        self._applier = applier
        self._locks: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)
        self._read_bytes: dict[str, int] = {}

    def progress(self, disk_id: str) -> int:
        """Return how many bytes of the disk were passed so far; 0 if it is not being seeded."""
        return self._read_bytes.get(disk_id, 0)

    async def check(self, image: str, format_: ImageFormat | None, size_bytes: int) -> SeedImage:
        """Check that an image can fill a managed disk of this size.

        Raises:
            RigError: the errors of :func:`siterig.blockfs.images.importer.look_at`; ``DiskTooSmall``, ``NotEnoughSpace``.
        """
        async with open_reader(Path(image), format_) as reader:
            _check_size(reader, size_bytes)
            data_bytes = sum(length for _, length in await reader.data_ranges())
            room = os.statvfs(next(each for each in (self._applier.folder, *self._applier.folder.parents) if each.exists()))
            free_bytes = room.f_bavail * room.f_frsize
            if data_bytes > free_bytes:
                raise RigError(
                    Code.NotEnoughSpace,
                    f"{image}: the managed disk needs {data_bytes} bytes for its data; {self._applier.folder} has "
                    f"{free_bytes} free",
                    recoverable=True,
                )
            source = reader.source
            return SeedImage(format=source.format, size_bytes=source.size_bytes, data_bytes=data_bytes, remark=source.remark)

    async def seed(self, disk_id: str, image: str, format_: ImageFormat | None) -> Watermark:
        """Fill a managed disk with the data of an image, or continue that; no-op for one that has any other data.

        Raises:
            RigError: the errors of :meth:`check`; ``DiskNotFound`` if there is no managed disk; ``ReadFailed``,
                ``DiskFull``.
        """
        disk = self._applier.disk(disk_id)
        async with self._locks[disk_id]:
            try:
                async with open_reader(Path(image), format_) as reader:
                    return await self._seed(disk, reader)
            finally:
                self._read_bytes.pop(disk_id, None)

    async def _seed(self, disk: AppliedDisk, reader: ImageReader) -> Watermark:
        async with disk.lock:
            store = await self._applier.parts.open(disk)
            mark, size_bytes = store.watermark(), store.created_size_bytes
            begun = [epoch.first_position for epoch in store.debug_state().epochs]
        if mark.generation > GENERATION or mark.sync_complete or any(begun):
            return mark
        _check_size(reader, size_bytes)
        parts = mark.sync_parts
        _log.info("seed_begun", disk=disk.disk_id, image=str(reader.source.path), parts=parts)
        for number, pieces in enumerate(part_pieces(await reader.data_ranges()), 1):
            if number > mark.sync_parts:
                await self._apply(disk, size_bytes, number, await _chunks(reader, pieces, size_bytes))
                parts = number
            self._read_bytes[disk.disk_id] = sum(pieces[-1])
        if not parts:
            return mark  # zeros only, which the managed disk has; one part alone would make a valid position
        mark = await self._apply(disk, size_bytes, parts + 1, deque(), is_last=True)
        _log.info("seed_ended", disk=disk.disk_id, parts=mark.sync_parts)
        return mark

    async def _apply(
        self, disk: AppliedDisk, size_bytes: int, number: int, chunks: deque[DiskChunk], *, is_last: bool = False
    ) -> Watermark:
        _READ.reach()
        position = _END_POSITION if is_last else _FIRST_POSITION
        origin = SyncOrigin(disk.disk_id, GENERATION, size_bytes, position, self._applier.clock.wall_ns(), _FIRST_SEQ)
        part: PartName = origin.part(number)
        data = await trio.to_thread.run_sync(lambda: pack_sync_part(origin, number, chunks, is_last=is_last))
        async with disk.lock:
            store = await self._applier.parts.open(disk)  # raises if the managed disk was deleted meanwhile
            mark = await trio.to_thread.run_sync(store.apply_part, part, data)
        _PART_APPLIED.reach()
        return mark


def _check_size(reader: ImageReader, size_bytes: int) -> None:
    source = reader.source
    if source.size_bytes > size_bytes:
        raise RigError(
            Code.DiskTooSmall,
            f"{source.path}: is a disk of {source.size_bytes} bytes; the disk to replicate has {size_bytes}, and an image "
            "that seeds it may not be larger",
        )


def part_pieces(ranges: Iterable[DiskRange]) -> Iterator[list[DiskRange]]:
    """Cut ranges of data into the pieces of parts of ``PART_BYTES``; the same ranges give the same parts."""
    pieces: list[DiskRange] = []
    room = PART_BYTES
    for offset, length in ranges:
        at, end = offset, offset + length
        while at < end:
            some = min(end - at, room)
            pieces.append((at, some))
            at, room = at + some, room - some
            if not room:
                yield pieces
                pieces, room = [], PART_BYTES
    if pieces:
        yield pieces


async def _chunks(reader: ImageReader, pieces: list[DiskRange], size_bytes: int) -> deque[DiskChunk]:
    """Read pieces of the image; zeros are left out, because the managed disk is empty."""
    found: deque[DiskChunk] = deque()
    for offset, length in pieces:
        # The last piece can end within a line of the managed disk's cipher; the image ends there, and zeros follow.
        end = min(size_bytes, -(-(offset + length) // UNIT_BYTES) * UNIT_BYTES)
        for at in range(offset, end, CHUNK_BYTES):
            data = await reader.read(at, min(CHUNK_BYTES, end - at))
            if not is_zero(data):
                found.append(DiskChunk(at, len(data), data))
    return found
