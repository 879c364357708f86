"""Mounted points: all disks of a VM at one position, read-only, on the recovery side.

A mounted point has its row (schema.MountRow) before the recovery host opens it, and until the host has closed it.  So each
function can be run again after a kill, and retention knows the states in use without asking another role.  Calls that mount
or unmount one name run one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import trio
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import disk_sets
from siterig.azure_emu.vault.context.states import RECOVERY, ProtectionState
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import DiskRow, MountRow, PointRow
from siterig.azure_emu.vault.model.resources import MountedDisk, MountedPoint, RecoveryPoint
from siterig.azure_emu.vault.monitoring import damage
from siterig.azure_emu.vault.points import points, selectors
from siterig.blockfs.contracts.control import MountedPointInfo, MountedPointSource
from siterig.blockfs.core import short_ids
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.core.sizes import known_size

CLEAN_UP_S = 10.0
_TIME = re.compile(r"(\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)")


def parse_time(text: str) -> int:
    """Return the nanoseconds since 1970 of a time in RFC 3339.

    Without nanoseconds the result is the end of the microsecond, because the displayed times of points are truncated to
    microseconds and must select that point.

    Raises:
        RigError: ``InvalidTime``.
    """
    found = _TIME.fullmatch(text.strip())
    try:
        moment = _moment(found) if found is not None else None
    except (ValueError, OverflowError):
        moment = None
    if found is None or moment is None:
        raise RigError(
            Code.InvalidTime,
            f"time {text!r} is not understood: write RFC 3339, e.g. 2026-11-21T22:13:17Z or ...:17.25+01:00",
        )
    return int(moment.timestamp()) * 1_000_000_000 + int((found[2] or "0").ljust(6, "0").ljust(9, "9"))


def time_name(time_ns: int) -> str:
    """Return the canonical name of a time: RFC 3339 in UTC, which :func:`parse_time` reads."""
    second, _, micros = rfc3339(time_ns)[:-1].partition(".")
    rest_ns = f"{time_ns % 1000:03}"
    fraction = micros.rstrip("0") if rest_ns == "999" else micros + rest_ns
    return f"{second}.{fraction}Z" if fraction else f"{second}Z"


def _moment(match: re.Match[str]) -> datetime:
    zone = "+00:00" if match[3] in "Zz" else match[3]
    return datetime.fromisoformat(match[1].upper().replace(" ", "T") + zone).astimezone(UTC)


async def resolve_selector(
    context: VaultContext, vm: str, *, point: str | None, position: int | None, time: str | None
) -> tuple[int, str, RecoveryPoint | None]:
    """Return the position, the name for a folder, and the recovery point there if there is one.

    At most one of the three selectors may be given; without any it is ``LatestProcessed``.  ``point`` can also be
    ``@POSITION`` or a time.

    Raises:
        RigError: ``BadRequest``, ``NoSuchPoint``, ``InvalidPosition``, ``InvalidTime``.
    """
    if sum(choice is not None for choice in (point, position, time)) > 1:
        raise RigError(Code.BadRequest, "point, position and time exclude each other: give one of them")
    selector = selectors.parse(selectors.LATEST_PROCESSED if point is None else point)
    if selector.kind == "position":
        position = int(selector.text)
    elif selector.kind == "time":
        time = selector.text
    if time is not None:
        return await _at_time(context, vm, time)
    if position is not None:
        _range_of(vm, position, (await _readable(context, vm))[0])
        at_position = await context.database.transact(lambda session: _point_at(session, vm, position))
        return position, f"@{position}", at_position
    if selector.text == selectors.LATEST:
        at_position = await _latest(context, vm)
        return (
            at_position.position,
            f"@{at_position.position}" if at_position.id == selectors.LATEST else at_position.id,
            at_position,
        )
    at_position = await _resolve(context, vm, selector.text)
    return at_position.position, at_position.id, at_position


async def _resolve(context: VaultContext, vm: str, selector: str) -> RecoveryPoint:
    def look(session: Session) -> tuple[bool, RecoveryPoint | RigError]:
        gone = find_item(session, vm).active_location == RECOVERY
        try:
            return gone, points.resolve(session, vm, selector)
        except RigError as error:
            return gone, error

    gone, found = await context.database.transact(look)
    if isinstance(found, RecoveryPoint):
        return found
    if gone:
        spans = " and ".join(f"{first} to {last}" for first, last in (await _readable(context, vm))[0]) or "none"
        raise RigError(Code.NoSuchPoint, f"VM {vm!r}: points were deleted by the commit; positions {spans} can be read")
    raise found


async def between_points(context: VaultContext, vm: str, choice: str) -> RecoveryPoint | None:
    """Return the state at ``@POSITION`` or a time as a point, also between points; None if ``choice`` is neither.

    The errors are those of :func:`resolve_selector`.
    """
    if selectors.parse(choice).kind not in ("position", "time"):
        return None
    position, _, found = await resolve_selector(context, vm, point=choice, position=None, time=None)
    if found is not None:
        return found
    time_ns = await _time_of(context, vm, position)
    return RecoveryPoint(
        id=f"@{position}",
        name=choice,
        type="CrashConsistent",
        time=rfc3339(time_ns),
        position=position,
        time_ns=time_ns,
        lacking_disks=await context.database.transact(lambda session: disk_sets.lacking(find_item(session, vm), position)),
    )


async def _time_of(context: VaultContext, vm: str, position: int) -> int:
    """Return the time of the last change of any disk up to a valid position, or else of the oldest state."""
    ranges, oldest_ns = await _readable(context, vm)
    first, _ = _range_of(vm, position, ranges)
    times = [oldest_ns]
    for disk in await context.database.transact(lambda session: disk_sets.of_state(find_item(session, vm), position)):
        try:
            steps = await context.recovery.change_steps(disk_id=disk.disk_id, after=first, upto=position)
        except RigError as error:
            if error.code != Code.InvalidPosition or (await _readable(context, vm))[0] == ranges:
                raise
            return await _time_of(context, vm, position)  # a compaction has removed the oldest state meanwhile
        times += [step.time_ns for step in steps[-1:]]
    return max(times)


def _range_of(vm: str, position: int, ranges: list[tuple[int, int]]) -> tuple[int, int]:
    """Return the newest range that has the position.

    Raises:
        RigError: ``InvalidPosition``.
    """
    found = [(first, last) for first, last in ranges if first <= position <= last]
    if not found:
        allowed = ", ".join(f"{first} to {last}" for first, last in ranges) or "none yet"
        raise RigError(Code.InvalidPosition, f"VM {vm!r}: position {position} cannot be read; allowed: {allowed}")
    return max(found)


async def _latest(context: VaultContext, vm: str) -> RecoveryPoint:
    """Apply the parts in the cache account, and return the state that a failover to ``Latest`` would use."""
    newest = await _resolve(context, vm, selectors.LATEST)
    disk_ids = [disk.disk_id for disk in await context.database.transact(lambda session: _disks(session, vm))]
    marks = await context.recovery.process_latest(disk_ids=disk_ids)
    return await context.change_item(
        vm, lambda session, item: points.latest_state(item, marks, points.newest(session, vm) or newest)
    )


async def _readable(context: VaultContext, vm: str) -> tuple[list[tuple[int, int]], int]:
    """Return the ranges of positions at which every disk can be read, oldest first, and the time of the oldest state.

    A disk is not needed at positions whose states do not have it.
    """
    disks = await context.database.transact(lambda session: disk_sets.of_any_state(find_item(session, vm)))
    disks = [disk for disk in disks if disk_sets.ranges_of(disk)]
    states = [await context.recovery.disk_state(disk_id=disk.disk_id) for disk in disks]
    ranges = [(1, disk_sets.NO_END)]
    for disk, state in zip(disks, states, strict=True):
        has = disk_sets.ranges_of(disk)
        readable = _common(state.valid_ranges, has)
        ranges = _joined(_common(ranges, sorted([*readable, *_between(has)])))
    if not disks or not ranges:
        return [], 0
    oldest = ranges[0][0]
    return ranges, max(
        state.floor_time_ns for disk, state in zip(disks, states, strict=True) if disk_sets.has_state(disk, oldest)
    )


def _common(some: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges of the positions that are in both, sorted."""
    both = [(max(a, c), min(b, d)) for a, b in some for c, d in others]
    return sorted((first, last) for first, last in both if first <= last)


def _between(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the ranges of all other positions."""
    edges = [0, *(edge for each in ranges for edge in each), disk_sets.NO_END + 1]
    return [(last + 1, first - 1) for last, first in zip(edges[::2], edges[1::2], strict=True) if last + 1 <= first - 1]


def _joined(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join sorted ranges of positions that follow each other without a gap."""
    found: list[tuple[int, int]] = []
    for first, last in ranges:
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return found


async def _at_time(context: VaultContext, vm: str, text: str) -> tuple[int, str, RecoveryPoint | None]:
    """Return the cut over all disks after the last record of any of them that is not newer than the time."""
    time_ns = parse_time(text)
    disks, every = await context.database.transact(
        lambda session: (_disks(session, vm), disk_sets.of_any_state(find_item(session, vm)))
    )
    ranges, oldest_ns = await _readable(context, vm)
    newest_ns = min((disk.complete_time_ns for disk in disks), default=0)
    refused = RigError(
        Code.InvalidTime, f"VM {vm!r}: time {text} cannot be read; allowed: {rfc3339(oldest_ns)} to {rfc3339(newest_ns)}"
    )
    if not oldest_ns <= time_ns or time_ns // 1000 > newest_ns // 1000:
        raise refused
    found = {disk.disk_id: at for disk in every if (at := await _position_in(context, disk, time_ns)) is not None}
    newest = max(found.values(), default=None)
    if newest is None or any(disk_sets.has_state(disk, newest) and disk.disk_id not in found for disk in every):
        raise refused
    # If the states between two generations are not known, the last state before them is used.
    known = [min(newest, last) for first, last in ranges if first <= newest]
    if not known:
        raise refused
    point = await context.database.transact(lambda session: points.newest_at(session, vm, time_ns))
    if point is not None and any(max(first, *known) <= point.position <= last for first, last in ranges):
        return point.position, time_name(time_ns), point  # the point changes no disk, but it has the time
    return max(known), time_name(time_ns), None


async def _position_in(context: VaultContext, disk: DiskRow, time_ns: int) -> int | None:
    """Return the position of a disk at a time, if the state of the VM at that position has the disk; otherwise None."""
    if not disk_sets.ranges_of(disk):
        return None
    try:
        found = await context.recovery.position_at(disk_id=disk.disk_id, time_ns=time_ns)
    except RigError as error:
        if error.code != Code.InvalidPosition:
            raise
        return None
    return found if disk_sets.has_state(disk, found) else None


def _point_at(session: Session, vm: str, position: int) -> RecoveryPoint | None:
    query = select(PointRow).where(PointRow.vm == vm, PointRow.available, PointRow.position == position)
    row = session.scalars(query.limit(1)).first()
    return None if row is None else points.to_wire(row)


def _disks(session: Session, vm: str) -> list[DiskRow]:
    """Return the disks that are replicated; those of an older state can be more."""
    return list(find_item(session, vm).disks)


async def mount(
    context: VaultContext,
    vm: str,
    *,
    point: str | None,
    position: int | None,
    time: str | None,
    name: str | None,
    process: HostProcess | None,
) -> MountedPoint:
    """Open a state; opening the same state again is no error, another state of that name is.

    ``process`` is recorded as the holder (leases.py), unless the state was mounted before.

    Raises:
        RigError: ``RecoveryExists``.
    """
    at, default_name, recovery_point = await resolve_selector(context, vm, point=point, position=position, time=time)
    time_ns = recovery_point.time_ns if recovery_point is not None else await _time_of(context, vm, at)
    new_row = MountRow(
        vm=vm,
        name=name or default_name,
        position=at,
        point_id=None if recovery_point is None else recovery_point.id,
        asked_time=default_name if _TIME.fullmatch(default_name) else None,
        process_id=None if process is None else process.pid,
        process_started=None if process is None else process.started,
    )

    def note(session: Session) -> tuple[bool, list[DiskRow], tuple[str, ...]]:
        item = find_item(session, vm)
        state = item.protection_state
        if state == ProtectionState.DISABLING:  # its mounts are being removed: a late one would stay
            raise RigError(Code.InvalidState, f"a point of VM {vm!r} cannot be mounted: protectionState is {state}")
        row = session.get(MountRow, (vm, new_row.name))
        if row is not None and row.position != at:
            raise RigError(
                Code.RecoveryExists,
                f"VM {vm!r}: {row.name} is mounted already, at position {row.position}, not {at}; unmount it first",
            )
        if row is None:
            if (
                recovery_point is not None
                and recovery_point.id != selectors.LATEST
                and points.find_available(session, recovery_point.id) is None
            ):
                raise RigError(Code.NoSuchPoint, f"VM {vm!r}: recovery point {recovery_point.id} was pruned just now")
            session.add(new_row)
        return row is None, disk_sets.of_state(item, at), disk_sets.lacking(item, at)

    async with context.mounting.hold(f"{vm}/{new_row.name}"):
        fresh, disks, excluded = await context.database.transact(note)
        try:
            sources = _sources(disks)
            info = await context.azure.open_mounted_point(
                vm=vm, name=new_row.name, position=at, disks=sources, time_ns=time_ns
            )
        except BaseException:
            if fresh:
                with trio.CancelScope(shield=True), context.clock.real.move_on_after(CLEAN_UP_S):
                    await _close(context, vm, new_row.name)
            raise
    known = await context.database.transact(lambda session: damage.warning_at(session, vm, at))
    return _wire(new_row, recovery_point, info, known, excluded)


def _sources(disks: list[DiskRow]) -> list[MountedPointSource]:
    return [
        MountedPointSource(name=disk.name, disk_id=disk.disk_id, sector_bytes=known_size(disk.sector_bytes))
        for disk in disks
    ]


async def unmount(context: VaultContext, vm: str, name: str) -> None:
    """Close a mounted state (``NotMounted`` names the mounted states; ``RecoveryInUse``).

    ``name`` is the name of its folder, or a selector for which :func:`mount` would use that name: a time or position in any
    form, or the name of a point.  The beginning of a folder's name that is an id is also accepted.

    Raises:
        RigError: ``AmbiguousId``.
    """

    def look(session: Session) -> str:
        find_item(session, vm)
        there = list(session.scalars(select(MountRow.name).where(MountRow.vm == vm).order_by(MountRow.name)))
        for known in (name, *_default_names(session, vm, name)):
            if known in there:
                return known
        if (begun := short_ids.find("mounted point", name, there)) is not None:
            return begun
        raise RigError(
            Code.NotMounted, f"VM {vm!r} has no mounted point {name!r}; mounted are: {', '.join(there) or 'none'}"
        )

    # An earlier holder of the lock can have unmounted it, too: closing it twice is no error.
    await close(context, vm, await context.database.transact(look))


def _default_names(session: Session, vm: str, text: str) -> Iterator[str]:
    with suppress(RigError):
        if (selector := selectors.parse(text)).kind == "position":
            yield f"@{int(selector.text)}"
        elif _TIME.fullmatch(text.strip()) is not None:
            yield time_name(parse_time(text))
        else:
            yield points.resolve(session, vm, text).id


async def close(context: VaultContext, vm: str, name: str) -> None:
    """Close a state on the recovery host and delete its row; do nothing if it is closed.

    Raises:
        RigError: ``RecoveryInUse``.
    """
    async with context.mounting.hold(f"{vm}/{name}"):
        await _close(context, vm, name)


async def _close(context: VaultContext, vm: str, name: str) -> None:
    await context.azure.close_mounted_point(vm=vm, name=name)
    await context.database.transact(
        lambda session: session.execute(delete(MountRow).where(MountRow.vm == vm, MountRow.name == name))
    )


async def remove_all(context: VaultContext, vm: str) -> None:
    """Close all mounted states of a VM.

    Raises:
        RigError: ``RecoveryInUse``.
    """
    names = await context.database.transact(
        lambda session: list(session.scalars(select(MountRow.name).where(MountRow.vm == vm)))
    )
    for name in names:
        await close(context, vm, name)


async def mounted(context: VaultContext, vm: str) -> list[MountedPoint]:
    """Return the mounted points of a VM, newest position first, each with its disks or the reason for which it has none."""

    def look(session: Session) -> list[tuple[MountRow, RecoveryPoint | None, RigError | None, tuple[str, ...]]]:
        item = find_item(session, vm)
        rows = session.scalars(select(MountRow).where(MountRow.vm == vm).order_by(MountRow.position.desc(), MountRow.name))
        return [
            (
                row,
                None if row.point_id is None else _named(session, row.point_id),
                damage.warning_at(session, vm, row.position),
                disk_sets.lacking(item, row.position),
            )
            for row in rows
        ]

    rows = await context.database.transact(look)
    infos = {info.name: info for info in await context.azure.list_mounted_points(vm=vm)} if rows else {}
    return [_wire(row, point, infos.get(row.name), known, excluded) for row, point, known, excluded in rows]


def _named(session: Session, point_id: str) -> RecoveryPoint | None:
    row = session.get(PointRow, point_id)
    return None if row is None else points.to_wire(row)


def _wire(
    row: MountRow,
    point: RecoveryPoint | None,
    info: MountedPointInfo | None,
    known_damage: RigError | None,
    excluded: tuple[str, ...],
) -> MountedPoint:
    disks = [] if info is None else info.disks
    return MountedPoint(
        vm=row.vm,
        name=row.name,
        position=row.position,
        time=row.asked_time,
        recovery_point=point,
        disks=[
            MountedDisk(
                name=disk.name,
                size_bytes=disk.size_bytes,
                path=disk.path,
                vhd=disk.vhd_path,
                sector_bytes=disk.sector_bytes,
            )
            for disk in disks
        ],
        broken="the recovery host does not have it: unmount it" if info is None else info.broken,
        damage=None if known_damage is None else known_damage.message,
        lacking_disks=excluded,
    )
