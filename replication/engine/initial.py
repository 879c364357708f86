"""Initial replication: a snapshot over all disks, copied disk by disk, while the logs go on and are sent as well."""

from __future__ import annotations

import structlog

from siterig.blockfs.contracts.control import DiskInfo, SnapshotInfo
from siterig.blockfs.core.errors import Code
from siterig.replication.engine.board import Board
from siterig.replication.engine.copying import check_vouched_for, copying, fresh_snapshot, sync_states
from siterig.replication.engine.links import Links
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.pump import pumping
from siterig.replication.engine.relationship import DiskSync, Relationship
from siterig.replication.engine.retry import ResyncNeeded
from siterig.replication.engine.snapshots import pieces

_log = structlog.get_logger(__name__)


async def replicate_initially(links: Links, vm: str, outbox: Outbox, board: Board) -> None:
    """Returns when every part is in the cache account and the snapshot is gone; repeat it after any failure.

    What is zero is not sent, for the managed disk is empty.  ``ResyncNeeded`` where that cannot be relied on.
    """
    infos = await links.host.start_tracking(vm=vm)
    for info in infos:
        if info.needs_resync is not None:
            raise ResyncNeeded(info.needs_resync)
    if not links.book.get(vm).disks:
        await _check_untouched(links, vm, infos)
    snapshot = await fresh_snapshot(links, vm)
    disks = _resumed(links.book.get(vm), snapshot)
    links.book.update(vm, disks=disks)
    board.begin("InitialReplication", [(disk.name, disk.next_offset, disk.size_bytes) for disk in disks])
    _log.info("initial replication", vm=vm, position=snapshot.position, disks=[disk.name for disk in disks])
    done = {disk.disk_id for disk in disks if disk.done}
    async with pumping(outbox, sync_states(links, vm), links.waits, vm) as pump:
        for disk in snapshot.disks:
            if disk.disk_id in done:
                continue
            async with copying(links, snapshot, disk, pump, board) as copy:
                for offset, length in pieces(disk.data_ranges, copy.state.next_offset):
                    await copy.add(offset, length, zeros=False)
                await copy.finish()
        board.detail = "waiting for the last parts to reach the cache account"
    await check_vouched_for(links, vm)
    await links.host.end_snapshot(vm=vm)


async def _check_untouched(links: Links, vm: str, infos: list[DiskInfo]) -> None:
    """The managed disks must be empty and no part of ours on the way, or skipping zeros would be wrong."""
    marks = {mark.disk_id: mark for mark in await links.vault.watermarks(vm=vm)}
    for info in infos:
        mark = marks.get(info.disk_id)
        if (mark is not None and (mark.sync_parts or mark.log_seq)) or (await links.cache.list(info.disk_id)).parts:
            raise ResyncNeeded(Code.DiskReplicatedBefore)


def _resumed(relationship: Relationship, snapshot: SnapshotInfo) -> list[DiskSync]:
    known = {disk.disk_id: disk for disk in relationship.disks}
    if not known:
        return [DiskSync.begun(disk) for disk in snapshot.disks]
    for disk in snapshot.disks:
        before = known.get(disk.disk_id)
        if before is None or (before.generation, before.size_bytes) != (disk.generation, disk.size_bytes):
            raise ResyncNeeded(Code.GenerationChanged)
    return [known[disk.disk_id] for disk in snapshot.disks]
