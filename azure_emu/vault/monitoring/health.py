"""replicationHealth, its reasons, and the RPO and the applied lag of an item.

Warning: a resynchronization is due, a recoverable error is being retried, something stands still or is late
(:mod:`siterig.azure_emu.vault.monitoring.standstill`), or states of the past are damaged.  Critical: an error that is not
retried, or damage of the newest state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from sqlalchemy import Table, bindparam, delete, insert, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.applied_lag import AppliedLag
from siterig.azure_emu.vault.context.states import PRIMARY, ProtectionState
from siterig.azure_emu.vault.db.schema import CycleRow, DiskRow, HealthErrorRow, ItemRow
from siterig.azure_emu.vault.model.resources import Health, HealthError, ProtectedItem
from siterig.azure_emu.vault.monitoring import acknowledged, damage
from siterig.azure_emu.vault.monitoring.hyperv_state import hyperv_state
from siterig.azure_emu.vault.monitoring.item_facts import ItemFacts
from siterig.blockfs.core.clock import rfc3339, rfc3339_or_none
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError

WINDOW_S = 3600.0
"""Cycles are counted over this time at most."""
MISSED_RATIO_WARNING = 0.2
UNSENT_S_MAX = 3600.0
CYCLES_MIN = 5
"""The least number of expected cycles for which a ratio is computed."""

# Only in these states does the agent replicate cycle by cycle, so only in them can it miss one.
_CYCLING = {ProtectionState.PROTECTED, ProtectionState.PLANNED_FAILED, ProtectionState.UNPLANNED_FAILED}

PAUSED = "ReplicationPaused"
NEW_DISKS = "DisksAvailableForProtection"
"""The code of the warning about disks that were attached to a protected VM and are not protected."""
FENCED, UNFENCED = "SourceFenced", "SourceUnfenced"
"""The code of the reason for which a paused item is not healthy (the service's 67502)."""
_REPLICATION = "replication"
WATCH = "watch:"
"""Prefix of the sources that only :mod:`siterig.azure_emu.vault.monitoring.standstill` writes."""

_CYCLE = cast(Table, CycleRow.__table__)  # without the work of the ORM, because each cycle does this
_HAS_ERROR = select(HealthErrorRow.__table__.c.id).where(HealthErrorRow.__table__.c.vm == bindparam("vm")).limit(1)
HAS_ERROR = select(HealthErrorRow.__table__.c.id).where(HealthErrorRow.__table__.c.vm == ItemRow.__table__.c.vm).exists()
"""A column of a statement about items: True if the item has a reported error."""
_COUNT_CYCLE = insert(_CYCLE)
_PRUNE_CYCLES = delete(_CYCLE).where(_CYCLE.c.vm == bindparam("of_vm"), _CYCLE.c.elapsed_ns < bindparam("before_ns"))


def apply_source(disk_id: str) -> str:
    """Return the source of an error with applying a disk's parts (HealthErrorRow.source)."""
    return f"apply:{disk_id}"


def vm_disk_source(vm: str, disk: str) -> str:
    """Return the source of an error with a disk of a VM on the recovery side."""
    return f"vm-disk:{vm}/{disk}"


def forget_vm_disks(session: Session, owner: str, vm: str) -> None:
    """Delete the errors with the disks of a VM on the recovery side that was removed or has other disks."""
    of_vm = HealthErrorRow.source.startswith(vm_disk_source(vm, ""), autoescape=True)
    session.execute(delete(HealthErrorRow).where(HealthErrorRow.vm == owner, of_vm))


def rename_vm_disks(session: Session, owner: str, vm: str, name: str) -> None:
    """Move the errors with the disks of a VM on the recovery side to its new name."""
    former, new = vm_disk_source(vm, ""), vm_disk_source(name, "")
    of_vm = HealthErrorRow.source.startswith(former, autoescape=True)
    for row in session.scalars(select(HealthErrorRow).where(HealthErrorRow.vm == owner, of_vm)):
        row.source = new + row.source.removeprefix(former)


def set_error(
    session: Session,
    *,
    vm: str,
    code: str,
    message: str,
    recoverable: bool,
    attempt: int = 1,
    next_try_ns: int | None = None,
    source: str = _REPLICATION,
) -> bool:
    """Replace the error of a source; return True if its code or severity is new."""
    query = select(HealthErrorRow).where(HealthErrorRow.vm == vm, HealthErrorRow.source == source)
    row = session.scalars(query).one_or_none()
    news = row is None or (row.code, row.recoverable) != (code, recoverable)
    if news:
        acknowledged.forget(session, vm, source)
    if row is None:
        row = HealthErrorRow(vm=vm, source=source)
        session.add(row)
    row.code, row.message, row.recoverable, row.attempt, row.next_try_ns = code, message, recoverable, attempt, next_try_ns
    return news


def clear_errors(session: Session, vm: str, source: str | None = _REPLICATION) -> bool:
    """Remove the error of a source, or with None all reported errors of the VM; return True if there was one."""
    if session.execute(_HAS_ERROR, {"vm": vm}).first() is None:
        return False  # as nearly always, and each report asks
    query = select(HealthErrorRow).where(HealthErrorRow.vm == vm)
    of_source = HealthErrorRow.source.not_like(f"{WATCH}%") if source is None else HealthErrorRow.source == source
    rows = session.scalars(query.where(of_source)).all()
    for row in rows:
        acknowledged.forget(session, vm, row.source)
        session.delete(row)
    return bool(rows)


def blocking_error(session: Session, vm: str) -> HealthErrorRow | None:
    """Return an error for which replication waits for an administrator; None if there is none."""
    query = select(HealthErrorRow).where(HealthErrorRow.vm == vm, HealthErrorRow.recoverable.is_(False))
    query = query.where(HealthErrorRow.source.not_like(f"{WATCH}%"))
    return session.scalars(query.order_by(HealthErrorRow.id)).first()


def require_not_blocked(session: Session, vm: str) -> None:
    """Raise the error for which replication of this VM waits for an administrator, if there is one."""
    blocking = blocking_error(session, vm)
    if blocking is not None:
        raise RigError(Code.of(blocking.code), blocking.message)


def apply_error(session: Session, vm: str) -> HealthErrorRow | None:
    """Return an error with applying parts of one of the VM's disks; None if there is none."""
    query = select(HealthErrorRow).where(HealthErrorRow.vm == vm, HealthErrorRow.source.like(f"{apply_source('')}%"))
    return session.scalars(query.order_by(HealthErrorRow.id)).first()


def cycle_done(session: Session, vm: str, elapsed_ns: int) -> None:
    """Count a cycle that reached the cache account; delete cycles outside the window.  ``elapsed_ns``: the rig's clock."""
    session.execute(_COUNT_CYCLE, {"vm": vm, "elapsed_ns": elapsed_ns})
    session.execute(_PRUNE_CYCLES, {"of_vm": vm, "before_ns": elapsed_ns - int(WINDOW_S * SECOND_NS)})


def missed_ratio(facts: ItemFacts, elapsed_ns: int) -> float:
    """Return the share of the cycles of the last hour that were missed; 0 while too few were expected."""
    item = facts.item
    if item.protected_since_elapsed_ns is None:
        return 0.0
    start_ns = max(item.protected_since_elapsed_ns, elapsed_ns - int(WINDOW_S * SECOND_NS))
    expected = int((elapsed_ns - start_ns) / SECOND_NS / item.interval_s)
    if expected < CYCLES_MIN:
        return 0.0
    return max(0, expected - facts.cycles_since(start_ns)) / expected


def _derived(facts: ItemFacts) -> list[HealthError]:
    """Return the errors that follow from the item's figures and from the damage of its disks."""
    item = facts.item
    found: list[tuple[str, str]] = []
    lasting: list[tuple[str, str]] = []
    ids: dict[str, str] = {Code.ResynchronizationRequired: f"resync:{item.resync_reason}"}
    if item.resync_reason is not None:
        found.append(
            (Code.ResynchronizationRequired, f"VM {item.vm!r} is marked for resynchronization: {item.resync_reason}")
        )
    if item.fenced_ns is not None:
        since = rfc3339(item.fenced_ns)
        found.append(
            (FENCED, f"its disks at the site refuse all writes since {since}; siterig site unfence {item.vm} allows them")
        )
    if item.new_disks:
        names = ", ".join(item.new_disks)
        ids[NEW_DISKS] = f"new-disks:{names}"
        found.append((NEW_DISKS, f"disks {names} can be protected: siterig disk protect {item.vm}/DISK"))
    if facts.resync_failure is not None:
        text = f"the automatic resync of VM {item.vm!r} failed: {facts.resync_failure}"
        lasting.append((Code.AutomaticResyncFailed, text))
    if item.paused_ns is not None:
        since = rfc3339(item.paused_ns)
        found.append((PAUSED, f"replication is paused since {since}; siterig resume {item.vm} continues it"))
    return [
        HealthError(
            errorCode=code,
            errorId=ids.get(code, code),
            summaryMessage=text,
            recoverable=recoverable,
            attempt=0,
            next_try_time=None,
        )
        for recoverable, rows in ((False, lasting), (True, found))
        for code, text in rows
    ] + [
        HealthError(
            errorCode=damage.CODE,
            errorId=f"damage:{each.disk}",
            summaryMessage=each.text,
            recoverable=not each.critical,
            attempt=0,
            next_try_time=None,
        )
        for each in facts.damaged
    ]


def is_cycling(item: ItemRow) -> bool:
    """Return True if the agent replicates the item cycle by cycle."""
    return item.protection_state in _CYCLING and not item.suspended


def applied_position(item: ItemRow) -> int:
    """Return the position up to which every disk is applied; 0 if there is none."""
    return min((disk.complete_position for disk in item.disks), default=0)


def applied_lag(item: ItemRow, disk: DiskRow | None = None) -> float | None:
    """Return the seconds by which the applied state is older than the newest sent one; None if nothing was sent.

    The applied state is that of one disk, or the oldest one of all.
    """
    if item.sent_time_ns is None or item.active_location != PRIMARY:
        return None
    disks = item.disks if disk is None else [disk]
    if min((each.complete_position for each in disks), default=0) >= item.sent_position:
        return 0.0
    applied_ns = min((each.complete_time_ns for each in disks), default=0)
    return max(0.0, (item.sent_time_ns - applied_ns) / SECOND_NS)


def _age_s(at_ns: int | None, elapsed_ns: int) -> float | None:
    return None if at_ns is None else max(0.0, (elapsed_ns - at_ns) / SECOND_NS)


def rpo(item: ItemRow, elapsed_ns: int) -> float | None:
    """Return the age in seconds of the newest state in the cache account, by the rig's clock; None if there is none."""
    if item.sent_elapsed_ns is None:
        return None
    return max(0.0, (elapsed_ns - item.sent_elapsed_ns) / SECOND_NS)


def reasons(facts: ItemFacts) -> list[HealthError]:
    """Return the reported and the derived reasons for which an item is not healthy, also the acknowledged ones."""
    reported = [
        HealthError(
            errorCode=row.code,
            errorId=row.source,
            summaryMessage=row.message,
            recoverable=row.recoverable,
            attempt=row.attempt,
            next_try_time=rfc3339_or_none(row.next_try_ns),
        )
        for row in facts.item.health_errors
    ]
    return [*reported, *_derived(facts)]


def describe(
    facts: ItemFacts,
    elapsed_ns: int,
    lag: AppliedLag,
    *,
    unwritable: RigError | None = None,
    observed: Sequence[HealthError] = (),
) -> ProtectedItem:
    """Return the item in the form of the API.

    Args:
        facts: the rows about the item.
        elapsed_ns: the rig's clock.
        lag: the lag of the recovery side.
        unwritable: the reason for which the vault cannot record reports about the item, if it cannot.
        observed: other errors of the item that are not recorded.
    """
    item = facts.item
    errors = [*reasons(facts), *observed]
    if unwritable is not None:
        errors.insert(
            0,
            HealthError(
                errorCode=unwritable.code,
                errorId="vault",
                summaryMessage=unwritable.message,
                recoverable=True,
                attempt=1,
                next_try_time=None,
            ),
        )
    errors, hidden = acknowledged.split(errors, facts.acknowledged)
    health: Health = "Normal"
    if any(not error.recoverable for error in errors):
        health = "Critical"
    elif errors:
        health = "Warning"
    elif item.sent_time_ns is None:
        health = "None"
    return ProtectedItem(
        name=item.vm,
        policy_interval_s=item.interval_s,
        app_consistent_every_s=item.app_consistent_every_s,
        recoveryPointHistoryDuration=item.history_hours,
        protectionState=item.protection_state,
        testFailoverState=item.test_failover_state,
        replicationHealth=health,
        healthErrors=errors,
        acknowledged_errors=hidden,
        lastRpoInSeconds=rpo(item, elapsed_ns),
        applied_lag_s=applied_lag(item),
        newest_point_age_s=_age_s(facts.newest_point_ns, elapsed_ns),
        recovery_vm_name=facts.recovery_vm_name,
        test_vm_name=facts.test_vm_name,
        pinned_points=facts.pinned_points,
        unapplied_bytes=lag.waiting_bytes([disk.disk_id for disk in item.disks]),
        activeLocation="Recovery" if item.active_location == "Recovery" else "Primary",
        resynchronizationRequired=item.resync_reason,
        replication_state=hyperv_state(item, critical=health == "Critical", is_resyncing=facts.is_resyncing),
        paused_since=rfc3339_or_none(item.paused_ns),
        fenced_since=rfc3339_or_none(item.fenced_ns),
        excluded_disks=sorted(item.excluded_disks),
    )
