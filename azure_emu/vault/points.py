"""Recovery points: how a tag becomes one, and what ``Latest`` and its like mean."""

from __future__ import annotations

from typing import Literal, cast

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from azure_emu.vault.api import RecoveryPoint
from azure_emu.vault.clock import rfc3339
from azure_emu.vault.schema import DiskRow, ItemRow, PointRow, TagSeenRow
from blockfs.errors import RigError
from blockfs.part import SYNC_END, TagSeen, Watermark

LATEST = "Latest"
LATEST_PROCESSED = "LatestProcessed"
LATEST_APPLICATION_CONSISTENT = "LatestApplicationConsistent"


def to_wire(row: PointRow) -> RecoveryPoint:
    """The point as the API shows it."""
    return RecoveryPoint(
        id=row.tag_id,
        name=row.name,
        recoveryPointType=cast("Literal['CrashConsistent', 'ApplicationConsistent']", row.kind),
        recoveryPointTime=rfc3339(row.time_ns),
        position=row.position,
        time_ns=row.time_ns,
    )


def available(session: Session, vm: str) -> list[PointRow]:
    """Points whose tag was applied in every disk of the VM, newest first."""
    return list(
        session.scalars(
            select(PointRow).where(PointRow.vm == vm, PointRow.available).order_by(PointRow.position.desc(), PointRow.tag_id)
        )
    )


def find_available(session: Session, tag_id: str) -> PointRow | None:
    """The point of a tag, once it is available."""
    row = session.get(PointRow, tag_id)
    return row if row is not None and row.available else None


def register_tags(session: Session, item: ItemRow, disk_id: str, tags: list[TagSeen]) -> list[PointRow]:
    """Note that these tags were applied in a disk; the points that became available by it.  Repeats change nothing."""
    fresh = []
    for tag in tags:
        if tag.name == SYNC_END or tag.position <= item.points_after_position:
            continue  # the end of one disk's sync, or a late repeat from before a commit: no state of this protection
        point = session.get(PointRow, tag.tag_id)
        if point is None:
            point = PointRow(
                tag_id=tag.tag_id, vm=item.vm, kind=tag.kind, name=tag.name, position=tag.position, time_ns=tag.time_ns,
                available=False,
            )  # fmt: skip
            session.add(point)
        if disk_id not in {seen.disk_id for seen in point.seen}:
            point.seen.append(TagSeenRow(tag_id=tag.tag_id, disk_id=disk_id))
        if not point.available and {seen.disk_id for seen in point.seen} >= {disk.disk_id for disk in item.disks}:
            point.available = True
            fresh.append(point)
    session.flush()
    return fresh


def delete_all(session: Session, vm: str) -> None:
    """Commit of a failover deletes every point of the VM, those on their way included."""
    of_vm = select(PointRow.tag_id).where(PointRow.vm == vm)
    session.execute(delete(TagSeenRow).where(TagSeenRow.tag_id.in_(of_vm)))
    session.execute(delete(PointRow).where(PointRow.vm == vm))


def resolve(session: Session, vm: str, choice: str) -> RecoveryPoint:
    """The available point that ``choice`` names; ``NoSuchPoint`` says which there are.

    For ``Latest`` this is only the newest *named* point: see :func:`latest_state` for what else it may be.
    """
    points = available(session, vm)
    if choice in (LATEST, LATEST_PROCESSED):
        candidates = points
    elif choice == LATEST_APPLICATION_CONSISTENT:
        candidates = [point for point in points if point.kind == "ApplicationConsistent"]
    else:
        candidates = [point for point in points if point.tag_id == choice]
    if not candidates:
        newest = f"the newest is {points[0].tag_id} ({points[0].kind})" if points else "it has none yet"
        raise RigError(
            "NoSuchPoint",
            f"VM {vm!r} has no recovery point {choice!r}; {newest}; allowed: {LATEST}, {LATEST_PROCESSED}, "
            f"{LATEST_APPLICATION_CONSISTENT}, or an id out of its {len(points)} points",
        )
    return to_wire(candidates[0])


def latest_state(item: ItemRow, watermarks: list[Watermark], newest: RecoveryPoint) -> RecoveryPoint:
    """``Latest`` after the cache was processed: the highest position up to which *all* disks are complete.

    While a resync is due or under way the disks' latest states do not belong together (their logs cannot be vouched
    for, or one disk has chunks of a newer time), so then it is the newest point.
    """
    by_disk = {mark.disk_id: mark for mark in watermarks}
    known = {disk.disk_id for disk in item.disks} <= set(by_disk)
    vouched = item.resync_reason is None and known and all(mark.sync_complete for mark in watermarks)
    if not vouched:
        return newest
    least = min(watermarks, key=lambda mark: mark.complete_position)
    if least.complete_position <= newest.position:
        return newest
    return RecoveryPoint(
        id=LATEST,
        name=LATEST,
        recoveryPointType="CrashConsistent",
        recoveryPointTime=rfc3339(least.complete_time_ns),
        position=least.complete_position,
        time_ns=least.complete_time_ns,
    )


def take_watermark(disk: DiskRow, mark: Watermark) -> bool:
    """Move a disk's stored watermark forward; False for a report that is older than what is known."""
    # The applier may repeat itself after a kill, with an older watermark than the one it had reported last.
    reported = (mark.generation, mark.sync_complete, mark.sync_parts, mark.log_seq)
    if reported < (disk.generation, disk.sync_complete, disk.sync_parts, disk.log_seq):
        return False
    disk.generation = mark.generation
    disk.sync_parts = mark.sync_parts
    disk.sync_complete = mark.sync_complete
    disk.log_seq = mark.log_seq
    disk.complete_position = mark.complete_position
    disk.complete_time_ns = mark.complete_time_ns
    return True


def stored_watermark(disk: DiskRow) -> Watermark:
    """What :meth:`Vault.watermarks` answers for a disk."""
    return Watermark(
        disk_id=disk.disk_id,
        generation=disk.generation,
        sync_parts=disk.sync_parts,
        sync_complete=disk.sync_complete,
        log_seq=disk.log_seq,
        complete_position=disk.complete_position,
        complete_time_ns=disk.complete_time_ns,
    )
