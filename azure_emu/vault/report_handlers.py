"""Handlers of the reports to the vault.

The applier reports (ApplierReports), every reader of managed disks (DamageReports), the supervisor (RoleReports) and the
site's agent (VaultLink).  Reports are facts about the past.  A report may be late, repeated, or about a VM that is no longer
protected; it is then ignored without an error, because the sender could do nothing about one.  Each is one transaction.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.contracts.reports import ApplierReports, DamageReports, RoleReports, RoleStatus, SkippedBlob
from siterig.azure_emu.vault.context import disk_sets, events, rig_clock, role_ends
from siterig.azure_emu.vault.context.states import PRIMARY
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import AzureVmRow, DiskRow, ItemRow
from siterig.azure_emu.vault.jobs import vm_tasks
from siterig.azure_emu.vault.monitoring import damage, health, resync_reasons
from siterig.azure_emu.vault.monitoring.repairs import Repairs
from siterig.azure_emu.vault.points import points
from siterig.azure_emu.vault.workers.part_news import PartNews, replicating_disks
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.sides.vault_link import PATIENCE_S_MAX, ReplicationSettings, VaultLink
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.blockfs.transfer.part_name import Watermark

_DISK = DiskRow.__table__.c
_WITH_DISKS = select(ItemRow, DiskRow, health.HAS_ERROR).join(DiskRow).order_by(DiskRow.name)
_OF_DISK = _WITH_DISKS.where(ItemRow.vm == select(_DISK.vm).where(_DISK.disk_id == bindparam("disk_id")).scalar_subquery())
_OF_VM = _WITH_DISKS.where(ItemRow.vm == bindparam("vm"))
_DISKS = select(DiskRow).where(DiskRow.vm == bindparam("vm"), DiskRow.last_position.is_(None)).order_by(DiskRow.name)

STORE_OLDER = Code.ManagedDiskOlder
PART_UNUSABLE = "PartUnusable"
VM_DISK_CHANGED = Code.ImageChanged


@dataclass(frozen=True, slots=True)
class _Reported:
    """An item with all of its disks, read by one statement; ``has_error``: it has a reported error."""

    item: ItemRow
    disks: list[DiskRow]
    has_error: bool

    def disk(self, disk_id: str) -> DiskRow:
        return next(disk for disk in self.disks if disk.disk_id == disk_id)


def _reported(session: Session, query: Select[ItemRow, DiskRow, bool], **values: str) -> _Reported | None:
    """Return the item that a query selects; None if there is none, or one without disks."""
    rows = session.execute(query, values).all()
    if not rows:
        return None
    item, disks = rows[0][0], [disk for _, disk, _ in rows]
    disk_sets.put_into(item, disks)
    return _Reported(item, disks, rows[0][2])


@dataclass(frozen=True, slots=True)
class _Applied:
    """An accepted report of the applier: every disk is applied to ``position``; ``moved`` if that is news."""

    vm: str
    position: int
    moved: bool
    later: Watermark | None
    """The watermark that the vault knows already, if it is further."""


class ReportHandlers(ApplierReports, DamageReports, RoleReports, VaultLink):
    """The handlers of all reports to one vault."""

    def __init__(self, context: VaultContext, repairs: Repairs, part_news: PartNews) -> None:
        self._context = context
        self._repairs = repairs
        self._role_ends = role_ends.RoleEnds()
        self._part_news = part_news

    # ---- ApplierReports

    async def applied(
        self, *, watermark: Watermark, tags: list[TagSeen], waiting_bytes: int | None = None
    ) -> Watermark | None:
        def note(session: Session) -> _Applied | None:
            found = _reported(session, _OF_DISK, disk_id=watermark.disk_id)
            if found is None:
                return None
            disk, item = found.disk(watermark.disk_id), found.item
            moved = points.take_watermark(disk, watermark)
            later = None if moved else points.stored_watermark(disk)
            source = health.apply_source(disk.disk_id)
            if later is None and found.has_error and health.clear_errors(session, item.vm, source):
                text = f"disk {disk.name!r} of VM {item.vm!r} is applied again"
                self._event(session, item.vm, "ApplyRecovered", "OK", text)
            if tags and item.active_location == PRIMARY:
                for point in points.register_tags(session, item, disk.disk_id, tags, self._elapsed_ns(session)):
                    points.record_created(session, item.vm, points.to_wire(point), self._context.clock.wall_ns())
            return _Applied(item.vm, health.applied_position(item), moved=moved, later=later)

        done = await self._context.database.transact(note)
        if done is None:
            return None
        self._context.lag.applied(done.vm, done.position, moved=done.moved)
        if waiting_bytes is not None:
            self._context.lag.account(watermark.disk_id, waiting_bytes, [], 0)
        self._wake(done.vm)
        return done.later

    async def store_older(self, *, watermark: Watermark) -> None:
        """Record that a managed disk has lost applied data; recovery points after its end are no longer available."""

        def note(session: Session) -> str | None:
            disk = session.get(DiskRow, watermark.disk_id)
            if disk is None or points.take_watermark(disk, watermark):
                return None
            item = session.get_one(ItemRow, disk.vm)
            text = (
                f"the managed disk of {disk.vm}/{disk.name} is older than its last reported state: it ends at position "
                f"{watermark.complete_position}, and had {disk.complete_position}; resynchronize the VM"
            )
            source = health.apply_source(disk.disk_id)
            if health.set_error(session, vm=disk.vm, code=STORE_OLDER, message=text, recoverable=False, source=source):
                self._event(session, disk.vm, STORE_OLDER, "Critical", text)
            points.hide_after(session, disk.vm, watermark.complete_position)
            # A resync after an abandoned log compares only what the log had: the lost data would stay lost.
            if item.active_location == PRIMARY and item.resync_reason in (None, *resync_reasons.LOG_ABANDONED):
                self._mark_for_resync(session, item, STORE_OLDER)
            return disk.vm

        self._wake(await self._context.database.transact(note))

    async def apply_failed(self, *, disk_id: str, code: str, message: str, recoverable: bool) -> None:
        def note(session: Session) -> str | None:
            disk = session.get(DiskRow, disk_id)
            if disk is None:
                return None
            source = health.apply_source(disk_id)
            severity: Literal["Warning", "Critical"] = "Warning" if recoverable else "Critical"
            if health.set_error(session, vm=disk.vm, code=code, message=message, recoverable=recoverable, source=source):
                self._event(session, disk.vm, code, severity, message)
            return disk.vm

        self._wake(await self._context.database.transact(note))

    async def replicating_disks(self) -> list[str]:
        return await replicating_disks(self._context.database)

    async def account_seen(
        self, *, disk_id: str, waiting_bytes: int, skipped: list[SkippedBlob], skipped_count: int
    ) -> None:
        self._context.lag.account(disk_id, waiting_bytes, skipped, skipped_count)

    async def send_again(self, *, disk_id: str, parts: list[str], is_temporary: bool) -> None:
        """Request parts again from the site; a part that was already resent and is still unusable makes a resync due."""
        bad = await self._repairs.ask_for(disk_id, parts, is_temporary=is_temporary)
        if bad is None:
            return

        def note(session: Session) -> str | None:
            disk = session.get(DiskRow, disk_id)
            item = None if disk is None else session.get(ItemRow, disk.vm)
            # While a copy runs, its job reports the problem.
            if item is None or not health.is_cycling(item) or item.resync_reason is not None:
                return None
            self._mark_for_resync(session, item, PART_UNUSABLE, f"part {bad} was sent again and is still unusable")
            return item.vm

        self._wake(await self._context.database.transact(note))

    # ---- RoleReports

    async def report_roles(self, *, roles: list[RoleStatus]) -> None:
        before = {role.name: role for role in self._context.roles.all()}
        if not self._context.roles.update(roles, self._context.clock.wall_ns()):
            return
        self._context.notifications.notify_all()
        ends = self._role_ends.between(before, roles)
        if ends:
            with suppress(RigError):  # the host's disk is full: the states themselves are known
                now_ns = self._context.clock.wall_ns()
                await self._context.database.transact(lambda session: role_ends.record(session, ends, now_ns))

    # ---- DamageReports

    async def vm_disk_changed(self, *, vm: str, disk: str, what: str) -> None:
        """Record a changed disk file of a VM on the recovery side as a warning; it lasts until the VM is removed."""

        def note(session: Session) -> str | None:
            row = session.get(AzureVmRow, vm)
            if row is None or session.get(ItemRow, row.owner) is None:
                return None
            text = f"disk {disk!r} of VM {vm!r} on the recovery side: {what}"
            source = health.vm_disk_source(vm, disk)
            if health.set_error(session, vm=row.owner, code=VM_DISK_CHANGED, message=text, recoverable=True, source=source):
                self._event(session, row.owner, VM_DISK_CHANGED, "Warning", text)
            return row.owner

        self._wake(await self._context.database.transact(note))

    async def damage_met(self, *, disk_id: str, path: str, offset: int, position: int) -> None:
        def note(session: Session) -> None:
            disk = session.get(DiskRow, disk_id)
            if disk is not None and damage.note_read(session, disk_id, path, offset, position):
                text = f"a read of position {position} of {disk.vm}/{disk.name} failed: {path} is damaged at byte {offset}"
                self._event(session, disk.vm, damage.CODE, "Warning", text)

        await self._context.database.transact(note)

    async def scrubbed(self, *, disk_id: str, damages: list[Damage]) -> None:
        def note(session: Session) -> None:
            disk = session.get(DiskRow, disk_id)
            if disk is None or not damage.note_scrub(session, disk_id, damages):
                return
            if damages:
                known = damage.of_disk(session, disk)
                self._event(session, disk.vm, damage.CODE, known.severity, known.text)
            else:
                text = f"the managed disk of {disk.vm}/{disk.name} is no longer damaged"
                self._event(session, disk.vm, "ManagedDiskWhole", "OK", text)

        await self._context.database.transact(note)

    # ---- VaultLink

    async def may_replicate(self, *, vm: str) -> bool:
        def look(session: Session) -> bool:
            item = self._item(session, vm)
            return item is not None and not item.suspended

        return await self._context.database.known(("may replicate", vm), look)

    async def settings(self, *, vm: str) -> ReplicationSettings | None:
        def look(session: Session) -> ReplicationSettings | None:
            item = self._item(session, vm)
            if item is None:
                return None
            return ReplicationSettings(
                paused=item.paused_ns is not None,
                interval_s=item.interval_s,
                app_consistent_every_s=item.app_consistent_every_s,
            )

        return await self._context.database.known(("settings", vm), look)

    async def watermarks(self, *, vm: str, known: list[Watermark] | None = None, patience_s: float = 0.0) -> list[Watermark]:
        def look(session: Session) -> tuple[str, list[Watermark]]:
            known_as = vm_tasks.name_in_vault(session, vm)
            rows = session.scalars(_DISKS, {"vm": known_as})
            return known_as, [points.stored_watermark(row) for row in rows]

        async def look_again() -> list[Watermark] | None:
            now = (await self._context.database.known(("watermarks", vm), look))[1]
            return now if now != marks else None

        known_as, marks = await self._context.database.known(("watermarks", vm), look)
        if marks == known:
            with self._context.clock.real.move_on_after(min(patience_s, PATIENCE_S_MAX)):
                return list(await self._context.notifications.wait_for(known_as, look_again))
        return list(marks)

    async def parts_put(self, *, disk_ids: list[str]) -> None:
        self._part_news.note(disk_ids)

    async def point_sent(
        self,
        *,
        vm: str,
        tag_id: str,
        kind: TagKind,
        name: str,
        position: int,
        time_ns: int,
        downgraded_because: str | None = None,
        age_s: float = 0.0,
        waiting_bytes: dict[str, int] | None = None,
        disk_bytes: dict[str, int] | None = None,
    ) -> None:
        tag = TagSeen(tag_id=tag_id, kind=kind, name=name, position=position, time_ns=time_ns)

        def note(session: Session) -> tuple[str, list[str], int] | None:
            found = _reported(session, _OF_VM, vm=vm)
            item = self._item(session, vm) if found is None else found.item
            if item is None or item.active_location != PRIMARY:
                return None
            elapsed_ns = rig_clock.advance(session, self._context.clock)
            if position > item.sent_position:
                item.sent_position, item.sent_time_ns = position, time_ns
                item.sent_elapsed_ns = max(item.sent_elapsed_ns or 0, elapsed_ns - int(max(0.0, age_s) * SECOND_NS))
                self._note_sizes(session, item, disk_bytes or {})
            # The recovery point itself is made of the tags that the applier reports.  They do not have this reason.
            if downgraded_because is not None:
                points.note_downgrade(session, item, tag, downgraded_because, elapsed_ns)
            health.cycle_done(session, item.vm, elapsed_ns)
            if found is None or found.has_error:  # a restarted agent does not know earlier errors
                self._note_recovered(session, item.vm)
            disk_ids, applied = [disk.disk_id for disk in item.disks], health.applied_position(item)
            return item.vm, disk_ids, applied

        known = await self._context.database.transact(note)
        if known is None:
            return
        name, disk_ids, applied_position = known
        self._part_news.note(disk_ids)
        # The applier may have been faster than this report, also since the transaction.
        if applied_position < position and self._context.lag.sent(name, position):
            self._context.lag.put(waiting_bytes or {})
        self._wake(name)

    def _note_sizes(self, session: Session, item: ItemRow, disk_bytes: dict[str, int]) -> None:
        """Record the sizes of the disks; a change is an event."""
        for disk in item.disks:
            size_bytes = disk_bytes.get(disk.disk_id, disk.size_bytes)
            if size_bytes != disk.size_bytes:
                text = f"disk {disk.name!r} of VM {item.vm!r} was resized from {disk.size_bytes} to {size_bytes} bytes"
                now_ns = self._context.clock.wall_ns()
                events.record(
                    session,
                    vm=item.vm,
                    code="DiskResized",
                    kind="VmReplication",
                    severity="OK",
                    text=text,
                    now_ns=now_ns,
                )
                disk.size_bytes = size_bytes

    async def replication_error(
        self, *, vm: str, code: str, message: str, recoverable: bool, attempt: int, next_try_s: float | None
    ) -> None:
        def note(session: Session) -> str | None:
            if session.get(ItemRow, vm) is None:
                return None
            retried = recoverable and next_try_s is not None
            next_try_ns = None if next_try_s is None else self._context.clock.wall_ns() + int(next_try_s * SECOND_NS)
            news = health.set_error(
                session, vm=vm, code=code, message=message, recoverable=retried, attempt=attempt, next_try_ns=next_try_ns
            )
            if news:
                self._event(session, vm, code, "Warning" if retried else "Critical", message)
            return vm

        self._wake(await self._context.database.transact(note))

    async def app_point_failed(self, *, vm: str, code: str, message: str) -> None:
        def note(session: Session) -> None:
            if session.get(ItemRow, vm) is not None:
                self._event(session, vm, code, "Warning", message)

        await self._context.database.transact(note)

    async def replication_recovered(self, *, vm: str) -> None:
        def note(session: Session) -> str | None:
            self._note_recovered(session, vm)
            return vm

        self._wake(await self._context.database.transact(note))

    def _note_recovered(self, session: Session, vm: str) -> None:
        if health.clear_errors(session, vm):
            self._event(session, vm, "ReplicationRecovered", "OK", f"replication of VM {vm!r} works again")

    async def resync_required(self, *, vm: str, reason: str) -> None:
        def note(session: Session) -> str | None:
            item = self._item(session, vm)
            if item is None or item.active_location != PRIMARY:
                return None
            self._mark_for_resync(session, item, reason)
            return vm

        self._wake(await self._context.database.transact(note))

    async def checksums(
        self,
        *,
        disk_id: str,
        comparison_id: str,
        key_hex: str,
        chunk_bytes: int,
        spans: list[tuple[int, int]],
        position: int | None = None,
        generation: int | None = None,
    ) -> ChunkTags:
        # The vault is the recovery side's proxy for the site, which cannot reach it.
        return await self._context.recovery.checksums(
            disk_id=disk_id,
            comparison_id=comparison_id,
            key_hex=key_hex,
            chunk_bytes=chunk_bytes,
            spans=spans,
            position=position,
            generation=generation,
        )

    async def end_comparison(self, *, comparison_id: str) -> None:
        await self._context.recovery.end_comparison(comparison_id=comparison_id)

    # ---- helpers

    def _item(self, session: Session, vm: str) -> ItemRow | None:
        """Return the item of a VM by its name at the site, which is already the new one during a rename."""
        return session.get(ItemRow, vm_tasks.name_in_vault(session, vm))

    def _elapsed_ns(self, session: Session) -> int:
        return rig_clock.elapsed_ns(session, self._context.clock)

    def _wake(self, vm: str | None) -> None:
        if vm is not None:
            self._context.notifications.notify(vm)

    def _mark_for_resync(self, session: Session, item: ItemRow, reason: str, because: str | None = None) -> None:
        if item.resync_reason != reason:
            text = f"VM {item.vm!r} needs a resync: {reason}" + (f": {because}" if because else "")
            self._event(session, item.vm, Code.ResynchronizationRequired, "Warning", text)
        resync_reasons.mark(item, reason)

    def _event(self, session: Session, vm: str, code: str, severity: events.Severity, text: str) -> None:
        events.record(
            session, vm=vm, code=code, kind="VmHealth", severity=severity, text=text, now_ns=self._context.clock.wall_ns()
        )
