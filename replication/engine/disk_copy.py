"""Writes the sync stream of one disk into the spool, part by part, and records each part once it is durable.

Fault contract
--------------
The number of a part and the bytes of the disk that it covers never change within a generation: blobs are written once, so a
part that is written again with other bounds would be dropped in favour of the old one and leave a hole.  Hence the order:
the part is durable in the spool, then ``parts`` and ``next_offset`` are durable in the relationship, and only then it is
sent.  A part that a kill left in the spool without its record was never sent; it is deleted.

An interrupted copy continues from ``next_offset``, *with a new snapshot* if needed, while ``first_seq`` stays that of the
first one.  That is right: the log is replayed from the first snapshot on, over chunks of which some are newer.  Each chunk
is the disk's content at some position P of *its* snapshot, plus the replay of records up to any position Q >= P; and
replaying records that are contained already changes nothing in the end, because the last write to a byte wins.  The result
is right at every position from the *last* snapshot's on, which is why ``sync-end`` carries that one; no recovery point is
cut before the copy is complete.  If the generation changed, the log is not contiguous and none of this is true:
``ResyncNeeded``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from siterig.blockfs.contracts.control import SnapshotDisk, SnapshotInfo
from siterig.blockfs.core.errors import Code
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_stream import SyncStream
from siterig.cext.checksums import is_zero
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.outbox import spooled
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.retry import ResyncNeeded
from siterig.replication.engine.snapshots import SnapshotFile
from siterig.replication.engine.uploader import Uploader

PART_BYTES_MAX = 8 << 20
UNRECORDED_BYTES_MAX = 4 << 30
"""After so many bytes of the disk a part is finished although it is small, to record the progress."""
RECORDED_BYTES_MIN = 1 << 30
"""Progress without parts is recorded after so many bytes of the disk."""


class DiskCopy:
    """Copies one disk of a snapshot into the spool."""

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
        self._vm = snapshot.vm
        self._snapshot = snapshot
        self._uploader = uploader
        self._tracker = tracker
        self._stream: SyncStream | None = None

    @property
    def state(self) -> DiskSync:
        """The progress of this disk, as the relationship records it."""
        return next(item for item in self._context.book.get(self._vm).disks if item.disk_id == self.disk.disk_id)

    async def add(self, offset: int, length: int, *, zeros: bool) -> None:
        """Read and add a piece; ``zeros``: write zeros instead of skipping them."""
        part = await trio.to_thread.run_sync(self._read_into_stream, offset, length, zeros)
        if part is not None:
            await self._keep(part, offset + length)
        self._tracker.done(self.disk.name, offset + length)

    async def open_generation(self) -> None:
        """Write part 1, which has the disk's first bytes.

        Once it is applied, the recovery side is at this generation and applies no parts of older ones.
        """
        length = min(4096, self.disk.size_bytes)
        data = await trio.to_thread.run_sync(self.file.pread, 0, length)
        stream = self._new_stream(part_bytes_max=1)
        part = await trio.to_thread.run_sync(stream.add, 0, data, length)
        assert part is not None  # noqa: S101 (any record fills a part of one byte)
        await self._keep(part[0], 0)

    async def pass_equal(self, upto: int) -> None:
        """Record that everything below ``upto`` is in parts, or needs none because it is equal on both sides.

        What was added stays in an unfinished part until ``UNRECORDED_BYTES_MAX`` were passed: a copy that is interrupted
        reads and compares so much again at most.
        """
        if self._stream is not None and not self._stream.is_empty:
            if upto - self.state.next_offset < UNRECORDED_BYTES_MAX:
                return
            part, _ = await trio.to_thread.run_sync(self._stream.flush)
            await self._keep(part, upto)
        elif upto - self.state.next_offset >= RECORDED_BYTES_MIN:
            self._context.book.update_disk(self._vm, self.disk.disk_id, next_offset=upto)
            await self._context.host.release_snapshot(vm=self._vm, disk=self.disk.name, upto=upto)

    async def finish(self) -> None:
        """Write the last part, with the ``sync-end`` tag."""
        stream = self._stream or self._new_stream()
        self._stream = stream
        part, _ = await trio.to_thread.run_sync(stream.finish)
        await self._keep(part, self.disk.size_bytes, done=True)
        self._tracker.done(self.disk.name, self.disk.size_bytes)

    def close(self) -> None:
        """Close the file and delete an unfinished part."""
        self.file.close()
        if self._stream is not None:
            self._stream.abandon()

    def _new_stream(self, part_bytes_max: int | None = None) -> SyncStream:
        state = self.state
        folder = spool_folder(self._context.spool, self.disk.disk_id)
        for item in spooled(folder):
            if item.generation == state.generation and item.number > state.parts:
                item.path.unlink()
        return SyncStream(
            folder,
            disk_id=self.disk.disk_id,
            generation=state.generation,
            disk_size_bytes=self.disk.size_bytes,
            position=self._snapshot.position,
            time_ns=self._snapshot.time_ns,
            first_seq=state.first_seq,
            part_bytes_max=part_bytes_max or PART_BYTES_MAX,
            first_part=state.parts + 1,
        )

    def _read_into_stream(self, offset: int, length: int, zeros: bool) -> PartName | None:
        data: bytes | None = self.file.pread(offset, length)
        if data is not None and is_zero(data):
            if not zeros:
                return None
            data = None
        if self._stream is None:
            self._stream = self._new_stream()
        finished = self._stream.add(offset, data, length)
        return finished[0] if finished is not None else None

    async def _keep(self, part: PartName, next_offset: int, *, done: bool = False) -> None:
        self._context.book.update_disk(self._vm, self.disk.disk_id, parts=part.last, next_offset=next_offset, done=done)
        self._uploader.wake()
        await self._context.host.release_snapshot(vm=self._vm, disk=self.disk.name, upto=next_offset)
        await self._uploader.wait_for_room()


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


def spool_folder(spool: Path, disk_id: str) -> Path:
    """Return a disk's folder in the spool; a new one is created durably."""
    folder = spool / disk_id
    if not folder.exists():
        safe_files.make_folder(folder, parents=True)
        sync_folder(spool)
    return folder


def sync_states(context: AgentContext, vm: str) -> Callable[[], list[DiskSync]]:
    """Return a function that returns the present disks of the relationship."""
    return lambda: context.book.get(vm).disks


async def fresh_snapshot(context: AgentContext, vm: str) -> SnapshotInfo:
    """Begin a snapshot; one that a kill has left is removed first."""
    await context.host.end_snapshot(vm=vm)
    return await context.host.begin_snapshot(vm=vm)


async def check_vouched_for(context: AgentContext, vm: str) -> None:
    """Raise ``ResyncNeeded`` if a disk's log is not contiguous since the sync stream of its generation began."""
    generations = {disk.disk_id: disk.generation for disk in context.book.get(vm).disks}
    for info in await context.host.list_disks(vm=vm):
        if info.needs_resync is not None:
            raise ResyncNeeded(info.needs_resync)
        if generations.get(info.disk_id) != info.generation:
            raise ResyncNeeded(Code.GenerationChanged)
