"""Resynchronization: both sides are compared by checksums, and only the chunks that differ are sent.

A new generation begins, so the parts of the old one become void.  Some of them may still be in transit while both sides are
compared, and be applied after their chunk was found equal: then it would differ again.  So each disk's stream opens with a
small part, and nothing is compared before the recovery side has applied it: from then on it accepts no parts of older
generations, and its disk changes only by the parts of this resync.

Fault contract
--------------
A resync continues where it was interrupted, in the same generation and with a new snapshot, as a copy does
(:mod:`siterig.replication.engine.disk_copy`).  ``next_offset`` is the border.  Below it, each chunk is in a recorded part,
or it was equal on both sides at the snapshot of that time.  In both cases the managed disk has its content at a position
between the first and the last snapshot of the generation, and the log is replayed from the first.  Above the border, chunks
are compared with the new snapshot; a part that was never recorded was never sent, so it does not matter.

If a log was abandoned because it was full, its dirty bitmap has all chunks that the recovery side can lack, and with the
consent of the vault only these are compared (``DiskSync.scope``).

``Relationship.resync_begun`` is recorded together with the disks of the new generation.  If the log breaks meanwhile, if a
disk gets another size or generation, if another copy of the managed disk takes its place, or after any order that ends the
resync, the next one begins with a new generation.  docs/internals/decisions/0035-resync-continues.md has the kill of each
role.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import structlog

from siterig.blockfs.contracts.control import SnapshotInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.replication.comparison.comparison import ComparedDisk, Comparison, DiskRanges, bounded_ranges, compare
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.disk_copy import DiskCopy, check_vouched_for, log_watched, open_copy
from siterig.replication.engine.disk_groups import DiskGroup
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.retry import unwrap_group
from siterig.replication.engine.uploader import Uploader, uploading

SCOPE_RANGES_MAX = 10_000
"""Limit of the ranges of one disk that are recorded; more of them are joined over gaps."""

_log = structlog.get_logger(__name__)


async def resynchronize(context: AgentContext, group: DiskGroup, outbox: Outbox, tracker: ProgressTracker) -> None:
    """Resynchronize the disks of a group; return when every part is in the cache account and the snapshot is removed.

    After any failure the call can be repeated.

    Raises:
        ResyncNeeded: the log broke meanwhile.
    """
    vm = group.vm
    await group.end_snapshot()
    continued = await _can_continue(group)
    ended = {} if continued else await _begin_generation(context, group)
    async with log_watched(group):
        snapshot = await group.begin_snapshot()
    await _check_newest(context, vm, snapshot, continued=continued)
    disks = group.states
    if not continued:
        scopes = await _scopes(context, group, ended)
        disks = [DiskSync.begun(disk).model_copy(update={"scope": scopes.get(disk.disk_id)}) for disk in snapshot.disks]
    group.record(disks, resync_begun=True)
    tracker.begin("Resynchronization", [(disk.name, disk.next_offset, disk.size_bytes) for disk in disks])
    _log.info(
        "resync_begun",
        vm=vm,
        position=snapshot.position,
        generations=[disk.generation for disk in disks],
        offsets=[disk.next_offset for disk in disks],
        scopes=[None if disk.scope is None else sum(length for _, length in disk.scope) for disk in disks],
    )
    async with uploading(context, outbox, group) as uploader, AsyncExitStack() as open_disks:
        copies = [
            await open_disks.enter_async_context(open_copy(context, snapshot, disk, uploader, tracker))
            for disk in snapshot.disks
        ]
        for copy in copies:
            if not copy.state.parts:
                await copy.open_generation()
        tracker.detail = "waiting for the recovery side to apply the new generation"
        await _wait_for_generation(uploader, outbox, copies)
        tracker.detail = "comparing checksums"
        async with compare(context.vault) as comparison:
            for copy in copies:
                if not copy.state.done:
                    await _send_differences(comparison, copy, tracker)
                    await copy.finish()
        tracker.detail = "waiting for the last parts to reach the cache account"
    await check_vouched_for(group)
    await group.end_snapshot()


async def _can_continue(group: DiskGroup) -> bool:
    """Return whether the generation of an interrupted resync is still that of all disks, with an unbroken log."""
    if not group.resync_begun:
        return False
    known = {disk.disk_id: (disk.generation, disk.size_bytes) for disk in group.states}
    infos = await group.infos()
    return {info.disk_id: (info.generation, info.size_bytes) for info in infos} == known and all(
        info.tracked and info.needs_resync is None for info in infos
    )


async def _begin_generation(context: AgentContext, group: DiskGroup) -> dict[str, int]:
    """Begin a generation later than all applied or sent parts: the disks may have been restored from an older copy.

    Returns:
        By disk id, the generation of which the recovery side had a complete copy.
    """
    ids = {info.disk_id for info in await group.infos()}
    marks = [mark for mark in await context.vault.watermarks(vm=group.vm) if mark.disk_id in ids]
    taken = {mark.disk_id: mark.generation for mark in marks}
    for mark in marks:
        sent = [part.generation for part in (await context.cache.list(mark.disk_id)).parts]
        taken[mark.disk_id] = max([mark.generation, *sent])
    position = max((mark.complete_position for mark in marks), default=0)
    await group.start_tracking(new_generation=True, after=taken, after_position=position)
    return {mark.disk_id: mark.generation for mark in marks if mark.sync_complete}


async def _scopes(context: AgentContext, group: DiskGroup, ended: dict[str, int]) -> dict[str, DiskRanges]:
    """Return what can differ, by disk id; a disk that is left out is compared as a whole.

    The recovery side must have had a complete copy of the generation whose log was abandoned.  Segments of that log were
    deleted only after it had applied them, and the bitmap has the chunks of all others.
    """
    if not group.resync_limited:
        return {}
    lacking = await context.host.lacking_changes(vm=group.vm)
    return {
        each.disk_id: bounded_ranges(each.ranges, SCOPE_RANGES_MAX)
        for each in lacking
        if ended.get(each.disk_id) == each.generation
    }


async def _check_newest(context: AgentContext, vm: str, snapshot: SnapshotInfo, *, continued: bool) -> None:
    marks = {mark.disk_id: mark for mark in await context.vault.watermarks(vm=vm)}
    for disk in snapshot.disks:
        mark = marks.get(disk.disk_id)
        if mark is not None and mark.generation >= disk.generation + continued:
            raise RigError(
                Code.GenerationBehind,
                f"disk {disk.name!r} of VM {vm!r} is at generation {disk.generation}; the recovery side already has "
                f"{mark.generation}: remove the replication of the VM and protect it again",
            )


async def _wait_for_generation(uploader: Uploader, outbox: Outbox, copies: list[DiskCopy]) -> None:
    def all_at_generation() -> bool:
        marks = [(outbox.watermark(copy.disk.disk_id), copy.disk.generation) for copy in copies]
        return all(mark is not None and mark.generation == generation and mark.sync_parts for mark, generation in marks)

    await uploader.wait_until(all_at_generation, "the new generation is not applied yet")


async def _send_differences(comparison: Comparison, copy: DiskCopy, tracker: ProgressTracker) -> None:
    disk, begun = copy.disk, copy.state.next_offset
    scope = [
        (max(offset, begun), offset + length - max(offset, begun))
        for offset, length in ([(0, disk.size_bytes)] if copy.state.scope is None else copy.state.scope)
        if offset + length > begun
    ]
    compared = ComparedDisk.of(disk, copy.file.tags, scope=scope)
    with unwrap_group():
        async with comparison.windows(compared) as windows:
            async for window in windows:
                for offset, length in window.pieces():
                    await copy.add(offset, length, zeros=True)
                await copy.pass_equal(window.end)
                tracker.done(disk.name, window.end)
