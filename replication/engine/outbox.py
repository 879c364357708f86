"""The parts of a group of disks of a VM that must reach the recovery side: closed log segments and spooled sync parts.

Fault contract
--------------
This process may end at any instruction, an upload may be interrupted, and the cache account may lose a blob that it had
confirmed.  Every part stays recoverable: its source (a segment on the disk host, a file in the spool) is deleted only when
the recovery side reports that it has *durably applied* the part, or that it is at a newer generation, which replaces the
part.  Uploads are not remembered: each pass computes the parts to send from three lists (parts at hand, parts in the cache
account, watermarks).  So a part that the cache account lost is sent again, and after a kill nothing has to be restored.

The pipeline of a copy puts its new parts itself (:meth:`Outbox.put_copied`), while passes run.  A pass leaves out the parts
that the pipeline has, or has put since the pass listed the account; if the account loses one, the next pass finds that.

Memory: several parts are in work at the same time, within the memory budget of the host, or within a small one of the VM for
small parts; a longer backlog needs no more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from siterig.blockfs.contracts.control import AppliedLog, DiskInfo, SegmentInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName, Watermark
from siterig.replication.engine import openings
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.disk_groups import DiskGroup
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.retry import ResyncNeeded, unwrap_group
from siterig.replication.parts.byte_budget import COPIES, ByteBudget
from siterig.replication.parts.joint_puts import SEGMENT_BYTES_MAX
from siterig.replication.parts.spool import is_sound, memory_bytes, read_packed, spooled

OWN_BYTES = 2 << 20
"""Memory of each VM for parts that need no more: they do not wait until the large parts of other VMs are put."""

JOINT_PARTS_MAX = 256
"""Limit of the small parts that a VM puts together at a time, which bounds their memory to 1 MiB."""

_log = structlog.get_logger(__name__)


class Outbox:
    """Sends the parts of a group of disks, in one pass at a time; it keeps the watermarks of the last pass."""

    def __init__(self, context: AgentContext, group: DiskGroup, tracker: ProgressTracker) -> None:
        self._context = context
        self._group = group
        self._vm = group.vm
        self._tracker = tracker
        self._passing = trio.Lock()
        self._marks: dict[str, Watermark] = {}
        self._refreshes = 0
        """Counts the times at which ``_marks`` was replaced."""
        self._put: dict[PartName, int] = {}
        """Bytes of each part that was uploaded and whose source is still kept."""
        self.waiting_bytes: dict[str, int] = {}
        """Bytes in the account that were not applied at the last pass, by disk id."""
        self._lost: dict[PartName, str] = {}
        """Parts that are needed and exist nowhere, with the reason for a resync."""
        self.is_idle = False
        """True if all parts that the last pass put were small."""
        self._uploads = trio.CapacityLimiter(context.uploads_per_vm)
        self._own_memory = ByteBudget(OWN_BYTES)
        self._copied: set[PartName] = set()
        """Parts that are left to the pipeline of a copy."""
        self._put_since_list: set[PartName] = set()
        """Parts that it has put since the last pass began to list the account."""

    def watermark(self, disk_id: str) -> Watermark | None:
        """Return the watermark of a disk, as of the last pass."""
        return self._marks.get(disk_id)

    def applied_parts(self, disk: DiskSync) -> int:
        """Return the number of sync parts of the disk's generation that are applied."""
        mark = self._marks.get(disk.disk_id)
        if mark is None or mark.generation < disk.generation:
            return 0
        return mark.sync_parts if mark.generation == disk.generation else disk.parts

    def begin_copied(self, part: PartName) -> None:
        """Leave a new part of a copy to the pipeline, from before it is recorded until :meth:`end_copied`."""
        self._copied.add(part)

    def end_copied(self, part: PartName) -> None:
        """Put the part in the next pass, if it is neither applied nor in the account then."""
        self._copied.discard(part)

    async def put_copied(self, part: PartName, packed: bytes, disk: str) -> bool:
        """Put a part that is left to the pipeline; return False if the next pass must do it.

        The caller has reserved memory for it.
        """
        try:
            await self._put_packed(part, packed, disk)
        except RigError as exc:
            _log.warning("put_left_to_next_pass", vm=self._vm, part=part.blob(), code=exc.code, message=exc.message)
            return False
        self._put_since_list.add(part)
        return True

    async def look(self, *, patience_s: float) -> bool | None:
        """Wait until a watermark moves, and delete the sync parts that are applied from the spool.

        Args:
            patience_s: the limit of the wait.
        Returns:
            True if a watermark has moved; None if the vault does not answer.
        """
        known, refreshes = list(self._marks.values()), self._refreshes
        marks = await self._ask(known, patience_s)  # passes run meanwhile
        if marks is None:
            return None
        async with self._passing:
            if refreshes != self._refreshes:
                return True  # a pass has newer ones
            self._take(marks)
            self._clear_spool(self._group.states)
        return marks != known

    async def send(self, *, when_checked: Callable[[], None] = lambda: None) -> None:
        """Make one pass; on return every part that existed at its start is in the cache account, or applied.

        Args:
            when_checked: called when the disks are known not to be older than the data sent before.
        Raises:
            ResyncNeeded: a part that the recovery side still needs exists nowhere.
        """
        async with self._passing:
            disks = self._group.states  # only now: the pass before may have recorded an opening, and sent parts of it
            # The order matters: the applier reports a part before it deletes the blob.  As the blobs are listed first, a
            # part that is in neither list is really missing.
            listed: dict[PartName, int] = {}
            self._put_since_list.clear()
            for listing in (await self._context.cache.list_all([disk.disk_id for disk in disks])).values():
                listed.update(listing.sizes)
            fresh = await self._refresh()
            state = await self._group.log_state(applied=self._applied_logs(disks))
            await self._check_openings(disks, state.disks, listed, fresh=fresh)
            when_checked()
            segments = await self._delete_applied(disks, state.segments)
            missing: list[tuple[PartName, Path, str]] = []
            for disk in disks:
                own = [segment for segment in segments if segment.disk_id == disk.disk_id]
                missing += self._missing(disk, own, set(listed), fresh=fresh)
            await self._put_all(missing)
            if fresh:
                for disk in disks:
                    self._check_lost(disk)
            in_account = listed | {part: self._put[part] for part, _, _ in missing if part in self._put}
            self.waiting_bytes = {
                disk.disk_id: sum(
                    size for part, size in in_account.items() if part.disk_id == disk.disk_id and self._is_needed(disk, part)
                )
                for disk in disks
            }

    def _applied_logs(self, disks: Sequence[DiskSync]) -> list[AppliedLog]:
        """Return the parts of the logs that are not needed any more, of openings that are known."""
        found = []
        for disk in disks:
            mark = self._marks.get(disk.disk_id)
            last_seq = mark.log_seq if mark is not None and mark.generation == disk.generation else 0
            if disk.opening and last_seq:
                opening, generation = disk.opening, disk.generation
                found.append(AppliedLog(disk_id=disk.disk_id, opening=opening, generation=generation, last_seq=last_seq))
        return found

    async def _check_openings(
        self, disks: Sequence[DiskSync], infos: Sequence[DiskInfo], listed: Collection[PartName], *, fresh: bool
    ) -> None:
        """Check, before anything of a newly opened disk is sent, that the disk is not older than the data sent before."""
        opened = openings.find_unknown(disks, infos)
        if not opened:
            return
        if not fresh:
            self._take(await self._context.vault.watermarks(vm=self._vm))
        openings.check(self._context, self._vm, opened, self._marks, listed)

    async def _refresh(self) -> bool:
        marks = await self._ask(None, 0.0)
        if marks is None:
            return False
        self._take(marks)
        return True

    async def _ask(self, known: list[Watermark] | None, patience_s: float) -> list[Watermark] | None:
        try:
            marks = await self._context.vault.watermarks(vm=self._vm, known=known, patience_s=patience_s)
        except RigError as exc:
            if not exc.recoverable:
                raise
            # Data do not wait for the vault: without new watermarks no source is deleted, and that is all.
            self._context.waits.set("watermarks", exc.code, exc.message, vm=self._vm)
            _log.warning("watermarks_unavailable", vm=self._vm, code=exc.code, message=exc.message)
            return None
        self._context.waits.clear("watermarks", vm=self._vm)
        return marks

    def _take(self, marks: list[Watermark]) -> None:
        self._marks = {mark.disk_id: mark for mark in marks}
        self._refreshes += 1

    async def replace(self, parts: Sequence[PartName]) -> None:
        """Upload parts again, over blobs that the recovery side cannot use.

        If a needed part is not at hand, or is corrupt here as well, it is lost: the next pass raises ``ResyncNeeded``.  A
        part that none of the disks has sent belongs to something else, and is ignored.
        """
        async with self._passing:
            disks = self._group.states
            if not await self._refresh():
                return  # the recovery side asks again, and the vault may answer then
            infos = await self._group.sending()
            if openings.find_unknown(disks, infos):
                return  # the recovery side asks again, and the next pass has checked these openings then
            segments = await self._group.segments()
            last_seqs = {info.disk_id: info.last_seq for info in infos}
            by_id = {disk.disk_id: disk for disk in disks}
            sources: list[tuple[PartName, Path, str]] = []
            for part in parts:
                disk = by_id.get(part.disk_id)
                if disk is None or part.generation != disk.generation or not self._is_needed(disk, part):
                    continue
                source = self._source(part, segments)
                if source is None and self._was_sent(disk, part, segments, last_seqs.get(part.disk_id, 0)):
                    self._lost[part] = Code.SyncPartLost if part.stream == "sync" else Code.LogGap
                elif source is not None and not await trio.to_thread.run_sync(is_sound, part, source):
                    self._lost[part] = Code.SyncPartLost if part.stream == "sync" else Code.LogCorrupt
                elif source is not None:
                    sources.append((part, source, disk.name))
            _log.warning("parts_sent_again", vm=self._vm, parts=len(sources), lost=len(self._lost))
            await self._put_all(sources, replace=True)

    def _source(self, part: PartName, segments: list[SegmentInfo]) -> Path | None:
        if part.stream == "sync":
            spool = spooled(self._context.spool / part.disk_id)
            return next(
                (item.path for item in spool if (item.generation, item.number) == (part.generation, part.first)), None
            )
        for segment in segments:
            named = PartName(segment.disk_id, segment.generation, "log", segment.first_seq, segment.last_seq)
            if named == part:
                return Path(segment.path)
        return None

    def _is_needed(self, disk: DiskSync, part: PartName) -> bool:
        """Return True while no part of the disk's generation has been applied by the recovery side."""
        mark = self._marks.get(disk.disk_id)
        if mark is None or mark.generation < part.generation:
            return True
        if mark.generation > part.generation:
            return False
        return part.first > mark.sync_parts if part.stream == "sync" else part.last > mark.log_seq

    @staticmethod
    def _was_sent(disk: DiskSync, part: PartName, segments: list[SegmentInfo], last_seq: int) -> bool:
        """Return True if a missing part may have existed: no other part of the disk has its numbers."""
        if part.stream == "sync":
            return part.first <= disk.parts
        mine = [item for item in segments if (item.disk_id, item.generation) == (part.disk_id, part.generation)]
        overlaps = any(item.first_seq <= part.last and part.first <= item.last_seq for item in mine)
        return disk.first_seq <= part.last <= last_seq and not overlaps

    async def _delete_applied(self, disks: Sequence[DiskSync], segments: list[SegmentInfo]) -> list[SegmentInfo]:
        """Delete the sources of parts that are applied; return the remaining segments.

        :meth:`_applied_logs` leaves to this only the segments of new openings, and of generations that ended.
        """
        upto: dict[tuple[str, int], int] = {}
        kept = []
        by_id = {disk.disk_id: disk for disk in disks}
        for segment in segments:
            disk = by_id.get(segment.disk_id)
            if disk is not None and self._segment_is_applied(disk, segment):
                upto[segment.disk_id, segment.generation] = segment.last_seq
            else:
                kept.append(segment)
        for (disk_id, generation), last_seq in upto.items():
            await self._context.host.trim_log(disk_id=disk_id, generation=generation, last_seq=last_seq)
        self._clear_spool(disks)
        return kept

    def _clear_spool(self, disks: Sequence[DiskSync]) -> None:
        for disk in disks:
            mark = self._marks.get(disk.disk_id)
            if mark is None:
                continue
            for item in spooled(self._context.spool / disk.disk_id):
                if (item.generation, item.number) <= (mark.generation, mark.sync_parts):
                    item.path.unlink()

    def _segment_is_applied(self, disk: DiskSync, segment: SegmentInfo) -> bool:
        if segment.generation == disk.generation and segment.last_seq < disk.first_seq:
            return True  # its records are in the snapshot of the copy
        mark = self._marks.get(disk.disk_id)
        return mark is not None and (segment.generation, segment.last_seq) <= (mark.generation, mark.log_seq)

    def _missing(
        self, disk: DiskSync, segments: list[SegmentInfo], listed: set[PartName], *, fresh: bool
    ) -> list[tuple[PartName, Path, str]]:
        """Return the parts of one disk that are neither applied nor in the cache account, sync parts first."""
        mark = self._marks.get(disk.disk_id)
        current = mark if mark is not None and mark.generation == disk.generation else None
        sync = {
            item.number: item.path
            for item in spooled(self._context.spool / disk.disk_id)
            if item.generation == disk.generation and item.number <= disk.parts
        }
        log = sorted(
            (segment for segment in segments if segment.generation == disk.generation), key=lambda item: item.first_seq
        )
        if fresh and (mark is None or mark.generation <= disk.generation):
            self._check_unbroken(disk, current, sync, log, listed)
        parts = [
            (PartName(disk.disk_id, disk.generation, "sync", number, number), path, disk.name)
            for number, path in sorted(sync.items())
        ]
        parts += [
            (PartName(disk.disk_id, disk.generation, "log", item.first_seq, item.last_seq), Path(item.path), disk.name)
            for item in log
        ]
        at_hand = {part for part, _, _ in parts}
        copied = self._copied | self._put_since_list
        self._put = {
            part: size
            for part, size in self._put.items()
            if part in at_hand or part in copied or part.disk_id != disk.disk_id
        }
        # Without fresh watermarks, a part that was uploaded and is not listed may be applied already.
        here = listed | copied
        return [item for item in parts if item[0] not in here and (fresh or item[0] not in self._put)]

    def _check_unbroken(
        self,
        disk: DiskSync,
        current: Watermark | None,
        sync: dict[int, Path],
        log: list[SegmentInfo],
        listed: set[PartName],
    ) -> None:
        """Raise ``ResyncNeeded`` if the part that is needed next is neither at hand nor in the cache account."""
        self._check_lost(disk)
        own = [part for part in listed if part.disk_id == disk.disk_id and part.generation == disk.generation]
        in_cache = {part.first for part in own if part.stream == "sync"}
        applied_parts = current.sync_parts if current is not None else 0
        for number in range(applied_parts + 1, disk.parts + 1):
            if number not in sync and number not in in_cache:
                _log.error("sync_part_missing", vm=self._vm, disk=disk.name, generation=disk.generation, part=number)
                raise ResyncNeeded(Code.SyncPartLost)
        needed = max(disk.first_seq, current.log_seq + 1 if current is not None else 0)
        covering = [part.first for part in own if part.stream == "log" and part.last >= needed]
        if log and min([log[0].first_seq, *covering]) > needed:
            _log.error("log_not_contiguous", vm=self._vm, disk=disk.name, generation=disk.generation, needed_seq=needed)
            raise ResyncNeeded(Code.LogGap)

    def _check_lost(self, disk: DiskSync) -> None:
        """Raise ``ResyncNeeded`` if a part that is needed is known to exist nowhere."""
        self._lost = {
            part: why
            for part, why in self._lost.items()
            if part.disk_id != disk.disk_id or part.generation == disk.generation
        }
        for part, why in self._lost.items():
            if (part.disk_id, part.generation) == (disk.disk_id, disk.generation) and self._is_needed(disk, part):
                _log.error("part_lost", vm=self._vm, disk=disk.name, part=part.blob(), reason=why)
                raise ResyncNeeded(why)

    async def _put_all(self, parts: list[tuple[PartName, Path, str]], *, replace: bool = False) -> None:
        """Upload all parts; if the account refuses one, upload the others first and then raise that error."""
        queue = deque(parts if replace else await self._put_small(parts))
        refused: list[RigError] = []

        async def put(part: PartName, source: Path, disk: str) -> None:
            needed = memory_bytes(source)
            memory = self._own_memory if needed <= OWN_BYTES else self._context.memory
            reservation = await memory.reserve(needed)
            try:
                packed = await trio.to_thread.run_sync(self._load, part, source, limiter=self._context.packing)
                if packed is None:
                    self._lost[part] = Code.SyncPartLost  # the next pass with new watermarks decides whether it is needed
                    return
                reservation.reduce(COPIES * len(packed))
                await self._put_packed(part, packed, disk, replace=replace)
            finally:
                reservation.release()

        async def worker() -> None:
            while queue:
                try:
                    await put(*queue.popleft())
                except RigError as exc:
                    if exc.recoverable or exc.code in (Code.CacheAuthentication, Code.KeyRevoked):  # not of this part alone
                        raise
                    refused.append(exc)

        with unwrap_group():
            async with trio.open_nursery() as nursery:
                # One more than can be in flight: it compresses the next part.
                for _ in range(min(len(parts), self._context.uploads_per_vm + 1)):
                    nursery.start_soon(worker)
        if refused:
            raise refused[0]

    async def _put_small(self, parts: list[tuple[PartName, Path, str]]) -> list[tuple[PartName, Path, str]]:
        """Put the small parts of the log together; return the parts that are left."""
        small: list[tuple[PartName, Path, str]] = []
        left: list[tuple[PartName, Path, str]] = []
        for item in parts:
            part, source, _ = item
            is_small = part.stream == "log" and source.stat().st_size <= SEGMENT_BYTES_MAX
            (small if is_small else left).append(item)
        self.is_idle = not left
        for at in range(0, len(small), JOINT_PARTS_MAX):
            some = small[at : at + JOINT_PARTS_MAX]
            if not await self._put_together(some):
                left = some + left
        return left

    async def _put_together(self, parts: list[tuple[PartName, Path, str]]) -> bool:
        """Put small parts together, and with those of other VMs; return False if each must be put by itself."""
        if not self._context.joint_puts.can_join(self._vm, len(parts)):
            return False
        packed = {}
        for part, source, _ in parts:
            packed[part] = await trio.to_thread.run_sync(read_packed, source, limiter=self._context.packing)
        await self._context.bandwidth.take(sum(map(len, packed.values())), self._vm)
        if not await self._context.joint_puts.put(self._vm, packed):
            return False
        for part, _, disk in parts:
            self._tracker.sent(disk, len(packed[part]))
            self._put[part] = len(packed[part])
            self._context.put_news.note(part.disk_id)
        return True

    def _load(self, part: PartName, source: Path) -> bytes | None:
        """Return a compressed part; None if its file in the spool is not sound, as a power loss can leave it."""
        if part.stream == "sync" and not is_sound(part, source):
            return None
        return read_packed(source)

    async def _put_packed(self, part: PartName, packed: bytes, disk: str, *, replace: bool = False) -> None:
        """Put one part, within the limits of the VM and of the host."""
        if await self._context.cache.put_in_turn(part, packed, self._turn(len(packed)), replace=replace):
            self._tracker.sent(disk, len(packed))
        self._put[part] = len(packed)
        self._context.put_news.note(part.disk_id)

    @asynccontextmanager
    async def _turn(self, length: int) -> AsyncIterator[None]:
        """Wait for a place among the uploads of the VM and of the host, and hold it during the block."""
        async with self._uploads:
            # Before the place among the uploads of the host, which other VMs need meanwhile.
            await self._context.bandwidth.take(length, self._vm)
            async with self._context.uploads:
                yield
