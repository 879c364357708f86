"""The parts of a VM's copies on their way from the snapshot to the cache account, several at a time.

Each part is compressed and written to the spool, then recorded in the relationship, then encrypted and put.  Threads do this
for several parts at the same time; only the records are made in the order of the parts.

Fault contract
--------------
The order of the steps is that of :mod:`siterig.replication.engine.disk_copy`: the part is complete in the spool, then its
bounds are durable in the relationship, and only then it is put.  One write of the relationship records all parts that are
ready.  A part whose put fails stays in the spool, and the next pass of the outbox puts it; so all errors of the account are
handled in one place.

Memory: a part reserves the bytes that it will need before it is read, from the budget of the host, and gives them back when
its put has ended.
"""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_part import DiskChunk, SyncOrigin, pack_sync_part
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.snapshots import CHUNK_BYTES
from siterig.replication.parts.byte_budget import COPIES, Reservation
from siterig.replication.parts.part_buffers import PartBuffers
from siterig.replication.parts.spool import spool_folder, write_part

PART_BYTES_MAX = 8 << 20
"""Bytes of the disk in a part, if they cannot be compressed."""
PART_GROWTH_MAX = 2
"""A part of compressible bytes has up to this times as many, because the account is slow with small blobs."""


@dataclass
class CopiedPart:
    """One part of a copy.

    Attributes:
        disk: the name of the disk.
        chunks: what was read; compressing removes the chunks.
        next_offset: the bytes of the disk below this offset are in this part and those before it.
        is_last: True if the part ends the stream.
        reservation: its memory.
        buffer: the memory with the bytes of the chunks; None if there are none.
        packed_share: called with the compressed size as a share of the bytes that were read.
    """

    origin: SyncOrigin
    number: int
    disk: str
    chunks: deque[DiskChunk]
    next_offset: int
    is_last: bool
    reservation: Reservation
    buffer: mmap.mmap | None
    packed_share: Callable[[float], None]
    ready: trio.Event = field(default_factory=trio.Event)
    recorded: trio.Event = field(default_factory=trio.Event)

    @property
    def name(self) -> PartName:
        """The name of the part."""
        return self.origin.part(self.number)


class PartPipeline:
    """The pipeline of one VM, for the time of one copy; its tasks run in the nursery of the copy.

    Attributes:
        buffers: memory for parts that are read.
    """

    def __init__(
        self, context: AgentContext, vm: str, outbox: Outbox, nursery: trio.Nursery, put_failed: Callable[[], None]
    ) -> None:
        """Make an empty pipeline; ``put_failed`` is called when the outbox must put a part."""
        self._context = context
        self._vm = vm
        self._outbox = outbox
        self._nursery = nursery
        self._put_failed = put_failed
        self.buffers = PartBuffers(PART_BYTES_MAX * PART_GROWTH_MAX + CHUNK_BYTES)
        self._queue: deque[CopiedPart] = deque()
        self._queued = trio.Event()
        self._in_work = 0
        self._idle = trio.Event()
        self._may_put = trio.Event()
        self._newest: dict[str, int] = {}

    async def run(self) -> None:
        """Record the parts in their order until cancelled."""
        while True:
            while not self._queue:
                self._queued = trio.Event()
                await self._queued.wait()
            await self._queue[0].ready.wait()
            await self._record([self._queue.popleft() for _ in range(self._count_ready())])

    def allow_puts(self) -> None:
        """Begin to put parts: the outbox has checked that the disks are not older than the data sent before."""
        self._may_put.set()

    def newest(self, disk_id: str, recorded: int) -> int:
        """Return the number of the newest part of a disk that is in work or, with ``recorded``, in the relationship."""
        return max(self._newest.get(disk_id, 0), recorded)

    async def reserve(self, length: int) -> Reservation:
        """Wait for the memory of a part of so many bytes."""
        return await self._context.memory.reserve(COPIES * length)

    def add(self, part: CopiedPart) -> None:
        """Begin the work on a part.  The caller adds the parts of a disk in their order."""
        self._newest[part.origin.disk_id] = part.number
        self._in_work += 1
        self._outbox.begin_copied(part.name)
        self._queue.append(part)
        self._queued.set()
        self._nursery.start_soon(self._work, part)

    async def wait_recorded(self) -> None:
        """Wait until every part that was added is recorded."""
        while self._queue:
            await self._queue[-1].recorded.wait()

    async def wait_idle(self) -> None:
        """Wait until every part is put, or left to the outbox."""
        while self._in_work:
            self._idle = trio.Event()
            await self._idle.wait()

    def _count_ready(self) -> int:
        count = 0
        while count < len(self._queue) and self._queue[count].ready.is_set():
            count += 1
        return count

    async def _record(self, parts: list[CopiedPart]) -> None:
        newest = {part.origin.disk_id: part for part in parts}
        for disk_id, part in newest.items():
            await self._context.book.record_progress(
                self._vm, disk_id, parts=part.number, next_offset=part.next_offset, done=part.is_last
            )
        for part in parts:
            part.recorded.set()
        for part in newest.values():
            await self._context.host.release_snapshot(vm=self._vm, disk=part.disk, upto=part.next_offset)

    async def _work(self, part: CopiedPart) -> None:
        try:
            packed = await trio.to_thread.run_sync(self._pack, part, limiter=self._context.packing)
            if part.buffer is not None:
                self.buffers.give_back(part.buffer)
            part.reservation.reduce(COPIES * len(packed))
            # Not in the turn of a part that is compressed: a processor would wait for the disk.
            await trio.to_thread.run_sync(self._spool, part, packed)
            part.ready.set()
            await part.recorded.wait()
            await self._may_put.wait()
            if not await self._outbox.put_copied(part.name, packed, part.disk):
                self._put_failed()
        finally:
            self._outbox.end_copied(part.name)
            part.reservation.release()
            self._in_work -= 1
            self._idle.set()

    def _pack(self, part: CopiedPart) -> bytes:
        """Compress the part, and return it."""
        read_bytes = sum(len(chunk.data or b"") for chunk in part.chunks)
        packed = pack_sync_part(part.origin, part.number, part.chunks, is_last=part.is_last)
        if read_bytes:
            part.packed_share(len(packed) / read_bytes)
        return packed

    def _spool(self, part: CopiedPart, packed: bytes) -> None:
        write_part(spool_folder(self._context.spool, part.origin.disk_id), part.name, packed)
