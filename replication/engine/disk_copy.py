"""Makes the sync stream of one disk, part by part, and hands the parts to the pipeline, which records and puts them.

Fault contract
--------------
The number of a part and the bytes of the disk that it covers never change within a generation: blobs are written once, so a
part that is written again with other bounds would be dropped in favour of the old one and leave a hole.  Hence the order:
the part is complete in the spool, then ``parts`` and ``next_offset`` are durable in the relationship, and only then it is
sent.  A part that a kill left in the spool without its record was never sent; it is deleted.  A lost part is sent
again from the spool (:mod:`siterig.replication.parts.spool`), so its content never changes either, however old the
snapshot is.  docs/internals/decisions/0032-copy-pipeline.md compares this with reading the snapshot again.

An interrupted copy continues from ``next_offset``, *with a new snapshot* if needed, while ``first_seq`` stays that of the
first one.  That is right: the log is replayed from the first snapshot on, over chunks of which some are newer.  Each chunk
is the disk's content at some position P of *its* snapshot, plus the replay of records up to any position Q >= P; and
replaying records that are contained already changes nothing in the end, because the last write to a byte wins.  The result
is right at every position from the *last* snapshot's on, which is why ``sync-end`` carries that one; no recovery point is
cut before the copy is complete.  If the generation changed, the log is not contiguous and none of this is true:
``ResyncNeeded``.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from siterig.blockfs.changelog.segment import RECORD_HEADER_BYTES
from siterig.blockfs.contracts.control import SnapshotDisk, SnapshotInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.sync_part import DiskChunk, SyncOrigin
from siterig.cext.checksums import is_zero
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.disk_groups import DiskGroup
from siterig.replication.engine.part_pipeline import PART_BYTES_MAX, PART_GROWTH_MAX, CopiedPart
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.retry import ResyncNeeded
from siterig.replication.engine.snapshots import SnapshotFile
from siterig.replication.engine.uploader import Uploader
from siterig.replication.parts.byte_budget import COPIES, Reservation
from siterig.replication.parts.spool import remove_unrecorded, spool_folder

UNRECORDED_BYTES_MAX = 4 << 30
"""After so many bytes of the disk a part is finished although it is small, to record the progress."""
RECORDED_BYTES_MIN = 1 << 30
"""Progress without parts is recorded after so many bytes of the disk."""


class DiskCopy:
    """Copies one disk of a snapshot, in the order of its bytes; for one task at a time."""

    def __init__(
        self,
        context: AgentContext,
        snapshot: SnapshotInfo,
        disk: SnapshotDisk,
        *,
        uploader: Uploader,
        tracker: ProgressTracker,
        file: SnapshotFile,
    ) -> None:
        self.disk = disk
        self.file = file
        self._context = context
        self._group = uploader.group
        self._vm = uploader.group.vm
        self._uploader = uploader
        self._tracker = tracker
        state = self.state
        remove_unrecorded(spool_folder(context.spool, disk.disk_id), state.generation, state.parts)
        self._origin = SyncOrigin(
            disk_id=disk.disk_id,
            generation=state.generation,
            disk_size_bytes=disk.size_bytes,
            position=snapshot.position,
            time_ns=snapshot.time_ns,
            first_seq=state.first_seq,
        )
        self._parts = state.parts
        self._passed = state.next_offset
        self._chunks: deque[DiskChunk] = deque()
        self._read_bytes = 0
        self._buffer: mmap.mmap | None = None
        self._filled_bytes = 0
        self._reservation: Reservation | None = None
        self._packed_share = 1.0

    @property
    def state(self) -> DiskSync:
        """The progress of this disk, as the relationship records it."""
        return next(item for item in self._group.states if item.disk_id == self.disk.disk_id)

    @property
    def _part_bytes(self) -> int:
        """The bytes of the disk in a part: more if the parts before were compressed well."""
        return int(PART_BYTES_MAX * min(PART_GROWTH_MAX, 1 / max(self._packed_share, 0.01)))

    async def add(self, offset: int, length: int, *, zeros: bool) -> None:
        """Read and add a piece; ``zeros``: write zeros instead of skipping them.

        The part takes memory as it grows: the next piece may be far away.  If there is no more, the part ends before.
        """
        if self._chunks and self._reservation is not None:
            has_room = self._filled_bytes + length <= self._uploader.pipeline.buffers.size_bytes
            if not has_room or not self._reservation.extend(COPIES * length):
                self._finish_part(offset)
        await self._begin_part(length)
        await trio.to_thread.run_sync(self._read, offset, length, zeros)
        if self._read_bytes >= self._part_bytes:
            self._finish_part(offset + length)
        self._tracker.done(self.disk.name, offset + length)

    async def add_all(self, pieces: Iterator[tuple[int, int]]) -> None:
        """Read and add all pieces (offset, length), without those that are zeros."""
        while True:
            await self._begin_part(self._part_bytes)
            end = await trio.to_thread.run_sync(self._read_part, pieces)
            if end is None:
                return
            self._finish_part(end)
            self._tracker.done(self.disk.name, end)

    async def open_generation(self) -> None:
        """Make part 1, which has the disk's first bytes.

        Once it is applied, the recovery side is at this generation and applies no parts of older ones.
        """
        length = min(4096, self.disk.size_bytes)
        await self._begin_part(length)
        await trio.to_thread.run_sync(self._read, 0, length, True)
        self._finish_part(0)

    async def pass_equal(self, upto: int) -> None:
        """Record that everything below ``upto`` is in parts, or needs none because it is equal on both sides.

        What was added stays in an unfinished part until ``UNRECORDED_BYTES_MAX`` were passed: a copy that is interrupted
        reads and compares so much again at most.
        """
        if self._chunks:
            if upto - self._passed >= UNRECORDED_BYTES_MAX:
                self._finish_part(upto)
        elif upto - self._passed >= RECORDED_BYTES_MIN:
            await self._uploader.pipeline.wait_recorded()  # never ahead of a part with bytes below
            self._passed = upto
            self._context.book.update_disk(self._vm, self.disk.disk_id, next_offset=upto)
            await self._context.host.release_snapshot(vm=self._vm, disk=self.disk.name, upto=upto)

    async def finish(self) -> None:
        """Make the last part, with the ``sync-end`` tag."""
        await self._begin_part(0)
        self._finish_part(self.disk.size_bytes, is_last=True)
        self._tracker.done(self.disk.name, self.disk.size_bytes)

    def close(self) -> None:
        """Close the file, and forget what was read and is in no part yet."""
        self.file.close()
        self._chunks.clear()
        if self._buffer is not None:
            self._uploader.pipeline.buffers.give_back(self._buffer)
            self._buffer = None
        if self._reservation is not None:
            self._reservation.release()

    async def _begin_part(self, length: int) -> None:
        """Wait until a part may be begun and has memory for so many bytes; does nothing if one is begun."""
        if self._reservation is None:
            await self._uploader.wait_for_room()
            self._reservation = await self._uploader.pipeline.reserve(length)
            self._buffer, self._filled_bytes = self._uploader.pipeline.buffers.take(), 0

    def _read_part(self, pieces: Iterator[tuple[int, int]]) -> int | None:
        """Read pieces until the part is full, and return the end of the last one; None if they end before."""
        for offset, length in pieces:
            self._read(offset, length, zeros=False)
            if self._read_bytes >= self._part_bytes:
                return offset + length
        return None

    def _read(self, offset: int, length: int, zeros: bool) -> None:
        assert self._buffer is not None  # noqa: S101 (the part was begun)
        data = memoryview(self._buffer)[self._filled_bytes : self._filled_bytes + length]
        assert len(data) == length  # noqa: S101 (no piece is longer than the room that a full part leaves)
        self.file.pread_into(offset, data)
        if not is_zero(data):
            self._chunks.append(DiskChunk(offset, length, data))
            self._read_bytes += RECORD_HEADER_BYTES + length
            self._filled_bytes += length
        elif zeros:
            self._chunks.append(DiskChunk(offset, length, None))
            self._read_bytes += RECORD_HEADER_BYTES

    def _finish_part(self, next_offset: int, *, is_last: bool = False) -> None:
        assert self._reservation is not None  # noqa: S101 (the part was begun)
        self._parts += 1
        self._passed = next_offset
        part = CopiedPart(
            origin=self._origin,
            number=self._parts,
            disk=self.disk.name,
            chunks=self._chunks,
            next_offset=next_offset,
            is_last=is_last,
            reservation=self._reservation,
            buffer=self._buffer,
            packed_share=self._note_packed_share,
        )
        self._chunks, self._read_bytes, self._reservation, self._buffer = deque(), 0, None, None
        self._uploader.pipeline.add(part)

    def _note_packed_share(self, share: float) -> None:
        self._packed_share = share


@asynccontextmanager
async def open_copy(
    context: AgentContext, snapshot: SnapshotInfo, disk: SnapshotDisk, uploader: Uploader, tracker: ProgressTracker
) -> AsyncIterator[DiskCopy]:
    """Open a disk's snapshot for copying, for the time of the block."""
    file = await trio.to_thread.run_sync(context.open_snapshot, Path(disk.path))
    copy = DiskCopy(context, snapshot, disk, uploader=uploader, tracker=tracker, file=file)
    try:
        yield copy
    finally:
        # In a thread: closing a file of the mount waits for its server, which may be a task of this thread.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(copy.close)


async def check_vouched_for(group: DiskGroup) -> None:
    """Raise ``ResyncNeeded`` if a disk's log is not contiguous since the sync stream of its generation began."""
    generations = {disk.disk_id: disk.generation for disk in group.states}
    for info in await group.infos():
        if info.needs_resync is not None:
            raise ResyncNeeded(info.needs_resync)
        if generations.get(info.disk_id) != info.generation:
            raise ResyncNeeded(Code.GenerationChanged)


@asynccontextmanager
async def log_watched(group: DiskGroup) -> AsyncIterator[None]:
    """Raise ``ResyncNeeded`` in place of ``NotTracked`` if the log of a disk was abandoned during the block.

    The disk host may abandon a log at any time, also between a check of the disks and a call that needs their logs.
    """
    try:
        yield
    except RigError as exc:
        if exc.code == Code.NotTracked:
            for info in await group.infos():
                if info.needs_resync is not None:
                    raise ResyncNeeded(info.needs_resync) from exc
        raise
