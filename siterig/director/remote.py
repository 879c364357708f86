"""The injectors in other roles: their rules, windows, counts and injections.

A role decides by itself which of its operations meets a fault.  While it has rules, a long poll brings their counts and
injections; a role without rules is not asked anything.

Fault contract: a role that is started again asks for its rules before it opens a file (:class:`RoleRules`).  The counts of
its new process are added to those of the former ones, as far as they were reported: those of the last moment of a process
that was killed are lost.  A change that comes while a role starts returns when the role has it.  A role that is away when a
rule is armed gets the rule when it is back; if all are away, arming fails.  A role that did not get its rules at its start
gets them as soon as it answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import (
    INJECTOR_LAYERS,
    LAYERS_OF_ROLE,
    NO_OPEN_DISK,
    DiskCopies,
    FaultCount,
    FaultInjector,
    FaultPlan,
    FaultReport,
)
from siterig.director.injectors import LayerInjector, not_possible
from siterig.director.prompt_injector import PromptInjector
from siterig.scenarios.faults.rules import FaultRule
from siterig.scenarios.faults.schedule import ArmedRule, FaultSchedule

T = TypeVar("T")
PATIENCE_S = 2.5
"""One long poll."""
RETRY_S = 1.0
"""The longest time between two attempts to reach a role that is away."""
START_S = 5.0
"""The time that a role has from its question for rules until it answers; later it counts as away."""
START_POLL_S = 0.01
"""The time between two attempts to reach a role that starts."""
_NOTHING = FaultCount(matched=0, fired=0)
_AWAY = (Code.RoleUnavailable, Code.RoleHung, Code.RoleHeld)
_NEVER = 1 << 62
"""A number of changes that no role has."""
_log = structlog.get_logger("faults")


async def _look_nowhere() -> None:
    pass


@dataclass
class _RemoteRole:
    """One role with an injector, and the rules that it has."""

    name: str
    injector: FaultInjector
    layers: tuple[str, ...]
    schedule: FaultSchedule
    rules: dict[str, ArmedRule] = field(default_factory=dict)
    opened: dict[str, bool] = field(default_factory=dict)
    """The state of each rule's window there."""
    leaving: set[str] = field(default_factory=set)
    """Rules that are being removed: they are not armed again, but their last counts are adopted."""
    leftover: set[str] = field(default_factory=set)
    """Rules that were removed while the role did not answer: it may still have them."""
    is_stale: bool = False
    """True if the role has missed a change because it did not answer."""
    epoch: str = ""
    sequence: int = 0
    before: dict[str, FaultCount] = field(default_factory=dict)
    """The counts of each rule in former epochs."""
    counts: dict[str, FaultCount] = field(default_factory=dict)
    changes: int = 0
    """Counts the changes of ``rules``."""
    armed_at: dict[str, int] = field(default_factory=dict)
    """The value of ``changes`` from which on reports are of this rule, and not of an earlier one with its name."""
    given: dict[str, bool] = field(default_factory=dict)
    """The state of the window of each rule that the process got at its start, until its first report."""
    starts_until_ns: int = 0
    """A process that got its rules and has not answered yet is starting, until this monotonic time."""
    asking: trio.Lock = field(default_factory=trio.Lock)
    news: trio.Event = field(default_factory=trio.Event)

    def wake(self) -> None:
        """Ask the role now."""
        self.news.set()
        self.news = trio.Event()

    def plans(self) -> list[FaultPlan]:
        """Return the rules that the role must have, also those that are being armed."""
        return [self.plan(armed) for name, armed in self.rules.items() if name not in self.leaving and not _is_over(armed)]

    def plan(self, armed: ArmedRule) -> FaultPlan:
        """Return a rule as the next process of the role gets it, with the counts that continue there."""
        return FaultPlan(
            name=armed.label,
            rule=armed.rule.document(),
            seed=armed.seed,
            is_open=armed.window.is_open,
            atlas_seed=self.schedule.atlas_seed if armed.rule.spares_last_copies else None,
            matched_before=self.totals(armed.label).matched,
            fired_before=armed.fired,
        )

    def armed_plans(self) -> list[FaultPlan]:
        """Return the rules that the role must have, and whose arming is over."""
        return [plan for plan in self.plans() if self.armed_at.get(plan.name, 0) != _NEVER]

    def give(self, until_ns: int) -> list[FaultPlan]:
        """Return the rules for a process that starts, and must answer before a monotonic time."""
        plans = self.plans()
        self.given = {plan.name: plan.is_open for plan in plans}
        self.starts_until_ns = until_ns
        return plans

    def is_behind(self, asked_at: int) -> bool:
        """Return True if an answer is to a question from before a rule was armed: it had no counts of that rule."""
        return any(asked_at < self.armed_at.get(name, 0) != _NEVER for name in self.rules)

    def end_epoch(self) -> None:
        """Note that the process has ended which reported so far."""
        for name in self.rules:
            self.before[name] = self.totals(name)
        self.counts.clear()

    def begin_arming(self, rules: Sequence[ArmedRule]) -> None:
        """Note rules that are about to be armed: a process that starts meanwhile gets them, too."""
        for armed in rules:
            self.rules[armed.label] = armed
            self.armed_at[armed.label] = _NEVER

    def end_arming(self, plans: Sequence[FaultPlan]) -> None:
        """Note that the rules were armed, or will be when the role is back: reports are of them from now on."""
        self.changes += 1
        for plan in plans:
            self.armed_at[plan.name] = self.changes
            self.opened[plan.name] = self.given.get(plan.name, plan.is_open)

    def forget(self, name: str) -> None:
        """Forget a rule that the role does not have: it was removed, or its file is on no disk there."""
        del self.rules[name]
        self.leaving.discard(name)
        self.opened.pop(name, None)
        self.before.pop(name, None)
        self.counts.pop(name, None)
        self.armed_at.pop(name, None)

    def totals(self, name: str) -> FaultCount:
        """Return the counts of a rule in this role, in all its processes."""
        before, count = self.before.get(name, _NOTHING), self.counts.get(name, _NOTHING)
        return FaultCount(
            matched=before.matched + count.matched,
            fired=before.fired + count.fired,
            last_ns=count.last_ns,
            spared=before.spared + count.spared,
        )


class RemoteInjector(LayerInjector):
    """The injector of the layers that other roles decide.

    Args:
        schedule: the rules.
        roles: the injector of each role that has one.
        layers: the layers of each role.
        former: the values of :meth:`saved` at the end of the former director, for :meth:`resume`.
        look_for_copies: calls :meth:`note_copies` with the disks that both sides have now.
        clock: the clock of retries.
    """

    layers = INJECTOR_LAYERS
    is_remote = True

    def __init__(
        self,
        schedule: FaultSchedule,
        roles: Mapping[str, FaultInjector],
        layers: Mapping[str, tuple[str, ...]] = LAYERS_OF_ROLE,
        *,
        former: Mapping[str, tuple[str, int]] | None = None,
        look_for_copies: Callable[[], Awaitable[None]] = _look_nowhere,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._schedule, self._look_for_copies = schedule, look_for_copies
        self._clock = clock
        self._former = former or {}
        self._roles = {
            name: _RemoteRole(name, PromptInjector(name, injector, clock), tuple(layers[name]), schedule)
            for name, injector in roles.items()
        }

    def _of(self, rule: FaultRule) -> list[_RemoteRole]:
        return [role for role in self._roles.values() if rule.where.layer in role.layers]

    async def check(self, rule: FaultRule) -> None:
        if not self._of(rule):
            layers = dict.fromkeys(layer for role in self._roles.values() for layer in role.layers)
            raise not_possible(rule, f"where.layer: {rule.where.layer!r} has no faults here; allowed: {', '.join(layers)}")

    # --- roles that start -------------------------------------------------------------------------------------------

    def rules_of(self, name: str, last: FaultReport | None = None) -> list[FaultPlan]:
        """Return the rules with which a new process of a role starts; none for a role without an injector.

        Args:
            name: the role.
            last: the last report of a former process, which a rule killed.
        """
        role = self._roles.get(name)
        if role is None:
            return []
        if last is not None:
            if last.epoch != role.epoch:
                role.end_epoch()
                role.epoch, role.sequence = last.epoch, 0
            self._take_over(role, last, set(role.rules))
        return role.give(self._clock.monotonic_ns() + int(START_S * 1e9))

    async def _reach(self, role: _RemoteRole, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call that changes rules; it waits for a role that got its rules, and is about to serve."""
        while True:
            try:
                answer = await call()
            except RigError as error:
                if error.code not in _AWAY or error.uncertain or self._clock.monotonic_ns() >= role.starts_until_ns:
                    raise
            else:
                role.starts_until_ns = 0
                return answer
            await self._clock.sleep(START_POLL_S)

    # --- rules ------------------------------------------------------------------------------------------------------

    async def arm(self, rules: Sequence[ArmedRule]) -> None:
        targets: dict[str, list[str]] = {armed.label: [] for armed in rules}
        away: dict[str, RigError] = {}
        reasons: dict[str, list[str]] = {armed.label: [] for armed in rules}
        for role in self._roles.values():
            own = [armed for armed in rules if role in self._of(armed.rule)]
            if not own:
                continue
            role.begin_arming(own)
            plans = [role.plan(armed) for armed in own]
            try:
                answer = await self._reach(role, partial(role.injector.arm_faults, plans=plans))
            except RigError as error:
                if error.code not in _AWAY:
                    raise
                away[role.name] = error
                role.is_stale = True
            else:
                for name, found in answer.targets.items():
                    targets.setdefault(name, []).extend(found)
                for name, reason in answer.without_file.items():
                    reasons[name].append(reason)
                    role.forget(name)
            role.end_arming([plan for plan in plans if plan.name in role.rules])
            role.wake()
        for armed in rules:
            self._require_target(armed, targets[armed.label], reasons[armed.label], away)
        if any(armed.rule.spares_last_copies for armed in rules):
            await self._look_for_copies()

    def _require_target(
        self, armed: ArmedRule, targets: Sequence[str], without_file: Sequence[str], away: Mapping[str, RigError]
    ) -> None:
        """Refuse a rule that matches nothing now, unless it waits for a moment at which there may be something.

        A file of a guest is mapped now, also for a rule that waits.
        """
        roles = self._of(armed.rule)
        if targets or (armed.rule.when.after is not None and not without_file):
            return
        lost = [away[role.name] for role in roles if role.name in away]
        if len(lost) == len(roles) or (lost and without_file):
            raise lost[0]
        if without_file and (armed.rule.when.after is not None or not all(map(_has_no_disk, without_file))):
            raise RigError(Code.FaultNotPossible, min(without_file, key=_has_no_disk))
        if not lost:
            where = armed.rule.where
            given = " and ".join(
                f"{key} = {value!r}" for key in ("vm", "disk", "part") if (value := getattr(where, key)) is not None
            )
            none = "no disk of this rig: siterig vm list"
            if where.layer == "store":
                none = "no managed disk: a VM has them from its protection on: siterig status"
            if where.part is not None:
                none = (
                    "no file now; a VM has change logs and managed disks from its protection on, and each kind of file as "
                )
                none += "soon as it is needed"
            raise not_possible(armed.rule, f"where: {given or 'the rule'} matches {none}")

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        names = [armed.label for armed in rules]
        for role in self._roles.values():
            own = [name for name in names if name in role.rules]
            if not own:
                continue
            role.leaving.update(own)
            try:
                await self._reach(role, partial(role.injector.disarm_faults, names=own))
                await self._ask(role, 0.0)  # with the last counts of the rules that were removed
            except RigError as error:
                if error.code not in _AWAY:
                    raise
                _log.info("role_away_at_disarming", role=role.name, rules=own, reason=error.message)
                role.leftover.update(own)
                role.is_stale = True
                role.wake()
        for role in self._roles.values():  # the total of a rule is that of all roles, so none is forgotten before
            for name in role.leaving & set(names):
                role.forget(name)

    async def window_opened(self, armed: ArmedRule) -> None:
        await self._set_window(armed, is_open=True)

    async def window_closed(self, armed: ArmedRule) -> None:
        await self._set_window(armed, is_open=False)

    async def _set_window(self, armed: ArmedRule, *, is_open: bool) -> None:
        for role in self._roles.values():
            await self._set_window_of(role, armed, is_open=is_open)

    async def _set_window_of(self, role: _RemoteRole, armed: ArmedRule, *, is_open: bool) -> None:
        if armed.label not in role.rules or role.opened.get(armed.label) == is_open:
            return
        role.opened[armed.label] = is_open
        try:
            await self._reach(role, partial(role.injector.set_fault_window, name=armed.label, is_open=is_open))
        except RigError as error:
            if error.code not in _AWAY:
                raise
            role.is_stale = True
            role.wake()

    async def note_copies(self, copies: DiskCopies) -> None:
        """Let the roles with such rules know which disks both sides have; one that is away learns it at the next call."""
        async with trio.open_nursery() as nursery:
            for role in self._roles.values():
                if any(armed.rule.spares_last_copies for armed in role.rules.values()):
                    nursery.start_soon(self._note_copies_of, role, copies)

    async def _note_copies_of(self, role: _RemoteRole, copies: DiskCopies) -> None:
        try:
            await role.injector.note_copies(copies=copies)
        except RigError as error:
            _log.debug("disk_copies_not_noted", role=role.name, reason=error.message)

    # --- counts and injections --------------------------------------------------------------------------------------

    async def collect(self) -> None:
        async with trio.open_nursery() as nursery:
            for role in self._roles.values():
                if role.rules and not role.is_stale:
                    nursery.start_soon(self._collect_from, role)

    async def _collect_from(self, role: _RemoteRole) -> None:
        try:
            await self._ask(role, 0.0)
        except RigError as error:
            _log.debug("faults_not_reported", role=role.name, reason=error.message)

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for role in self._roles.values():
                nursery.start_soon(self._follow, role)

    async def _follow(self, role: _RemoteRole) -> None:
        asked_at = 0
        while True:
            news = role.news
            if not role.rules and not role.is_stale:
                await news.wait()
                continue
            try:
                patience_s = 0.0 if role.is_stale or role.is_behind(asked_at) else PATIENCE_S
                asked_at = role.changes
                report = await role.injector.fault_report(after=role.sequence, epoch=role.epoch, patience_s=patience_s)
                async with role.asking:
                    await self._adopt(role, report, asked_at=asked_at)
                    await self._catch_up(role)
            except RigError as error:
                _log.debug("faults_not_reported", role=role.name, reason=error.message)
                with self._clock.move_on_after(RETRY_S):
                    await news.wait()

    async def _catch_up(self, role: _RemoteRole) -> None:
        """Tell a role that did not answer the changes that it has missed; all of them may be repeated."""
        if not role.is_stale:
            return
        role.is_stale = False
        try:
            leftover = sorted(role.leftover - set(role.rules))
            if leftover:
                await role.injector.disarm_faults(names=leftover)
            role.leftover.clear()
            for plan in await self._arm_again(role, role.armed_plans()):
                await role.injector.set_fault_window(name=plan.name, is_open=plan.is_open)
                role.opened[plan.name] = plan.is_open
        except RigError:
            role.is_stale = True
            raise

    def role_is_ready(self, name: str) -> None:
        """Arm the rules of a role that was started again, without waiting for the next attempt."""
        if name in self._roles:
            self._roles[name].starts_until_ns = 0
            self._roles[name].wake()

    async def _ask(self, role: _RemoteRole, patience_s: float) -> None:
        async with role.asking:
            asked_at = role.changes
            report = await role.injector.fault_report(after=role.sequence, epoch=role.epoch, patience_s=patience_s)
            await self._adopt(role, report, asked_at=asked_at)

    async def _adopt(
        self,
        role: _RemoteRole,
        report: FaultReport,
        known: Set[tuple[str, str, int, str]] = frozenset(),
        *,
        asked_at: int | None = None,
    ) -> None:
        """Take over injections and counts, except counts of an earlier rule with the name of one that was armed meanwhile.

        The injections of the earlier rule were taken over when it was removed.
        """
        counted = {name for name in role.rules if asked_at is None or role.armed_at.get(name, 0) <= asked_at}
        if report.epoch != role.epoch:
            await self._begin_epoch(role, report.epoch)
        self._take_over(role, report, counted, known)

    def _take_over(
        self, role: _RemoteRole, report: FaultReport, counted: Set[str], known: Set[tuple[str, str, int, str]] = frozenset()
    ) -> None:
        new = report.sequence - role.sequence  # an answer to an earlier question repeats injections
        for injected in report.injections[-new:] if new > 0 else ():
            key = (injected.name, injected.operation, injected.n, rfc3339(injected.time_ns))
            if injected.name in role.rules and key not in known:
                self._schedule.adopt_injection(
                    injected.name,
                    operation=injected.operation,
                    n=injected.n,
                    time_ns=injected.time_ns,
                    position=injected.position,
                    done=injected.done,
                    ranges=injected.ranges,
                )
        if report.dropped:
            _log.warning("injections_dropped", role=role.name, count=report.dropped)
        role.sequence = max(role.sequence, report.sequence)
        for name, count in report.counts.items():
            last = role.counts.get(name)
            if name in counted and (last is None or count.matched >= last.matched):
                role.counts[name] = count
                self._adopt_counts(name)

    def _adopt_counts(self, name: str) -> None:
        totals = [role.totals(name) for role in self._roles.values() if name in role.rules]
        most = 1 if self._schedule.rule(name).rule.is_immediate else None  # it happens once, in whatever role
        times = [total.last_ns for total in totals if total.last_ns is not None]
        self._schedule.adopt_counts(
            name,
            matched=_at_most(sum(total.matched for total in totals), most),
            fired=_at_most(sum(total.fired for total in totals), most),
            last_ns=max(times, default=self._schedule.rule(name).last_ns),
            waiting=sum(role.counts[name].waiting for role in self._roles.values() if name in role.counts),
            spared=sum(total.spared for total in totals),
        )

    async def _begin_epoch(self, role: _RemoteRole, epoch: str) -> None:
        """Take up the reports of a process: the first one, or that of a role that was started again."""
        restarted = role.epoch != ""
        if restarted:
            role.end_epoch()
        plans = await self._arm_again(role, role.armed_plans())  # those that it has stay as they are
        role.epoch, role.sequence = epoch, 0
        role.opened |= {plan.name: role.given.get(plan.name, plan.is_open) for plan in plans}
        late = [plan.name for plan in plans if plan.name not in role.given]
        role.given, role.starts_until_ns = {}, 0
        for plan in plans:
            if (armed := role.rules.get(plan.name)) is not None:
                await self._set_window_of(role, armed, is_open=armed.window.is_open)
        if restarted and late:
            _log.warning("faults_armed_late", role=role.name, rules=late)

    async def _arm_again(self, role: _RemoteRole, plans: list[FaultPlan]) -> list[FaultPlan]:
        """Arm rules in a new process, and return them; one that cannot be armed there is left out, and logged."""
        try:
            answer = await role.injector.arm_faults(plans=plans)
        except RigError as error:
            if error.code in _AWAY:
                raise
            if len(plans) > 1:
                return [armed for plan in plans for armed in await self._arm_again(role, [plan])]
            reasons = {plan.name: error.message for plan in plans}
        else:
            reasons = answer.without_file
        for name, reason in reasons.items():
            _log.error("fault_not_armed_again", role=role.name, rule=name, code=Code.FaultNotPossible, reason=reason)
        return [plan for plan in plans if plan.name not in reasons]

    # --- a director that was started again ----------------------------------------------------------------------------

    def saved(self) -> dict[str, tuple[str, int]]:
        """Return for each role the epoch and the sequence number of the last injection that was adopted."""
        return {role.name: (role.epoch, role.sequence) for role in self._roles.values()}

    async def resume(self, rules: Sequence[ArmedRule]) -> None:
        already = self._schedule.injections  # the former director may have recorded more than it has saved
        reports = {
            role.name: await self._resume_role(role, rules, *self._former.get(role.name, ("", 0)))
            for role in self._roles.values()
        }
        for armed in rules:
            roles = [role for role in self._roles.values() if armed.label in role.rules]
            found = [
                count
                for role in roles
                if (report := reports[role.name]) is not None
                and report.epoch == role.epoch
                and (count := report.counts.get(armed.label)) is not None
            ]
            if roles:  # the counts of processes that have ended meanwhile are those that no process reports
                roles[0].before[armed.label] = FaultCount(
                    matched=max(0, armed.matched - sum(count.matched for count in found)),
                    fired=max(0, armed.fired - sum(count.fired for count in found)),
                    spared=max(0, armed.spared - sum(count.spared for count in found)),
                )
        for role in self._roles.values():
            report = reports[role.name]
            if report is not None and role.rules:
                await self._adopt(role, report, {(each.rule, each.operation, each.n, each.time) for each in already})
            role.wake()

    async def _resume_role(
        self, role: _RemoteRole, rules: Sequence[ArmedRule], epoch: str, sequence: int
    ) -> FaultReport | None:
        """Return the report of a role, and remove the rules there that are no more; None if it is away."""
        role.rules = {armed.label: armed for armed in rules if role in self._of(armed.rule)}
        try:
            report = await role.injector.fault_report(after=sequence, epoch=epoch, patience_s=0.0)
            strangers = [name for name in report.counts if name not in role.rules]
            if strangers:
                await role.injector.disarm_faults(names=strangers)
        except RigError as error:
            if error.code not in _AWAY:
                raise
            return None
        if report.epoch == epoch:
            role.epoch, role.sequence = epoch, sequence
            for name in [name for name, armed in role.rules.items() if armed.rule.where.file and name not in report.counts]:
                role.forget(name)  # the file is on no disk there
            role.opened = {armed.label: not armed.window.is_open for armed in role.rules.values()}
            for armed in role.rules.values():
                await self._set_window_of(role, armed, is_open=armed.window.is_open)
        return report


def _has_no_disk(reason: str) -> bool:
    """Return True for the reason of a role without a disk of the rule; another role may know more."""
    return reason.endswith(NO_OPEN_DISK)


def _at_most(count: int, most: int | None) -> int:
    return count if most is None else min(count, most)


def _is_over(armed: ArmedRule) -> bool:
    """Return True for a fault that has happened, and that a role which was started again must not have a second time.

    It is immediate, or it kills the role and has done that as often as it may.
    """
    rule = armed.rule
    if rule.is_immediate:
        return armed.fired > 0 and rule.what.pause is None
    once = rule.when.occurrence is not None and rule.when.every is None
    most = 1 if once else rule.when.times
    return rule.what.kill is not None and most is not None and armed.fired >= most
