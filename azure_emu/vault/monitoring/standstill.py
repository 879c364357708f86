"""Reports standstills as health errors and events.

A standstill is a wait that lasts too long, a role that is hung, failed or away, data that is sent and not applied, skipped
blobs, missed cycles, a log that was not sent for too long, or an RPO beyond the threshold.  Each round compares the
standstills with the health errors in the database whose source begins with ``watch:``, so a restarted vault continues with
them.  A round that finds no difference, as nearly all do, makes no transaction; a difference is recorded in one.  The begin
of a standstill is an event, and so is its end (severity OK).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.vault.alerts import alert_settings
from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.context.roles import role_error
from siterig.azure_emu.vault.context.states import PRIMARY
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow, RigClockRow
from siterig.azure_emu.vault.model import bounds
from siterig.azure_emu.vault.model.alert_api import RPO_ABOVE
from siterig.azure_emu.vault.monitoring import acknowledged, health, item_facts
from siterig.azure_emu.vault.monitoring.repairs import Repairs
from siterig.azure_emu.vault.points import points
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.waits import Wait

ROUND_S = 2.0
ASK_AFTER_S, ASK_EVERY_S = 20.0, 30.0
"""After the first time without progress, and then at the second interval, the site is asked to check the account."""
COUNT_EVERY_S = 30.0
"""The interval at which the missed cycles are counted."""

_SITE_ROLES = frozenset({"agent", "site"})
"""A VM that is failed over does not need these roles."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Standstill:
    """A standstill of a VM; ``key`` identifies it within the VM."""

    key: str
    code: str
    message: str
    recoverable: bool = True


class _Ages:
    """The ages of several conditions."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._since_s: dict[str, float] = {}
        self._seen: set[str] = set()

    def age_s(self, key: str, since_ns: int) -> float:
        """Return the age in seconds: at first by the wall clock, later by elapsed time, which cannot be set."""
        self._seen.add(key)
        now = self._clock.read()
        now_s = now.boottime_ns / SECOND_NS
        return now_s - self._since_s.setdefault(key, now_s - max(0, now.wall_ns - since_ns) / SECOND_NS)

    def forget_unseen(self) -> None:
        """Forget every condition whose age was not read since the last call."""
        self._since_s = {key: at for key, at in self._since_s.items() if key in self._seen}
        self._seen = set()


@dataclass(frozen=True, slots=True)
class _Watched:
    """All items, with their disks and errors, the row of the rig's clock, and the threshold of the RPO."""

    clock: RigClockRow | None
    items: list[ItemRow]
    has_acknowledged: bool
    rpo_threshold_s: float


def _read(session: Session) -> _Watched:
    items = session.scalars(select(ItemRow).order_by(ItemRow.vm).options(*item_facts.WHOLE_ITEM)).all()
    clock = session.get(RigClockRow, RigClockRow.ONLY)
    threshold_s = alert_settings.load(session).rpo_threshold_s
    return _Watched(clock, list(items), bool(acknowledged.vms(session)), threshold_s)


def _to_record(item: ItemRow, standstills: list[Standstill]) -> dict[str, Standstill]:
    """Return the standstills that are to be recorded, by their source."""
    # A failure that the role itself reported has more details than the wait for its end.
    reported = {row.code for row in item.health_errors if not row.source.startswith(health.WATCH)}
    return {health.WATCH + each.key: each for each in standstills if each.code not in reported}


def _differences(item: ItemRow, standstills: list[Standstill]) -> bool:
    """Return True if the recorded standstills of an item are other ones."""
    found = {source: (each.code, each.message, each.recoverable) for source, each in _to_record(item, standstills).items()}
    rows = [row for row in item.health_errors if row.source.startswith(health.WATCH)]
    return found != {row.source: (row.code, row.message, row.recoverable) for row in rows}


def _replicates_in_cycles(item: ItemRow) -> bool:
    return item.active_location == PRIMARY and item.paused_ns is None and health.is_cycling(item)


def _age_s(at_ns: int, elapsed_ns: int) -> float:
    return (elapsed_ns - at_ns) / SECOND_NS


class StandstillWatch:
    """The watch of one vault."""

    def __init__(self, context: VaultContext, repairs: Repairs) -> None:
        self._context = context
        self._repairs = repairs
        self._ages = _Ages(context.clock)
        self._heard: tuple[int, float] | None = None
        self._asked_s: dict[str, float] = {}
        self._points_ns: dict[str, int] = {}
        """The rig's clock at the newest point of each VM, as of the last look."""
        self._missed: dict[str, float] = {}
        """The share of missed cycles of each VM, as of the last count."""
        self._counted_s = -COUNT_EVERY_S
        self._begun = False
        self._unapplied: list[str] = []
        """The VMs whose data has been waiting for too long in this round."""
        self._began_s = self._now_s()

    async def run(self) -> None:
        """Make a round every few seconds, until cancelled."""
        while True:
            try:
                await self.round()
            except RigError as error:  # the host's disk is full; the health of the items shows that
                _log.warning("health_not_recorded", code=error.code, reason=error.message)
            await self._context.clock.sleep(ROUND_S)

    async def round(self) -> None:
        """Compare the standstills with the recorded ones, and record the difference."""
        watched = await self._context.database.known("watched items", _read)
        vms = {item.vm for item in watched.items}
        self._begin(watched.items)
        self._context.lag.keep_only(vms, {disk.disk_id for item in watched.items for disk in item.disks})
        self._points_ns = {vm: at_ns for vm, at_ns in self._points_ns.items() if vm in vms}
        self._unapplied = []
        elapsed_ns = rig_clock.elapsed_at(watched.clock, self._context.clock)
        for item in watched.items:
            await self._find_point(item, elapsed_ns)
        await self._count_cycles(watched.items, elapsed_ns)
        found = {
            item.vm: [*self._standstills(item, elapsed_ns), *self._lateness(item, elapsed_ns, watched.rpo_threshold_s)]
            for item in watched.items
        }
        self._ages.forget_unseen()
        if watched.has_acknowledged or any(_differences(item, found[item.vm]) for item in watched.items):
            for vm in await self._context.database.transact(lambda session: self._record(session, found)):
                self._context.notifications.notify(vm)
        self._repairs.keep_only(vms)
        for vm in self._unapplied:
            self._ask(vm)

    def _begin(self, items: list[ItemRow]) -> None:
        if not self._begun:
            self._begun = True
            for item in items:  # after a restart the time since the last progress is not known
                self._context.lag.sent(item.vm, item.sent_position)
                self._context.lag.applied(item.vm, health.applied_position(item), moved=False)

    def _record(self, session: Session, standstills: dict[str, list[Standstill]]) -> list[str]:
        changed: list[str] = []
        items = session.scalars(select(ItemRow).order_by(ItemRow.vm).options(*item_facts.WHOLE_ITEM)).all()
        for item in items:
            if item.vm not in standstills:
                continue  # it is newer than this round
            known = {row.source: row for row in item.health_errors if row.source.startswith(health.WATCH)}
            found = _to_record(item, standstills[item.vm])
            for source, each in found.items():
                if health.set_error(
                    session, vm=item.vm, code=each.code, message=each.message, recoverable=each.recoverable, source=source
                ):
                    self._event(session, item.vm, each.code, "Warning" if each.recoverable else "Critical", each.message)
                    changed.append(item.vm)
            for source in known.keys() - found.keys():
                row = known[source]
                self._event(session, item.vm, row.code, "OK", f"this has ended: {row.message}")
                health.clear_errors(session, item.vm, source)
                changed.append(item.vm)
        session.flush()
        for vm in acknowledged.vms(session):
            item = session.get_one(ItemRow, vm)
            session.expire(item, ["health_errors"])
            acknowledged.forget_ended(session, vm, health.reasons(item_facts.read(session, item)))
        return changed

    def _now_s(self) -> float:
        return self._context.clock.boottime_ns() / SECOND_NS

    def _event(self, session: Session, vm: str, code: str, severity: events.Severity, text: str) -> None:
        now_ns = self._context.clock.wall_ns()
        events.record(session, vm=vm, code=code, kind="VmHealth", severity=severity, text=text, now_ns=now_ns)

    def _standstills(self, item: ItemRow, elapsed_ns: int) -> Iterator[Standstill]:
        replicates = item.active_location == PRIMARY and not item.suspended
        disks = {disk.disk_id: disk.name for disk in item.disks}
        for role in self._context.roles.all():
            if role.name in _SITE_ROLES and not replicates:
                continue
            yield from self._of_role(role)
            for wait in role.waits:
                if wait.vm in (None, item.vm) and (wait.vm is not None or wait.disk is None or wait.disk in disks):
                    yield from self._of_wait(role.name, wait, disks)
        yield from self._of_supervisor()
        if replicates:
            yield from self._of_lag(item, elapsed_ns)
        yield from self._of_account(list(disks))

    async def _count_cycles(self, items: list[ItemRow], elapsed_ns: int) -> None:
        """Count the missed cycles from time to time, and those of a VM that has not been counted yet."""
        cycling = {item.vm for item in items if _replicates_in_cycles(item)}
        now_s = self._now_s()
        self._missed = {vm: share for vm, share in self._missed.items() if vm in cycling}
        if len(self._missed) == len(cycling) and now_s - self._counted_s < COUNT_EVERY_S:
            return
        self._counted_s = now_s
        facts = (await item_facts.of_all(self._context.database)).items
        self._missed = {each.item.vm: health.missed_ratio(each, elapsed_ns) for each in facts if each.item.vm in cycling}

    def _lateness(self, item: ItemRow, elapsed_ns: int, threshold_s: float) -> Iterator[Standstill]:
        """Yield the lateness of an item; in the first two intervals after a start only lateness that is recorded."""
        if not _replicates_in_cycles(item):
            return
        missed = self._missed.get(item.vm, 0.0)
        if missed >= health.MISSED_RATIO_WARNING:
            limit = f"limit {health.MISSED_RATIO_WARNING:.0%}"
            text = f"{missed:.0%} of the replication cycles of the last hour were missed ({limit})"
            yield Standstill("cycles", "ReplicationCyclesMissed", text)
        recorded = {row.source for row in item.health_errors}
        rpo_s = health.rpo(item, elapsed_ns) or 0.0
        is_settled = self._now_s() - self._began_s >= 2 * item.interval_s
        if rpo_s > health.UNSENT_S_MAX and (is_settled or f"{health.WATCH}unsent" in recorded):
            yield Standstill("unsent", "LogUnsent", f"the log has been unsent for over {health.UNSENT_S_MAX:.0f} s")
        bound_s = max(threshold_s, 2 * item.interval_s)
        if rpo_s > bound_s and (is_settled or f"{health.WATCH}rpo" in recorded):
            yield Standstill("rpo", RPO_ABOVE, f"the RPO of VM {item.vm!r} is over {bound_s:g} s")

    def _of_role(self, role: RoleStatus) -> Iterator[Standstill]:
        error = role_error(role)
        if error is None:
            return
        age_s = self._ages.age_s(f"role {role.name}", role.since_ns)
        if role.state in ("failed", "hung") or age_s >= bounds.ROLE_AWAY_S:
            yield Standstill(f"role:{role.name}", error.code, error.message, recoverable=role.state != "failed")

    def _of_wait(self, role: str, wait: Wait, disks: dict[str, str]) -> Iterator[Standstill]:
        place = f"wait {role} {wait.code} {wait.vm} {wait.disk}"
        bound_s = bounds.wait_s(wait.code)
        if wait.since_monotonic_ns is None:
            age_s = self._ages.age_s(place, wait.since_ns)
        else:  # the wall clock of the role may differ from that of the vault
            age_s = (self._context.clock.monotonic_ns() - wait.since_monotonic_ns) / SECOND_NS
        if age_s < bound_s:
            return
        disk = "" if wait.disk is None else f" with disk {disks.get(wait.disk, wait.disk)!r}"
        text = f"role {role} has been waiting for over {bound_s:g} s{disk}: {wait.reason}"
        yield Standstill(f"wait:{role}:{wait.code}", wait.code, text)

    def _of_supervisor(self) -> Iterator[Standstill]:
        reported_ns = self._context.roles.reported_ns
        if reported_ns is None:
            return
        now_s = self._context.clock.real.boottime_ns() / SECOND_NS  # it reports in real time
        if self._heard is None or self._heard[0] != reported_ns:
            self._heard = (reported_ns, now_s)
        if now_s - self._heard[1] >= bounds.SUPERVISOR_SILENT_S:
            text = f"the supervisor has not reported the roles' states for over {bounds.SUPERVISOR_SILENT_S:g} s"
            yield Standstill("supervisor", bounds.SUPERVISOR_SILENT, text)

    def _of_lag(self, item: ItemRow, elapsed_ns: int) -> Iterator[Standstill]:
        lag = self._context.lag
        if lag.unapplied_s(item.vm) >= ASK_AFTER_S:
            self._unapplied.append(item.vm)
        if not health.is_cycling(item):
            return
        waiting = lag.waiting_bytes([disk.disk_id for disk in item.disks])
        what = f"the state at position {item.sent_position} was sent"
        what += "" if waiting is None else f", {waiting} bytes wait in the cache account"
        if lag.stalled_s(item.vm) >= bounds.STALLED_S:
            text = f"{what}, and nothing of VM {item.vm!r} has been applied for over {bounds.STALLED_S:g} s"
            yield Standstill("stalled", "ApplyStalled", text)
        elif lag.unapplied_s(item.vm) >= bounds.APPLIED_BEHIND_S:
            text = f"{what}; the applied state of VM {item.vm!r} is over {bounds.APPLIED_BEHIND_S:g} s behind"
            yield Standstill("stalled", "AppliedStateBehind", text)
        if item.paused_ns is not None:
            return
        bound_s = bounds.point_s(item.interval_s)
        seen_ns = self._points_ns.get(item.vm)
        if (
            self._is_cycling_for(item, elapsed_ns, bound_s)
            and seen_ns is not None
            and _age_s(seen_ns, elapsed_ns) >= bound_s
        ):
            text = f"VM {item.vm!r} has had no new recovery point for over {bound_s:g} s (interval {item.interval_s:g} s)"
            yield Standstill("points", "NoRecentRecoveryPoint", text)

    def _is_cycling_for(self, item: ItemRow, elapsed_ns: int, least_s: float) -> bool:
        """Return True if cycles have run for this time; no cycle ran before, and a rig that was down made no points."""
        cycling_s = (elapsed_ns - (item.protected_since_elapsed_ns or 0)) / SECOND_NS
        return min(cycling_s, self._now_s() - self._began_s) >= least_s

    async def _find_point(self, item: ItemRow, elapsed_ns: int) -> None:
        """Find the newest point of an item; the database is not asked while the point that was seen is young enough."""
        bound_s, seen_ns = bounds.point_s(item.interval_s), self._points_ns.get(item.vm)
        if not (health.is_cycling(item) and self._is_cycling_for(item, elapsed_ns, bound_s)):
            return
        if seen_ns is None or not 0 <= _age_s(seen_ns, elapsed_ns) < bound_s:
            vm = item.vm
            newest_ns = await self._context.database.known(
                ("newest point", vm), lambda session: points.newest_elapsed_ns(session, vm)
            )
            if newest_ns is None:
                self._points_ns.pop(vm, None)
            else:
                self._points_ns[vm] = min(newest_ns, elapsed_ns)

    def _ask(self, vm: str) -> None:
        """Make the site check that the account has the sent parts, which can also be missing in its own lists."""
        if self._now_s() >= self._asked_s.get(vm, 0.0) + ASK_EVERY_S:
            self._asked_s[vm] = self._now_s()
            self._repairs.look_for_missing(vm)

    def _of_account(self, disk_ids: list[str]) -> Iterator[Standstill]:
        skipped, count = self._context.lag.skipped(disk_ids)
        if count:
            blobs = "one blob" if count == 1 else f"{count} blobs"
            text = f"{blobs} in the cache account skipped: {ascii(skipped[0].name)[1:-1]} ({skipped[0].reason})"
            yield Standstill("account", "BlobsSkipped", text)
