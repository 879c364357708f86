"""The injector of a process with open disks: a mount, and the disk hosts of both sides.

Fault contract: rules are in memory, and end with the process.  Rules that are armed, removed, opened or closed together come
into force at one position on all their disks.  An operation that meets a power loss, or a fault that another rule waits for,
is held until this module has reacted; the end of the rule, of the disk or of the mount ends the hold.

Threads: the trio thread.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk_faults import (
    RULES_MAX,
    DiskFaults,
    DiskInjection,
    LostWrites,
    PowerLoss,
    change_rules,
    change_rules_now,
    lose_power,
)
from siterig.blockfs.guests.file_ranges import ranges_of
from siterig.blockfs.watch.file_existence import existence
from siterig.core.fault_contract import (
    NO_OPEN_DISK,
    ArmedFaults,
    DiskCopies,
    FaultCount,
    FaultInjector,
    FaultPlan,
    FaultReport,
    InjectedFault,
)
from siterig.faults.armed_disk_rule import ArmedDiskRule, DiskChanges, OpenDisk
from siterig.faults.disk_mapping import crash_fault, map_rule, refused
from siterig.faults.disk_words import changed_ranges, done_words, loss_words, operation_words
from siterig.faults.injection_log import InjectionLog
from siterig.scenarios.faults.rules import FaultRule, mark_words, read_rule

_log = structlog.get_logger("faults")
ALL_FAULTS = (1 << 63) - 1
"""A number that no fault reaches: it releases all operations that a rule holds, now and later."""
MAPPING_S = 10.0
"""Time limit for the sync of a guest's file system, and the map of a file in it."""
_LARGEST_BYTES = 1 << 62
_TRIES = 5
"""A change is tried again if a disk is closed at the same moment."""


async def _tell_nobody(_injected: Sequence[InjectedFault]) -> None:
    pass


class DiskInjector(FaultInjector):
    """The rules of the layer ``disk`` in one process; :meth:`run` must run while rules are armed.

    Args:
        list_disks: returns the open disks.
        must_match: refuse a rule that matches none of them, or whose file is on none; otherwise the answer names the latter.
        is_source: their blocks have copies on a recovery side, so rules with ``recoverable = true`` may damage them.
        injected: is awaited with injections that happened, before the operations that are held for them continue.
        log: the log of the process's injections; None for one of its own.
        clock: gives the times of faults without an operation.
    """

    def __init__(
        self,
        list_disks: Callable[[], Iterable[OpenDisk]],
        *,
        must_match: bool = False,
        is_source: bool = False,
        injected: Callable[[Sequence[InjectedFault]], Awaitable[None]] = _tell_nobody,
        log: InjectionLog | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._list_disks, self._must_match, self._injected, self._clock = list_disks, must_match, injected, clock
        self._is_source, self._copies = is_source, DiskCopies()
        self._lock = trio.Lock()
        self._armed: dict[str, ArmedDiskRule] = {}
        self._of_id: dict[int, ArmedDiskRule] = {}
        self._read: dict[DiskFaults, tuple[int, int]] = {}
        self._kept_unsynced: set[DiskFaults] = set()
        self._nursery: trio.Nursery | None = None
        self._log = log or InjectionLog(self.counts, clock)
        if log is not None:
            log.count_also(self.counts)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Record injections, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    # --- rules ----------------------------------------------------------------------------------------------------

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        async with self._lock:
            new = [
                ArmedDiskRule(plan, rule, map_rule(plan.name, rule, plan.seed, is_awaited=plan.is_awaited), plan.is_open)
                for plan, rule in self._new(plans)
            ]
            if self._must_match:
                self._check_matches(new)
            for armed in new:
                self._check_range(armed)
                self._check_source(armed)
                await self._map_file(armed)
                self._find_regions(armed)
                armed.has_file = armed.while_file is None or armed.while_file.exists()
            without_file = {armed.name: armed.file_problem for armed in new if armed.file_problem}
            new = [armed for armed in new if not armed.file_problem]
            position = await self._place(new)
            for armed in new:
                self._armed[armed.name] = armed
                self._log.forget_over(armed.name)
                if armed.while_file is not None:
                    self._running.start_soon(self._follow_file, armed, armed.while_file)
            acted = await self._act(new, position)
        self._tell_soon(acted)
        targets = {plan.name: self._armed[plan.name].targets() for plan in plans if plan.name in self._armed}
        return ArmedFaults(position=position, targets=targets, without_file=without_file)

    def check(self, plan: FaultPlan) -> None:
        """Refuse a rule that cannot be armed here.

        Raises:
            RigError: ``FaultNotPossible``.
        """
        rule = read_rule(plan.rule)
        armed = ArmedDiskRule(plan, rule, map_rule(plan.name, rule, plan.seed, is_awaited=plan.is_awaited), plan.is_open)
        if self._must_match:
            self._check_matches([armed])
        self._check_range(armed)
        self._check_source(armed)

    def _new(self, plans: Sequence[FaultPlan]) -> list[tuple[FaultPlan, FaultRule]]:
        """Return the plans that are not armed yet, with their rules."""
        found: dict[str, tuple[FaultPlan, FaultRule]] = {}
        for plan in plans:
            rule = read_rule(plan.rule)
            if rule.where.layer != "disk":
                raise refused(plan.name, f"where.layer: {rule.where.layer!r}: here are disks only; allowed: disk")
            known = self._armed.get(plan.name)
            if plan.name in found or (known is not None and known.rule != rule):
                raise refused(plan.name, "another rule of this name is armed: remove it first, or write another name")
            if known is None:
                found[plan.name] = plan, rule
        return list(found.values())

    async def _map_file(self, armed: ArmedDiskRule) -> None:
        """Find the bytes of the file that a rule names, on the disks that it matches; or note why there are none."""
        pattern, problem = armed.rule.where.file, NO_OPEN_DISK
        if pattern is None:
            return
        for disk in self._list_disks():
            if not armed.matches(disk):
                continue
            try:
                with self._clock.fail_after(MAPPING_S):
                    found = await trio.to_thread.run_sync(ranges_of, disk.path, pattern, abandon_on_cancel=True)
                armed.ranges[disk.faults] = tuple(found)
            except RigError as error:
                problem = error.message
            except trio.TooSlowError:
                problem = f"the file system of {disk} was not synced within {MAPPING_S:g} s"
        refusal = refused(armed.name, f"where.file: {pattern!r}: {problem}")
        if not armed.ranges and self._must_match:
            raise refusal
        armed.file_problem = "" if armed.ranges else refusal.message

    async def _follow_file(self, armed: ArmedDiskRule, path: Path) -> None:
        """Switch a rule on while its file exists."""
        with armed.watch_scope:
            async with aclosing(existence(path, clock=self._clock)) as changes:
                async for exists in changes:
                    await self._file_exists(armed, exists)

    async def _file_exists(self, armed: ArmedDiskRule, exists: bool) -> None:
        async with self._lock:
            if exists == armed.has_file or self._armed.get(armed.name) is not armed:
                return
            armed.has_file = exists
            position = await self._switch([armed])
            try:
                acted = await self._act([armed], position)
            except RigError as error:
                _log.error("fault_failed", rule=armed.name, code=error.code, reason=error.message)
                return
        self._tell_soon(acted)

    def _check_matches(self, rules: Sequence[ArmedDiskRule]) -> None:
        disks = list(self._list_disks())
        for armed in rules:
            if not any(armed.matches(disk) for disk in disks):
                there = ", ".join(map(str, disks)) or "none"
                raise refused(armed.name, f"{armed.place()}: matches no disk; there are: {there}")

    def _check_range(self, armed: ArmedDiskRule) -> None:
        """Refuse a range that no disk has; a rule that waits for a moment may be for disks that grow until then."""
        start, when = armed.rule.where.start, armed.rule.when
        if start is None or when.after is not None:
            return
        disks = [disk for disk in self._list_disks() if disk.faults.core.is_open and armed.matches(disk)]
        if disks and all(disk.faults.core.size_bytes <= start for disk in disks):
            sizes = ", ".join(f"{disk} has {disk.faults.core.size_bytes} bytes" for disk in disks)
            raise refused(armed.name, f"where.start: {start}: {sizes}; allowed: a byte of the disk")

    def _check_source(self, armed: ArmedDiskRule) -> None:
        """Refuse recoverable damage where there is no atlas: there is no recovery side."""
        if armed.rule.spares_last_copies and armed.plan.atlas_seed is None:
            why = "there is no recovery side here, which would have another copy; allowed: in a rig, or faults of reads"
            raise refused(armed.name, f"expect.recoverable: true: {why}")

    def _find_regions(self, armed: ArmedDiskRule) -> None:
        """Find the regions that a rule may damage; refuse one that has none now."""
        if not armed.rule.spares_last_copies or not self._is_source:
            return
        disks = [disk for disk in self._list_disks() if armed.matches(disk)]
        for disk in disks:
            armed.find_regions(disk)
        if disks and not armed.ranges and armed.rule.when.after is None:
            why = "no byte at this place is in a region in which the disk may be damaged; allowed: a longer range"
            raise refused(armed.name, f"expect.recoverable: true: {why}")

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        async with self._lock:
            gone = [self._armed[name] for name in dict.fromkeys(names) if name in self._armed]
            targets = {armed.name: armed.targets() for armed in gone}
            position = await self._change(lambda: _removal(gone))
            for disk in {disk: None for armed in gone for disk in armed.ids}:
                self._record_rows(disk, self._new_rows(disk)[1], {})  # injections of the last moment
            for armed in gone:
                self._log.note_over(armed.name, armed.count().model_copy(update={"waiting": 0}))
                del self._armed[armed.name]
                armed.watch_scope.cancel()
                for rule in armed.ids.values():
                    self._of_id.pop(rule, None)
            self._keep_unsynced_no_more()
        return ArmedFaults(position=position, targets=targets)

    async def hold_faults(self, names: Iterable[str]) -> None:
        """Hold operations that meet these rules from now on: other rules follow them that were not there before."""
        async with self._lock:
            found = [self._armed[name] for name in names if name in self._armed]
            rules = [armed for armed in found if armed.mapped.fault is not None and not armed.holds]
            for armed in rules:
                if not armed.mapped.is_immediate and armed.mapped.fault is not None:
                    armed.mapped = replace(armed.mapped, fault=replace(armed.mapped.fault, holds="after"))
            held = [armed for armed in rules if armed.holds]
            await self._change(lambda: DiskChanges(hold=_by_disk(held)))

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        async with self._lock:
            armed = self._armed.get(name)
            if armed is None:
                return ArmedFaults(targets={})
            armed.is_open = is_open
            position = await self._switch([armed])
            acted = await self._act([armed], position)
        self._tell_soon(acted)
        return ArmedFaults(position=position, targets={name: armed.targets()})

    async def note_copies(self, *, copies: DiskCopies) -> None:
        async with self._lock:
            if copies.at_both == self._copies.at_both:
                return
            self._copies = copies
            rules = [armed for armed in self._armed.values() if armed.rule.spares_last_copies]
            for armed in rules:
                self._note_spared(armed)
            await self._switch(rules)

    def _note_spared(self, armed: ArmedDiskRule) -> None:
        if armed.rule.spares_last_copies:
            armed.spared = {disk for disk, title in armed.titles.items() if title not in self._copies.at_both}

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        return await self._log.report(after=after, epoch=epoch, patience_s=patience_s)

    def counts(self) -> dict[str, FaultCount]:
        """Return the counts of all rules."""
        return {name: armed.count() for name, armed in self._armed.items()}

    # --- disks ----------------------------------------------------------------------------------------------------

    def disk_opened(self, disk: OpenDisk) -> None:
        """Put the rules in force on a disk that was opened just now, before its guest can use it.

        :attr:`siterig.blockfs.host.disk_registry.DiskRegistry.report_opened` calls it in a disk host.
        Rules with ``file`` are not in force there: no file system over the disk is mounted yet.  A rule that does not fit
        the disk is logged, and the disk is served without it.
        """
        for armed in self._armed.values():
            if not armed.matches(disk) or armed.rule.where.file is not None or disk.faults in armed.ids:
                continue
            if self._is_source:
                armed.find_regions(disk)
            if not armed.has_ranges_on(disk.faults):
                continue
            changes = DiskChanges()
            self._plan_placing(changes, armed, disk)
            try:
                self._note_placed(changes, change_rules_now(changes.changes())[0] if changes.attach else [])
            except RigError as error:
                _log.error("fault_not_in_force", rule=armed.name, disk=str(disk), code=error.code, reason=error.message)

    async def _place(self, rules: Sequence[ArmedDiskRule]) -> int | None:
        """Put new rules in force on all disks that they match, at one position; None if they match none."""

        def plan() -> DiskChanges:
            changes = DiskChanges()
            for disk in self._list_disks():
                for armed in rules:
                    if disk.faults.core.is_open and armed.matches(disk) and armed.has_ranges_on(disk.faults):
                        self._plan_placing(changes, armed, disk)
                self._check_room(changes, rules, disk)
            return changes

        try:
            return await self._change(plan)
        except RigError:
            self._keep_unsynced_no_more()
            raise

    def _plan_placing(self, changes: DiskChanges, armed: ArmedDiskRule, disk: OpenDisk) -> None:
        armed.titles[disk.faults] = str(disk)
        self._note_spared(armed)
        if armed.mapped.loss is not None and disk.faults.unsynced() is None:
            disk.faults.keep_unsynced()
            self._kept_unsynced.add(disk.faults)
        if (fault := armed.fault_of(disk.faults)) is not None:
            changes.attach.setdefault(disk.faults, []).append((armed, fault))

    def _check_room(self, changes: DiskChanges, rules: Sequence[ArmedDiskRule], disk: OpenDisk) -> None:
        """Refuse rules if a disk has no room for them, and for the errors after each power loss."""
        there, new = disk.faults.rules(), len(changes.attach.get(disk.faults, ()))
        losses = sum(
            armed.mapped.crashes and disk.faults in armed.titles and armed.crash_ids.get(disk.faults) not in there
            for armed in {*self._armed.values(), *rules}
        )
        if len(there) + new + losses > RULES_MAX:
            held = f"has {len(there)} fault rules, and needs one more for each of {losses} power losses"
            raise refused(rules[0].name, f"disk {disk}: {held}; allowed: {RULES_MAX}")

    async def _change(self, plan: Callable[[], DiskChanges]) -> int | None:
        """Make changes at one position; a disk that is closed meanwhile is left out."""
        for tries_left in reversed(range(_TRIES)):
            changes = plan()
            rows = changes.changes()
            if not rows:
                return None
            try:
                ids, position = await change_rules(rows)
            except OSError as error:
                if error.errno != errno.EBADF or not tries_left:
                    raise
                continue
            self._note_placed(changes, ids)
            return position
        return None

    def _note_placed(self, changes: DiskChanges, ids: Sequence[Sequence[int]]) -> None:
        for change, found in zip(changes.changes(), ids, strict=True):
            for (armed, _), rule in zip(changes.attach.get(change.disk, ()), found, strict=True):
                armed.ids[change.disk] = rule
                self._of_id[rule] = armed
            if found:
                self._follow(change.disk)

    async def _switch(self, rules: Sequence[ArmedDiskRule]) -> int | None:
        """Switch rules on or off; the end of a power loss ends the errors of its disks."""

        def plan() -> DiskChanges:
            changes = DiskChanges()
            for armed in rules:
                for disk, rule in armed.ids.items():
                    (changes.enable if armed.is_on_for(disk) else changes.disable).setdefault(disk, []).append(rule)
                for disk, rule in armed.crash_ids.items() if not armed.is_on else ():
                    changes.detach.setdefault(disk, []).append(rule)
            return changes

        return await self._change(plan)

    def _keep_unsynced_no_more(self) -> None:
        """Forget unsynced writes of disks that no rule can lose."""
        needed = {disk for armed in self._armed.values() if armed.mapped.loss is not None for disk in armed.titles}
        for disk in self._kept_unsynced - needed:
            if disk.core.is_open:
                disk.keep_unsynced(0)
        self._kept_unsynced &= needed

    # --- faults that act at once ----------------------------------------------------------------------------------

    async def _act(self, rules: Sequence[ArmedDiskRule], in_force: int | None) -> list[InjectedFault]:
        """Let immediate rules that are on have their fault, once; they came into force at a position."""
        found = []
        for armed in rules:
            if not armed.mapped.is_immediate or not armed.is_on or armed.has_acted:
                continue
            if not armed.targets():
                continue  # the disks are those of another process
            armed.acted_ns = self._clock.wall_ns()
            if armed.mapped.loss is not None:
                done, position = await self._lose(armed)
            elif armed.rule.what.pause:
                done, position = f"paused {', '.join(armed.targets()) or 'no disk'}", in_force
            else:
                done, position = mark_words(armed.rule), None
            found.append(
                InjectedFault(name=armed.name, operation="-", n=1, time_ns=armed.acted_ns, position=position, done=done)
            )
            self._log.add(found[-1])
        return found

    async def _lose(self, armed: ArmedDiskRule) -> tuple[str, int | None]:
        """Let the disks of a rule lose their power; return the effect in words, and the position."""
        if armed.mapped.loss is None:
            raise AssertionError("only for rules that lose")
        try:
            lost, position = await self._lose_now(armed, armed.mapped.loss)
        except OSError as error:
            raise refused(armed.name, f"the power loss failed, and left some unsynced writes: {error.strerror}") from error
        return loss_words(lost, position, crashes=armed.mapped.crashes), position

    async def _lose_now(self, armed: ArmedDiskRule, loss: PowerLoss) -> tuple[dict[str, LostWrites], int]:
        """Let the disks lose their power, which are numbered by their names; a disk that is closed meanwhile is left out."""
        for tries_left in reversed(range(_TRIES)):
            disks = sorted((disk for disk in armed.titles if disk.core.is_open), key=lambda disk: armed.titles[disk])
            extents = [
                replace(loss.for_disk(number), ranges=self._numbered(armed, disk)) for number, disk in enumerate(disks)
            ]
            try:
                if armed.mapped.crashes:
                    await self._crash(armed, [disk for disk in disks if armed.crash_ids.get(disk) not in disk.rules()])
                lost, position = await lose_power(disks, extents)
            except OSError as error:
                if error.errno != errno.EBADF or not tries_left:
                    raise
                continue
            return dict(zip((armed.titles[disk] for disk in disks), lost, strict=True)), position
        raise AssertionError("the last attempt returns or raises")

    async def _lost(self, armed: ArmedDiskRule) -> tuple[str, int | None]:
        """Lose the power at an operation of a guest: the record of the fault has the reason if that fails."""
        try:
            return await self._lose(armed)
        except RigError as error:
            _log.error("fault_failed", rule=armed.name, code=error.code, reason=error.message)
            return error.message, None

    def _numbered(self, armed: ArmedDiskRule, disk: DiskFaults) -> tuple[tuple[int, int], ...]:
        """Return the ranges of a disk in which the writes are that ``survive`` numbers."""
        where = armed.rule.where
        if where.file is not None:
            return armed.ranges[disk]
        if where.start is None and where.length is None:
            return ()
        start = where.start or 0
        return ((start, where.length if where.length is not None else _LARGEST_BYTES - start),)

    async def _crash(self, armed: ArmedDiskRule, disks: Sequence[DiskFaults]) -> None:
        changes = DiskChanges(attach={disk: [(armed, crash_fault(armed.name))] for disk in disks if disk.core.is_open})
        rows = changes.changes()
        ids, _ = await change_rules(rows)
        armed.crash_ids |= {change.disk: found[0] for change, found in zip(rows, ids, strict=True)}

    # --- injections -----------------------------------------------------------------------------------------------

    def _follow(self, disk: DiskFaults) -> None:
        if disk not in self._read:
            self._read[disk] = disk.opening, 0
            self._running.start_soon(self._record, disk)

    @property
    def _running(self) -> trio.Nursery:
        if self._nursery is None:
            raise AssertionError("the method run must run while rules are armed")
        return self._nursery

    async def _record(self, disk: DiskFaults) -> None:
        """Record the injections of a disk until it is closed."""
        try:
            while disk.core.is_open:
                opening, after = self._read[disk]
                if opening == disk.opening:
                    await disk.wait_injection(after)
                await self._react(disk)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOENT):
                raise
        finally:
            self._read.pop(disk, None)

    async def _react(self, disk: DiskFaults) -> None:
        """Record what happened, do what belongs to it, and release the operations that are held for that."""
        counted = {armed: armed.counter.read()[1] for armed in self._armed.values() if armed.holds}
        dropped, rows = self._new_rows(disk)
        upto = {armed: count for armed, count in counted.items() if dropped}
        for armed, row in rows:
            upto[armed] = max(upto.get(armed, 0), row.fired)
        # Also the loss of a fault whose record was dropped: its operation is held until the power was lost.
        seen = {armed for armed, _ in rows}
        unseen = {armed for armed, count in counted.items() if dropped and armed not in seen and count > armed.lost_upto}
        losing = [armed for armed in upto if armed.mapped.loss is not None and armed in seen | unseen]
        done: dict[ArmedDiskRule, str] = {}
        try:
            for armed in losing:
                async with self._lock:
                    armed.lost_upto = max(armed.lost_upto, upto[armed])
                    words, position = await self._lost(armed)
                    done[armed] = words
                    if armed in unseen:
                        self._log.add(self._unseen(armed, words, position))
            await self._tell(self._record_rows(disk, rows, done))
        finally:
            for armed, fired in upto.items():  # other rules follow the first fault alone
                armed.release(fired if armed.mapped.loss is not None else ALL_FAULTS)

    def _unseen(self, armed: ArmedDiskRule, done: str, position: int | None) -> InjectedFault:
        now_ns = self._clock.wall_ns()
        return InjectedFault(name=armed.name, operation="-", n=0, time_ns=now_ns, position=position, done=done)

    def _new_rows(self, disk: DiskFaults) -> tuple[int, list[tuple[ArmedDiskRule, DiskInjection]]]:
        """Return the injections of a disk since the last call, with their rules, and the number of lost ones."""
        opening, after = self._read.get(disk, (disk.opening, 0))
        after = after if opening == disk.opening else 0
        rows = disk.injections(after) if disk.core.is_open else []
        if not rows:
            self._read[disk] = disk.opening, after
            return 0, []
        self._read[disk] = disk.opening, rows[-1].sequence
        dropped = rows[0].sequence - after - 1
        self._log.note_dropped(dropped)
        return dropped, [(armed, row) for row in rows if (armed := self._of_id.get(row.rule)) is not None]

    def _record_rows(
        self, disk: DiskFaults, rows: Sequence[tuple[ArmedDiskRule, DiskInjection]], done: Mapping[ArmedDiskRule, str]
    ) -> list[InjectedFault]:
        found = []
        size_bytes = disk.core.size_bytes if disk.core.is_open else _LARGEST_BYTES
        for armed, row in rows:
            if armed.mapped.is_immediate:  # it was recorded when it acted
                continue
            fault = armed.mapped.fault
            is_mark = row.effect == "note" and not row.hidden and armed.rule.what.mark is not None
            words = mark_words(armed.rule) if is_mark else done_words(row, fault)
            if loss := done.get(armed):
                words = loss if row.effect == "note" else f"{words}; {loss}"
            injected = InjectedFault(
                name=armed.name,
                operation=operation_words(armed.titles[disk], row),
                n=row.n,
                time_ns=row.time_ns,
                position=row.position,
                done=words,
                ranges=changed_ranges(row, fault, armed.ranges.get(disk, ()), size_bytes),
            )
            self._log.add(injected)
            found.append(injected)
        return found

    def _tell_soon(self, injected: Sequence[InjectedFault]) -> None:
        """Report faults for which no operation is held; the caller may be the one that gets the report."""
        if injected:
            self._running.start_soon(self._tell, injected)

    async def _tell(self, injected: Sequence[InjectedFault]) -> None:
        if injected:
            await self._injected(injected)


def _by_disk(rules: Sequence[ArmedDiskRule]) -> dict[DiskFaults, list[int]]:
    found: dict[DiskFaults, list[int]] = {}
    for armed in rules:
        for disk, rule in armed.ids.items():
            found.setdefault(disk, []).append(rule)
    return found


def _removal(rules: Sequence[ArmedDiskRule]) -> DiskChanges:
    changes = DiskChanges()
    for armed in rules:
        for disk, rule in [*armed.ids.items(), *armed.crash_ids.items()]:
            changes.detach.setdefault(disk, []).append(rule)
    return changes
