"""Recovery points: how a tag becomes a point, and which point a selector such as ``Latest`` selects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import structlog
from sqlalchemy import Select, bindparam, delete, func, select, union_all, update
from sqlalchemy.orm import Session, selectinload

from siterig.azure_emu.vault.context import disk_sets, events, rig_clock
from siterig.azure_emu.vault.db.schema import AzureVmRow, DiskRow, ItemRow, MountRow, PointRow, TagSeenRow
from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.azure_emu.vault.points.retention import PointFacts
from siterig.azure_emu.vault.points.selectors import LATEST, LATEST_APPLICATION_CONSISTENT, LATEST_PROCESSED, WORDS, parse
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core import short_ids
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import SYNC_END, Watermark

OF_A_STATE = ", @POSITION, or a time"
"""The end of the list of selectors: these two select a state, which need not be a recovery point."""
_IDS_IN_QUERY = 500
_BY_IDS = select(PointRow).where(PointRow.tag_id.in_(bindparam("ids", expanding=True))).options(selectinload(PointRow.seen))
_log = structlog.get_logger(__name__)

_COLUMNS = (
    PointRow.tag_id,
    PointRow.kind,
    PointRow.name,
    PointRow.position,
    PointRow.time_ns,
    PointRow.downgraded_because,
    PointRow.pinned,
    PointRow.lacking_disks,
)
_Facts = tuple[str, str, str, int, int, str | None, bool, list[str] | None]
"""The values of :data:`_COLUMNS`."""


def _wire(facts: _Facts) -> RecoveryPoint:
    tag_id, kind, name, position, time_ns, downgraded_because, pinned, lacking_disks = facts
    return RecoveryPoint(
        id=tag_id,
        name=name,
        type=cast("Literal['CrashConsistent', 'ApplicationConsistent']", kind),
        time=rfc3339(time_ns),
        position=position,
        time_ns=time_ns,
        downgraded_because=downgraded_because,
        pinned=pinned,
        lacking_disks=tuple(lacking_disks or ()),
    )


def to_wire(row: PointRow) -> RecoveryPoint:
    """Return the point in the form of the API."""
    facts = (row.tag_id, row.kind, row.name, row.position, row.time_ns, row.downgraded_because, row.pinned)
    return _wire((*facts, row.lacking_disks))


def _newest_first(vm: str) -> Select[str, str, str, int, int, str | None, bool, list[str] | None]:
    return select(*_COLUMNS).where(PointRow.vm == vm, PointRow.available).order_by(PointRow.position.desc())


def available(session: Session, vm: str, limit: int | None = None) -> list[RecoveryPoint]:
    """Return the points whose tag was applied in every disk of the VM, newest first, at most ``limit``."""
    return [_wire(row) for row in session.execute(_newest_first(vm).limit(limit))]


def newest(session: Session, vm: str, kind: str | None = None) -> RecoveryPoint | None:
    """Return the newest available point, of one kind or of any; None if there is none."""
    query = _newest_first(vm) if kind is None else _newest_first(vm).where(PointRow.kind == kind)
    row = session.execute(query.limit(1)).first()
    return None if row is None else _wire(row)


def newest_at(session: Session, vm: str, time_ns: int) -> RecoveryPoint | None:
    """Return the newest available point that is not newer than a time; None if there is none."""
    row = session.execute(_newest_first(vm).where(PointRow.time_ns <= time_ns).limit(1)).first()
    return None if row is None else _wire(row)


def newest_elapsed_ns(session: Session, vm: str, kind: str | None = None) -> int | None:
    """Return the rig's clock at the newest available point, of one kind or of any; None if there is none."""
    query = select(PointRow.elapsed_ns).where(PointRow.vm == vm, PointRow.available).order_by(PointRow.position.desc())
    if kind is not None:
        query = query.where(PointRow.kind == kind)
    return session.execute(query.limit(1)).scalar()


def count(session: Session, vm: str) -> int:
    """Return the number of available points of a VM."""
    return session.execute(select(func.count()).where(PointRow.vm == vm, PointRow.available)).scalar_one()


def oldest(session: Session, vm: str) -> RecoveryPoint | None:
    """Return the oldest available point; None if there is none."""
    query = select(*_COLUMNS).where(PointRow.vm == vm, PointRow.available).order_by(PointRow.position)
    row = session.execute(query.limit(1)).first()
    return None if row is None else _wire(row)


def facts(session: Session, vm: str) -> list[PointFacts]:
    """Return the properties of every available point that retention needs."""
    query = select(PointRow.tag_id, PointRow.position, PointRow.elapsed_ns, PointRow.kind)
    rows = session.execute(query.where(PointRow.vm == vm, PointRow.available))
    return [
        PointFacts(id=tag_id, position=position, elapsed_ns=elapsed_ns, app_consistent=kind == "ApplicationConsistent")
        for tag_id, position, elapsed_ns, kind in rows
    ]


def pinned(session: Session, vm: str) -> list[str]:
    """Return the ids of the points of a VM that a user pinned."""
    return list(session.scalars(select(PointRow.tag_id).where(PointRow.vm == vm, PointRow.pinned, PointRow.available)))


def in_use(session: Session, vm: str) -> dict[str, str]:
    """Return the ids of the points that are open, each with its use."""
    mounted = session.execute(select(MountRow.point_id, MountRow.name).where(MountRow.vm == vm))
    in_vms = session.execute(select(AzureVmRow.point_id, AzureVmRow.name).where(AzureVmRow.owner == vm))
    found = {point_id: f"it is mounted as {name!r}" for point_id, name in mounted if point_id is not None}
    return found | {point_id: f"VM {name!r} lies over it" for point_id, name in in_vms if point_id is not None}


def find_available(session: Session, tag_id: str) -> PointRow | None:
    """Return the point of a tag if it is available; otherwise None."""
    row = session.get(PointRow, tag_id)
    return row if row is not None and row.available else None


def register_tags(session: Session, item: ItemRow, disk_id: str, tags: list[TagSeen], elapsed_ns: int) -> list[PointRow]:
    """Record that these tags were applied in a disk; return the points that became available.  Repeats change nothing.

    ``elapsed_ns``: the rig's clock.
    """
    fresh = []
    present = _rows_of(session, [tag.tag_id for tag in tags])
    known = _newest_position(session, item.vm) if len(present) < len(tags) else None
    for tag in tags:
        if tag.name == SYNC_END:
            continue
        point = _row_of(session, item, tag, known, elapsed_ns, present=present)
        if point is None:
            continue
        present[tag.tag_id] = point
        if disk_id not in {seen.disk_id for seen in point.seen}:
            point.seen.append(TagSeenRow(tag_id=tag.tag_id, disk_id=disk_id))
        if _complete(item, point):
            fresh.append(point)
    return fresh


def newest_used_position(session: Session, vm: str) -> int:
    """Return the newest position of the VM that an available point, a mounted state or a VM has; 0 if there is none."""
    known = newest(session, vm)
    used = [0 if known is None else known.position]
    used += session.scalars(select(MountRow.position).where(MountRow.vm == vm))
    used += [at or 0 for at in session.scalars(select(AzureVmRow.position).where(AzureVmRow.owner == vm))]
    return max(used)


def _complete(item: ItemRow, point: PointRow) -> bool:
    """Make a point available if its tag was applied in all disks that its state has; return True if it was not before."""
    needed = {disk.disk_id for disk in disk_sets.of_state(item, point.position)}
    if point.available or not {seen.disk_id for seen in point.seen} >= needed:
        return False
    point.available = True
    point.lacking_disks = list(disk_sets.lacking(item, point.position)) or None
    return True


def record_created(session: Session, vm: str, point: RecoveryPoint, now_ns: int) -> None:
    """Record the event of a point that became available."""
    _log.info("point_available", vm=vm, trace=point.id, position=point.position)
    name = f" {point.name!r}" if point.name else ""
    text = f"{point.type} recovery point {point.id}{name} of VM {vm!r} was created: {point.time}, position {point.position}"
    events.record(session, vm=vm, code=events.POINT_CREATED, kind="VmReplication", severity="OK", text=text, now_ns=now_ns)


def complete_waiting(session: Session, item: ItemRow) -> list[PointRow]:
    """Make the points available that waited for the tags of disks that were removed now, and return them."""
    last = newest(session, item.vm)
    waiting = select(PointRow).where(PointRow.vm == item.vm, PointRow.available.is_(False))
    if last is not None:
        waiting = waiting.where(PointRow.position > last.position)
    rows = session.scalars(waiting.order_by(PointRow.position).options(selectinload(PointRow.seen)))
    return [point for point in rows if _complete(item, point)]


def _rows_of(session: Session, ids: list[str]) -> dict[str, PointRow]:
    """Return the rows of these tags that exist, with the disks that have seen them; a restarted applier reports many."""
    found: dict[str, PointRow] = {}
    for first in range(0, len(ids), _IDS_IN_QUERY):
        rows = session.scalars(_BY_IDS, {"ids": ids[first : first + _IDS_IN_QUERY]})
        found |= {row.tag_id: row for row in rows}
    return found


def _row_of(
    session: Session,
    item: ItemRow,
    tag: TagSeen,
    known: int | None,
    elapsed_ns: int,
    *,
    present: dict[str, PointRow],
) -> PointRow | None:
    """Return the tag's row, and make it if necessary; None if the tag does not belong to this protection, or was pruned.

    ``known`` is the position of the newest point, ``present`` has the rows that exist.
    """
    if tag.position <= item.points_after_position:
        return None  # a late repeat from before a commit
    point = present.get(tag.tag_id)
    # The tags of each disk are reported in their order, so all disks have reported this tag before the newest point was
    # made. A tag without a row is therefore the repeat, after a restart, of a point that was pruned since.
    if point is None and (known is None or tag.position > known):
        point = PointRow(
            tag_id=tag.tag_id,
            vm=item.vm,
            kind=tag.kind,
            name=tag.name,
            position=tag.position,
            time_ns=tag.time_ns,
            available=False,
            pinned=False,
            elapsed_ns=_elapsed_at(session, item, tag, elapsed_ns),
        )
        session.add(point)
    return point


def _elapsed_at(session: Session, item: ItemRow, tag: TagSeen, elapsed_ns: int) -> int:
    """Return the rig's clock at a tag that has only the site's wall time."""
    upto_ns = elapsed_ns
    if item.sent_elapsed_ns is not None and tag.position <= item.sent_position:
        upto_ns = item.sent_elapsed_ns
        if tag.position == item.sent_position:
            return upto_ns
    session.flush()  # the row of the tag before
    rows = session.execute(_LAST_BEFORE, {"vm": item.vm, "position": tag.position}).all()
    before = max(((row[0], row[1], row[2]) for row in rows), default=None)
    return rig_clock.place(None if before is None else before[1:], tag.time_ns, upto_ns)


_POINT = PointRow.__table__.c


def _last_before(available: bool) -> Select[int, int, int]:
    """Select position, ``elapsed_ns`` and ``time_ns`` of the last point before a position; the index needs ``available``."""
    of_vm = (_POINT.vm == bindparam("vm"), _POINT.available == available, _POINT.position < bindparam("position"))
    last = select(_POINT.position, _POINT.elapsed_ns, _POINT.time_ns).where(*of_vm)
    return select(last.order_by(_POINT.position.desc()).limit(1).subquery())


_LAST_BEFORE = union_all(_last_before(available=True), _last_before(available=False))
_NEWEST_POSITION = select(func.max(_POINT.position)).where(_POINT.vm == bindparam("vm"), _POINT.available)


def _newest_position(session: Session, vm: str) -> int | None:
    """Return the position of the newest available point; None if there is none."""
    return session.execute(_NEWEST_POSITION, {"vm": vm}).scalar()


def note_downgrade(session: Session, item: ItemRow, tag: TagSeen, because: str, elapsed_ns: int) -> None:
    """Record the reason for which a point is only crash-consistent, before or after its tag was applied."""
    present = _rows_of(session, [tag.tag_id])
    point = _row_of(session, item, tag, _newest_position(session, item.vm), elapsed_ns, present=present)
    if point is not None:
        point.downgraded_because = because


def hide_after(session: Session, vm: str, position: int) -> None:
    """Make the points after a position unavailable, because the managed disk has lost them."""
    lost = update(PointRow).where(PointRow.vm == vm, PointRow.position > position, PointRow.available)
    session.execute(lost.values(available=False))


def delete_all(session: Session, vm: str) -> None:
    """Delete every point of the VM, also points that are not available yet; for the commit of a failover."""
    of_vm = select(PointRow.tag_id).where(PointRow.vm == vm)
    session.execute(delete(TagSeenRow).where(TagSeenRow.tag_id.in_(of_vm)))
    session.execute(delete(PointRow).where(PointRow.vm == vm))


def prune(session: Session, vm: str, ids: list[str]) -> None:
    """Delete these points, and the tags before the newest point that never became a point."""
    for first in range(0, len(ids), _IDS_IN_QUERY):
        some = ids[first : first + _IDS_IN_QUERY]
        session.execute(delete(TagSeenRow).where(TagSeenRow.tag_id.in_(some)))
        session.execute(delete(PointRow).where(PointRow.tag_id.in_(some)))
    last = newest(session, vm)
    if last is not None:
        lost = select(PointRow.tag_id).where(
            PointRow.vm == vm, PointRow.available.is_(False), PointRow.position < last.position
        )
        session.execute(delete(TagSeenRow).where(TagSeenRow.tag_id.in_(lost)))
        session.execute(delete(PointRow).where(PointRow.tag_id.in_(lost)))


def resolve(session: Session, vm: str, choice: str) -> RecoveryPoint:
    """Return the available point that ``choice`` selects: by id, by a name that only one has, or by the beginning of one id.

    For ``Latest`` the result is only the newest *named* point; :func:`latest_state` returns the newest state.

    Raises:
        RigError: ``NoSuchPoint`` (with the points that exist), ``AmbiguousId``.
    """
    selector = parse(choice)
    if selector.text in (LATEST, LATEST_PROCESSED):
        newest_point = newest(session, vm)
    elif selector.text == LATEST_APPLICATION_CONSISTENT:
        newest_point = newest(session, vm, "ApplicationConsistent")
    else:
        row = find_available(session, selector.text)
        newest_point = to_wire(row) if row is not None and row.vm == vm else _named(session, vm, choice)
        if newest_point is None:
            newest_point = _begun(session, vm, choice)
        elif selector.kind == "name":
            _require_no_short_id(session, vm, choice, newest_point.id)
    if newest_point is None:
        last = newest(session, vm)
        last_text = f"the newest is {last.id} ({last.type})" if last is not None else "it has none yet"
        raise RigError(
            Code.NoSuchPoint,
            f"VM {vm!r} has no recovery point {WORDS.get(selector.text, choice)!r}; {last_text}; "
            f"allowed: {_allowed(count(session, vm))}",
        )
    return newest_point


def _named(session: Session, vm: str, name: str) -> RecoveryPoint | None:
    rows = session.execute(_newest_first(vm).where(PointRow.name == name)).all()
    if len(rows) > 1:
        raise RigError(
            Code.NoSuchPoint,
            f"VM {vm!r} has {len(rows)} recovery points named {name!r}, the newest is {rows[0][0]}: select one by its id",
        )
    return _wire(rows[0]) if rows else None


def check_new_name(session: Session, vm: str, name: str) -> None:
    """Check that the name is not the short id of another point, because it would select either.

    Raises:
        RigError: ``InvalidName``.
    """
    other = _short_id_of(session, vm, name)
    if other is not None:
        raise RigError(
            Code.InvalidName,
            f"point is named {name!r}, which is the beginning of the id of point {other}; give another name",
        )


def _require_no_short_id(session: Session, vm: str, name: str, own_id: str) -> None:
    """Check that no other point, which can be newer than the name, has an id that begins with it.

    Raises:
        RigError: ``AmbiguousId``.
    """
    other = _short_id_of(session, vm, name)
    if other not in (None, own_id):
        raise RigError(
            Code.AmbiguousId,
            f"{name!r} is the name of point {own_id} and the beginning of the id of point {other}: select one by its id",
        )


def _short_id_of(session: Session, vm: str, name: str) -> str | None:
    """Return the point whose id begins with the name, if the name is at least as long as a displayed short id."""
    found = _begun(session, vm, name) if len(name) >= short_ids.SHORT_CHARS else None
    return None if found is None else found.id


def _begun(session: Session, vm: str, beginning: str) -> RecoveryPoint | None:
    ids = session.scalars(select(PointRow.tag_id).where(PointRow.vm == vm, PointRow.available))
    found = short_ids.find("point", beginning, ids)
    row = None if found is None else find_available(session, found)
    return None if row is None else to_wire(row)


def _allowed(number: int) -> str:
    return f"{', '.join(WORDS.values())}, the id or the name of one of its {number} points{OF_A_STATE}"


@dataclass(frozen=True, slots=True)
class FailoverPoint:
    """The state that a failover uses: the selector ``choice`` (:func:`resolve`), or a state ``between`` points."""

    vm: str
    choice: str
    between: RecoveryPoint | None

    def check(self, session: Session) -> bool:
        """Check that the state still exists; the result is True.

        Raises:
            RigError: ``NoSuchPoint``.
        """
        return self.between is not None or bool(resolve(session, self.vm, self.choice))

    def variables(self, session: Session) -> dict[str, Any]:
        """Return the variables of the job, with the id of the point, because its name can change.

        Raises:
            RigError: ``NoSuchPoint``.
        """
        if self.between is not None:
            return {"choice": self.choice, "between": self.between.model_dump()}
        point = resolve(session, self.vm, self.choice)
        selector = parse(self.choice)
        return {"choice": selector.text if selector.kind == "word" else point.id, "between": None}


def latest_state(item: ItemRow, watermarks: list[Watermark], newest: RecoveryPoint) -> RecoveryPoint:
    """Return the state of ``Latest`` after the parts in the cache account were applied.

    It is the highest position up to which *all* disks are complete.  While a resync is due or running, the latest states of
    the disks do not belong together (a log may lack changes, or one disk has chunks of a newer time); then it is the newest
    point.
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
        type="CrashConsistent",
        time=rfc3339(least.complete_time_ns),
        position=least.complete_position,
        time_ns=least.complete_time_ns,
        lacking_disks=disk_sets.lacking(item, least.complete_position),
    )


def take_watermark(disk: DiskRow, mark: Watermark) -> bool:
    """Move the recorded watermark of a disk forward; return False for a report that is older than the record."""
    # After a kill the applier can report an older watermark than before.
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
    """Return the recorded watermark of a disk."""
    return Watermark(
        disk_id=disk.disk_id,
        generation=disk.generation,
        sync_parts=disk.sync_parts,
        sync_complete=disk.sync_complete,
        log_seq=disk.log_seq,
        complete_position=disk.complete_position,
        complete_time_ns=disk.complete_time_ns,
    )
