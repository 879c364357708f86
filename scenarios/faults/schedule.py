"""The schedule of faults: which operation meets which fault, what was injected, and whether each rule fired as expected.

An injector asks :meth:`FaultSchedule.decide` for each operation of its layer, acts, and reports with
:meth:`FaultSchedule.record`.  For virtual disks the C core counts and decides in the same way
(:mod:`siterig.blockfs.core.fault_decisions`); the schedule opens and closes its rules' windows, and gets its counts by
:meth:`FaultSchedule.adopt_counts`.

**Deterministic.**  A decision depends on the seed, the rule's name and the number of the operation among those that match
the rule, on nothing else; so the same operations meet the same faults, whatever other rules there are.

**Several rules for one operation.**  Each rule counts and decides by itself.  All delays apply, one after the other; then
the first rule, in the order of arming, that fails the operation, ends the connection or the process; changes of data apply
only if none does.  A mark or a fault that another rule waits for takes effect after the operation.

Threads: every method may be called from every thread.  Listeners are called without the lock.
"""

from __future__ import annotations

import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import structlog

from siterig.blockfs.core import fault_decisions as decisions
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock, rfc3339, rfc3339_or_none
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import ALWAYS, UNLIMITED, Turns
from siterig.blockfs.documents.model_problems import DocumentProblem
from siterig.blockfs.documents.nearest import hint
from siterig.scenarios.faults.catalog import IMMEDIATE, LayerName
from siterig.scenarios.faults.operations import FaultOperation, OperationMatcher, OperationRange
from siterig.scenarios.faults.records import FaultVerdict, Injection, RuleStatus, logged_ranges
from siterig.scenarios.faults.rules import FaultRule, set_problems
from siterig.scenarios.faults.triggers import FaultWindow, TriggerBoard
from siterig.scenarios.faults.values import FaultTrigger

INJECTIONS_KEPT = 100_000
"""The newest injections are in memory, for the report; older ones are in the log only."""
_log = structlog.get_logger("faults")


@dataclass(slots=True)
class ArmedRule:
    """A rule of a schedule, with its counts.  Only the schedule changes it."""

    rule: FaultRule
    label: str
    seed: int
    """The seed of its random choices."""
    turns: Turns
    matcher: OperationMatcher
    window: FaultWindow
    matched: int = 0
    fired: int = 0
    spared: int = 0
    last_ns: int | None = None
    waiting: int = 0
    is_removed: bool = False


@dataclass(frozen=True, slots=True)
class FaultDecision:
    """A fault that an operation meets, and the choices that belong to it.

    Args:
        rule: the rule.
        label: its name.
        operation: the operation.
        n: the number of the operation among those that match the rule, from 1.
        stream: the start of the rule's random stream.
    """

    rule: FaultRule
    label: str
    operation: FaultOperation
    n: int
    stream: int

    def delay_ns(self) -> int:
        """Return the nanoseconds that the operation is delayed; 0 without a delay."""
        what = self.rule.what
        return decisions.delay_ns(self.stream, self.n, what.delay or 0, what.jitter or 0, what.distribution or "uniform")

    def flipped_bits(self, length: int) -> list[int]:
        """Return the bits, from 0, that are inverted in ``length`` bytes."""
        bits = 0 if self.rule.what.flip is None else self.rule.what.flip.bits
        return decisions.flipped_bits(self.stream, self.n, length * 8, bits)

    def torn_ranges(self, length: int) -> list[tuple[int, int]]:
        """Return the ranges, start and end, of a write of ``length`` bytes that reach the disk."""
        tear = self.rule.what.tear
        if tear is None:
            return [(0, length)]
        return decisions.torn_ranges(self.stream, self.n, length, parts=tear.parts, sizes=tear.sizes, keep=tear.keep)

    def below(self, choice: int, bound: int) -> int:
        """Return a number from 0 to ``bound - 1``; ``choice`` numbers the choices of an injector, from 0."""
        return decisions.below(self.stream, self.n, decisions.FIRST_CHOICE + choice, bound)


class FaultListener:
    """Hears of changes of a schedule; a subclass overrides what it needs."""

    def window_changed(self, armed: ArmedRule) -> None:
        """React to a window that opened or closed; an immediate fault acts when it opens."""

    def rule_removed(self, armed: ArmedRule) -> None:
        """React to a rule that was removed: release what it keeps."""

    def injected(self, injection: Injection) -> None:
        """React to a fault that was recorded."""


@dataclass(slots=True)
class _Changes:
    """Changes that listeners hear of after the lock is released."""

    windows: list[ArmedRule] = field(default_factory=list)
    removed: list[ArmedRule] = field(default_factory=list)


class FaultSchedule:
    """All fault rules of a run.

    Args:
        seed: the seed of all random choices; None for a random one, which :attr:`seed` has.
        clock: gives the times of windows and injections.
        atlas_seed: the seed of the fault atlas (:mod:`siterig.scenarios.faults.atlas`), if one is in use already.
        exists: returns True if the file of ``while_file`` exists.
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        clock: Clock = SYSTEM_CLOCK,
        atlas_seed: int | None = None,
        exists: Callable[[Path], bool] = Path.exists,
    ) -> None:
        self.seed = secrets.randbelow(10**9) if seed is None else seed
        self.atlas_seed = atlas_seed
        """The seed of the fault atlas, for all rules: that of the first rule that needs one; None before."""
        self._clock, self._exists = clock, exists
        self._board = TriggerBoard(clock)
        self._lock = threading.RLock()
        self._armed: dict[str, ArmedRule] = {}
        self._removed: list[ArmedRule] = []
        self._injections: deque[Injection] = deque(maxlen=INJECTIONS_KEPT)
        self._sequence = 0
        self._listeners: list[FaultListener] = []

    def subscribe(self, listener: FaultListener) -> None:
        """Report all later changes to a listener."""
        self._listeners.append(listener)

    # --- rules ----------------------------------------------------------------------------------------------------

    def add(
        self,
        rules: Iterable[FaultRule],
        ranges: Callable[[FaultRule], Sequence[OperationRange] | None] | None = None,
        *,
        seed: int | None = None,
    ) -> list[ArmedRule]:
        """Arm rules, all or none, and return them with their counts.

        Args:
            rules: the rules.
            ranges: returns the ranges of the file that a rule names; needed only for rules with ``file``.
            seed: the seed of the rules that have none; None for the seed of the run.
        Raises:
            RigError: ``InvalidFault`` if a name is armed already, or a trigger names a rule that does not exist.
        """
        added = list(rules)
        with self._lock:
            problems = set_problems(added, tuple(self._armed))
            if problems:
                located = [DocumentProblem(("fault", *problem.path), problem.text) for problem in problems]
                raise RigError(Code.InvalidFault, "; ".join(map(str, located)))
            default = self.seed if seed is None else seed
            new = [self._arm(rule, None if ranges is None else ranges(rule), default) for rule in added]
            if self.atlas_seed is None:
                self.atlas_seed = next((armed.seed for armed in new if armed.rule.spares_last_copies), None)
            self._armed |= {armed.label: armed for armed in new}
            changes = _Changes(windows=[armed for armed in new if armed.window.refresh(self._board)])
        for armed in new:
            _log.info("fault_armed", rule=armed.label, words=armed.rule.words())
        self._announce(changes)
        return new

    def _arm(self, rule: FaultRule, ranges: Sequence[OperationRange] | None, default_seed: int) -> ArmedRule:
        when, label = rule.when, rule.label
        seed = default_seed if rule.seed is None else rule.seed
        turns = Turns(
            stream=decisions.stream_of(seed, label),
            occurrence=when.occurrence or 0,
            every=when.every or 0,
            threshold=ALWAYS if when.probability is None else decisions.threshold_of(when.probability),
            times=1 if rule.is_immediate else UNLIMITED if when.times is None else when.times,
        )
        window = FaultWindow(when.after, when.until, when.for_, self._board.arming_moment())
        return ArmedRule(rule, label, seed, turns, OperationMatcher(rule, ranges), window)

    def remove(self, name: str) -> None:
        """Remove a rule; ``InvalidFault`` if there is none of this name."""
        with self._lock:
            armed = self._known(name)
            del self._armed[name]
            armed.is_removed = True
            self._removed.append(armed)
            self._board.forget_fault(name)
        _log.info("fault_removed", rule=name, matched=armed.matched, fired=armed.fired)
        self._announce(_Changes(removed=[armed]))

    def end(self, names: Iterable[str]) -> None:
        """Close the windows of rules that are about to be removed: no operation meets them any more.  No listener hears."""
        with self._lock:
            for name in names:
                self._known(name).window.is_closed = True

    def discard(self, names: Iterable[str]) -> None:
        """Forget rules that could not be put in force: they are no part of the run; listeners release what they keep."""
        with self._lock:
            removed = [self._armed.pop(name) for name in names]
            for armed in removed:
                armed.is_removed = True
                self._board.forget_fault(armed.label)
        self._announce(_Changes(removed=removed))

    def clear(self) -> int:
        """Remove all rules, and return their number."""
        names = list(self._armed)
        for name in names:
            self.remove(name)
        return len(names)

    def rule(self, name: str) -> ArmedRule:
        """Return the armed rule of this name; ``InvalidFault`` if there is none."""
        with self._lock:
            return self._known(name)

    def _known(self, name: str) -> ArmedRule:
        armed = self._armed.get(name)
        if armed is None:
            there = ", ".join(self._armed) or "none"
            raise RigError(Code.InvalidFault, f"there is no fault {name!r}{hint(name, self._armed)}; there are: {there}")
        return armed

    def armed(self, layer: LayerName | None = None) -> list[ArmedRule]:
        """Return the rules of a layer, or all, in the order of arming."""
        with self._lock:
            return [armed for armed in self._armed.values() if layer in (None, armed.rule.where.layer)]

    def all_rules(self) -> list[ArmedRule]:
        """Return the rules of the run, also those that were removed, which come first."""
        with self._lock:
            return [*self._removed, *self._armed.values()]

    def resume(
        self,
        rules: Iterable[tuple[FaultRule, Mapping[str, Any]]],
        *,
        injections: Sequence[Injection] = (),
        sequence: int,
        marks: Iterable[str],
    ) -> None:
        """Continue a run whose schedule is lost: no listener hears of its rules, and durations begin again.

        Args:
            rules: each rule with its ``seed``, ``matched``, ``fired``, ``spared``, ``last_ns``, ``was_open``, ``is_closed``
                and ``is_removed``.
            injections: those that are known, oldest first.
            sequence: the number of injections so far, at least.
            marks: the marks that are set.
        """
        with self._lock:
            self._injections = deque(injections, INJECTIONS_KEPT)
            self._sequence = max([sequence, *(injection.sequence for injection in injections[-1:])])
            for mark in marks:
                self._board.note_mark(mark)
            for rule, state in rules:
                armed = self._arm(rule, None, state["seed"])
                armed.matched, armed.fired, armed.spared = state["matched"], state["fired"], state["spared"]
                armed.last_ns, armed.is_removed = state["last_ns"], state["is_removed"]
                armed.window.opened_ns = armed.window.armed.time_ns if state["was_open"] else None
                armed.window.is_closed = state["is_closed"]
                if armed.is_removed:
                    self._removed.append(armed)
                    continue
                self._armed[armed.label] = armed
                if armed.fired:
                    self._board.note_fault(armed.label)

    @property
    def marks(self) -> tuple[str, ...]:
        """The marks that are set, in the order of their moments."""
        with self._lock:
            return self._board.marks

    @property
    def sequence(self) -> int:
        """The number of injections so far."""
        return self._sequence

    # --- moments --------------------------------------------------------------------------------------------------

    def note_event(self, name: str) -> None:
        """Open and close windows by an event that happened now."""
        with self._lock:
            self._board.note_event(name)
        self.refresh()

    def note_mark(self, name: str) -> None:
        """Open and close windows by a mark that is set now."""
        with self._lock:
            self._board.note_mark(name)
        self.refresh()

    def note_position(self, position: int) -> None:
        """Open and close windows by a position that was reached."""
        with self._lock:
            self._board.note_position(position)
        self.refresh()

    def awaited(self) -> list[FaultTrigger]:
        """Return the moments that open or close windows."""
        with self._lock:
            return [trigger for armed in self._armed.values() for trigger in armed.window.awaited()]

    def refresh(self) -> None:
        """Open and close windows by the clock and by everything that was noted."""
        with self._lock:
            changes = _Changes(windows=self._refreshed())
        self._announce(changes)

    def _refreshed(self) -> list[ArmedRule]:
        return [armed for armed in self._armed.values() if armed.window.refresh(self._board)]

    def next_change_ns(self) -> int | None:
        """Return the monotonic time of the next window that opens or closes by the clock; None if none does."""
        with self._lock:
            times = [armed.window.next_change_ns() for armed in self._armed.values()]
        return min((time_ns for time_ns in times if time_ns is not None), default=None)

    # --- decisions ------------------------------------------------------------------------------------------------

    def decide(self, operation: FaultOperation) -> list[FaultDecision]:
        """Count an operation, and return the faults that it meets, in the order of arming."""
        with self._lock:
            if operation.position is not None:
                self._board.note_position(operation.position)
            changes = _Changes(windows=self._refreshed())
            fired = [
                decision
                for armed in self._armed.values()
                if armed.matcher.matches(operation) and (decision := self._decide(armed, operation)) is not None
            ]
            if fired:
                changes.windows += self._refreshed()
        self._announce(changes)
        return fired

    def decide_immediate(self, name: str) -> FaultDecision | None:
        """Return the fault of an immediate rule whose window is open; None if it has fired, or is not to fire."""
        with self._lock:
            armed = self._known(name)
            operation = FaultOperation(armed.rule.where.layer, IMMEDIATE)
            decision = self._decide(armed, operation) if armed.rule.is_immediate else None
            changes = _Changes(windows=self._refreshed() if decision else [])
        self._announce(changes)
        return decision

    def immediate_delay_ns(self, name: str) -> int:
        """Return the nanoseconds between the opening of an immediate rule's window and its fault."""
        with self._lock:
            armed = self._known(name)
            operation = FaultOperation(armed.rule.where.layer, IMMEDIATE)
            return FaultDecision(armed.rule, armed.label, operation, 1, armed.turns.stream).delay_ns()

    def take_back(self, decision: FaultDecision) -> None:
        """Do not count a fault that could not be carried out; the rule may have been removed meanwhile."""
        with self._lock:
            if (armed := self._armed.get(decision.label)) is not None:
                armed.fired -= 1

    def _decide(self, armed: ArmedRule, operation: FaultOperation) -> FaultDecision | None:
        """Decide in the order that the module :mod:`siterig.blockfs.core.fault_decisions` states."""
        while_file = armed.rule.when.while_file
        if not armed.window.is_open or (while_file is not None and not self._exists(Path(while_file))):
            return None
        armed.matched += 1
        if not armed.turns.fires(armed.matched, armed.fired):
            return None
        if armed.rule.what.cut_after is None:
            self._count(armed)
        return FaultDecision(armed.rule, armed.label, operation, armed.matched, armed.turns.stream)

    def _count(self, armed: ArmedRule) -> None:
        armed.fired += 1
        armed.last_ns = self._clock.wall_ns()
        self._board.note_fault(armed.label)
        if armed.rule.what.mark is not None:
            self._board.note_mark(armed.rule.what.mark)

    def confirm(self, decision: FaultDecision) -> bool:
        """Count a connection that is cut, long after the operation from which its bytes were counted.

        Returns:
            False if the rule has cut as many as it may, or was removed: then the connection lives on.
        """
        with self._lock:
            armed = self._armed.get(decision.label)
            if armed is None or armed.fired >= armed.turns.times:
                return False
            self._count(armed)
            changes = _Changes(windows=self._refreshed())
        self._announce(changes)
        return True

    # --- records --------------------------------------------------------------------------------------------------

    def record(self, decision: FaultDecision, done: str, ranges: Sequence[OperationRange] = ()) -> Injection:
        """Record a fault that was injected; it is logged, and shown in the report.

        Args:
            decision: the decision.
            done: what was done, in words: ``failed with EIO``.
            ranges: start and length of the bytes that were changed, lost or not delivered.
        """
        operation = decision.operation
        return self.adopt_injection(
            decision.label,
            operation=operation.title(),
            n=decision.n,
            time_ns=self._clock.wall_ns(),
            position=operation.position,
            done=done,
            ranges=ranges,
        )

    def adopt_injection(
        self,
        name: str,
        *,
        operation: str,
        n: int,
        time_ns: int,
        position: int | None,
        done: str,
        ranges: Sequence[OperationRange] = (),
    ) -> Injection:
        """Record a fault that was decided and injected elsewhere.

        Args:
            name: the rule; it may have been removed meanwhile.
            operation: the operation in words.
            n: the number of the operation among those that match the rule, from 1.
            time_ns: wall time in nanoseconds since the epoch.
            position: the position of the host at that time; None if the layer has none.
            done: what was done, in words.
            ranges: start and length of the bytes that were changed, lost or not delivered.
        """
        with self._lock:
            self._sequence += 1
            injection = Injection(
                sequence=self._sequence,
                rule=name,
                layer=self._layer_of(name),
                operation=operation,
                n=n,
                time=rfc3339(time_ns),
                position=position,
                done=done,
                ranges=tuple(ranges),
            )
            self._injections.append(injection)
        values = injection.model_dump(exclude={"time", "ranges"})
        _log.info("fault_injected", **values, **logged_ranges(injection.ranges))
        for listener in self._listeners:
            listener.injected(injection)
        return injection

    def _layer_of(self, name: str) -> str:
        armed = self._armed.get(name) or next((old for old in reversed(self._removed) if old.label == name), None)
        return "" if armed is None else armed.rule.where.layer

    @property
    def injections(self) -> list[Injection]:
        """The newest injections of the run, oldest first, at most ``INJECTIONS_KEPT``."""
        with self._lock:
            return list(self._injections)

    def adopt_counts(
        self, name: str, *, matched: int, fired: int, last_ns: int | None, waiting: int = 0, spared: int = 0
    ) -> None:
        """Take over the counts of a rule that another process or the C core decides.

        Args:
            name: the rule.
            matched: operations that matched it.
            fired: faults.
            last_ns: wall time of the last fault, in nanoseconds since the epoch; None if there was none.
            waiting: operations that the rule keeps waiting now.
            spared: operations that met no fault, because its damage might not have been recoverable.
        """
        with self._lock:
            armed = self._known(name)
            armed.matched, armed.last_ns, armed.waiting, armed.spared = matched, last_ns, waiting, spared
            if fired > armed.fired:
                self._board.note_fault(name)
                if armed.rule.what.mark is not None:
                    self._board.note_mark(armed.rule.what.mark)
            armed.fired = fired
        self.refresh()

    def status(self) -> list[RuleStatus]:
        """Return all rules that are armed, in the order of arming."""
        self.refresh()
        with self._lock:
            return [_status(armed) for armed in self._armed.values()]

    def verdicts(self) -> list[FaultVerdict]:
        """Return for each rule of the run, also a removed one, whether it fired as often as it should."""
        with self._lock:
            return [_verdict(armed) for armed in self.all_rules()]

    def _announce(self, changes: _Changes) -> None:
        for armed in changes.windows:
            _log.info("fault_window", rule=armed.label, is_open=armed.window.is_open)
        for listener in self._listeners:
            for armed in changes.windows:
                listener.window_changed(armed)
            for armed in changes.removed:
                listener.rule_removed(armed)


def _status(armed: ArmedRule) -> RuleStatus:
    state: Literal["waiting", "armed", "over", "removed"] = "waiting"
    if armed.is_removed:
        state = "removed"
    elif armed.window.is_closed:
        state = "over"
    elif armed.window.is_open:
        state = "armed"
    return RuleStatus(
        name=armed.label,
        words=armed.rule.words(),
        layer=armed.rule.where.layer,
        state=state,
        matched=armed.matched,
        fired=armed.fired,
        spared=armed.spared,
        last=rfc3339_or_none(armed.last_ns),
        waiting=armed.waiting,
        expected=str(armed.rule.expect.fired),
    )


def _verdict(armed: ArmedRule) -> FaultVerdict:
    expected = armed.rule.expect.fired
    ok = armed.fired in expected
    text = f"fault {armed.label!r} fired {_times(armed.fired)}; expected: {expected}"
    if not ok:
        reason = f"{_times(armed.matched)} an operation matched it"
        if armed.window.opened_ns is None:
            reason = f"its window did not open: {armed.window.after} did not come"
        elif not armed.matched:
            reason = "no operation matched it"
        elif armed.spared:
            reason = f"{reason}, and {_times(armed.spared)} the fault would not have been recoverable"
        text = f"{text}; {reason}"
    return FaultVerdict(name=armed.label, ok=ok, fired=armed.fired, expected=str(expected), text=text)


def _times(count: int) -> str:
    return "once" if count == 1 else "never" if not count else f"{count} times"
