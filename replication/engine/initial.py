"""Initial replication: a snapshot over all disks is copied disk by disk, while the logs continue and are sent as well."""

from __future__ import annotations

import structlog

from siterig.blockfs.contracts.control import DiskInfo, SnapshotInfo
from siterig.blockfs.core.errors import Code
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.disk_copy import check_vouched_for, log_watched, open_copy
from siterig.replication.engine.disk_groups import DiskGroup
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.retry import ResyncNeeded
from siterig.replication.engine.snapshots import pieces
from siterig.replication.engine.uploader import uploading

_log = structlog.get_logger(__name__)


async def replicate_initially(context: AgentContext, group: DiskGroup, outbox: Outbox, tracker: ProgressTracker) -> None:
    """Replicate the disks of a group; return when every part is in the cache account and the snapshot is removed.

    Zeros are not sent, because the managed disk is empty.  After any failure the call can be repeated.

    Raises:
        ResyncNeeded: it is not certain that the managed disks are empty.
    """
    vm = group.vm
    infos = await group.start_tracking()
    for info in infos:
        if info.needs_resync is not None:
            raise ResyncNeeded(info.needs_resync)
    if not group.states:
        await _check_untouched(context, vm, infos)
    async with log_watched(group):
        snapshot = await group.begin_snapshot()
    disks = _resumed(group.states, snapshot)
    group.record(disks)
    tracker.begin("InitialReplication", [(disk.name, disk.next_offset, disk.size_bytes) for disk in disks])
    _log.info("initial_replication_started", vm=vm, position=snapshot.position, disks=[disk.name for disk in disks])
    done = {disk.disk_id for disk in disks if disk.done}
    async with uploading(context, outbox, group) as uploader:
        for disk in snapshot.disks:
            if disk.disk_id in done:
                continue
            async with open_copy(context, snapshot, disk, uploader, tracker) as copy:
                await copy.add_all(pieces(disk.data_ranges, copy.state.next_offset))
                await copy.finish()
        tracker.detail = "waiting for the last parts to reach the cache account"
    await check_vouched_for(group)
    await group.end_snapshot()


async def _check_untouched(context: AgentContext, vm: str, infos: list[DiskInfo]) -> None:
    """Raise ``ResyncNeeded`` if a managed disk may not be empty, or parts are in transit: skipping zeros would be wrong."""
    marks = {mark.disk_id: mark for mark in await context.vault.watermarks(vm=vm)}
    for info in infos:
        mark = marks.get(info.disk_id)
        if (mark is not None and (mark.sync_parts or mark.log_seq)) or (await context.cache.list(info.disk_id)).parts:
            raise ResyncNeeded(Code.DiskReplicatedBefore)


def _resumed(states: list[DiskSync], snapshot: SnapshotInfo) -> list[DiskSync]:
    known = {disk.disk_id: disk for disk in states}
    if not known:
        return [DiskSync.begun(disk) for disk in snapshot.disks]
    for disk in snapshot.disks:
        before = known.get(disk.disk_id)
        if before is None or (before.generation, before.size_bytes) != (disk.generation, disk.size_bytes):
            raise ResyncNeeded(Code.GenerationChanged)
    return [known[disk.disk_id] for disk in snapshot.disks]
