"""The rules that are armed in one process, the files that they are for, and the injections: decisions and records.

Threads: every method may be called from every thread; a decision takes one lock for a moment and calls nothing.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from siterig.blockfs.core import fault_decisions as decisions
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import DiskCopies, FaultCount, FaultPlan, InjectedFault
from siterig.host_faults.host_rules import HostRule
from siterig.host_faults.places import FilePlaces, HostFile, HostLayer
from siterig.host_faults.written_bytes import WrittenBytes
from siterig.scenarios.faults.catalog import READS
from siterig.scenarios.faults.operations import FaultOperation, OperationRange
from siterig.scenarios.faults.records import logged_ranges

KILL_AFTER_S = 2.0
"""A process that a rule kills waits at most so long for its report to arrive."""
_KILL_POLL_S = 0.01
_log = structlog.get_logger("faults")


@dataclass(slots=True)
class HostVerdict:
    """The faults that one operation meets.

    Args:
        file: the file.
        operation: the operation.
        hits: the rules that fire, with the number of the operation, in the order of arming.
        allowed: start and length of the bytes in the file that a rule may damage; for rules that must ask.
    """

    file: HostFile
    operation: FaultOperation
    hits: list[tuple[HostRule, int]] = field(default_factory=list)
    allowed: dict[str, list[OperationRange]] = field(default_factory=dict)

    def with_effect(self, effect: str, *, late: bool | None = None) -> list[tuple[HostRule, int]]:
        """Return the rules with an effect, and with that timing if one is given."""
        return [
            (rule, n) for rule, n in self.hits if effect in rule.effects and late in (None, rule.rule.when.timing == "after")
        ]


class _OwnCalls(threading.local):
    """True in a thread that carries out an immediate fault: its calls are no operations."""

    is_own = False


class RuleBook:
    """All rules for the host's files in one process.

    Args:
        places: the files, one for each layer.
        clock: the time of injections.
    """

    def __init__(
        self,
        places: Sequence[FilePlaces],
        *,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.places = tuple(places)
        self.has_news: Callable[[], None] = lambda: None
        """Called without the lock after each injection, in any thread."""
        self.leave_report: Callable[[], bool] = lambda: False
        """Leaves the report of a process that a rule kills for the next one; returns False if this thread cannot."""
        self.copies = DiskCopies()
        """The disks that rules with ``recoverable = true`` may damage."""
        self._clock = clock
        self._lock = threading.Lock()
        self._own = _OwnCalls()
        self._rules: dict[str, HostRule] = {}
        self._injections: list[InjectedFault] = []
        self._sequence = self._arrived = 0

    @property
    def layers(self) -> set[HostLayer]:
        """The layers whose files this process has."""
        return {places.layer for places in self.places}

    # --- rules ----------------------------------------------------------------------------------------------------

    def add(self, plans: Sequence[FaultPlan]) -> list[HostRule]:
        """Arm rules, all or none, and return the new ones; those that are armed already stay as they are.

        Raises:
            RigError: ``FaultNotPossible``, ``InvalidFault``.
        """
        with self._lock:
            new = [self.checked(plan) for plan in plans if plan.name not in self._rules]
            self._rules |= {rule.name: rule for rule in new}
        for rule in new:
            _log.info("fault_armed", rule=rule.name, words=rule.rule.words())
        return new

    def checked(self, plan: FaultPlan) -> HostRule:
        """Return the rule of a plan, which is not armed yet.

        Raises:
            RigError: ``FaultNotPossible``, ``InvalidFault``.
        """
        rule = HostRule(plan)
        rule.check(self.layers)
        return rule

    def remove(self, names: Sequence[str]) -> dict[str, FaultCount]:
        """Remove rules, and return their last counts; unknown names are ignored."""
        with self._lock:
            removed = [rule for name in names if (rule := self._rules.pop(name, None)) is not None]
        counts = {rule.name: rule.count() for rule in removed}
        for name, count in counts.items():
            _log.info("fault_removed", rule=name, matched=count.matched, fired=count.fired)
        return counts

    def rule(self, name: str) -> HostRule:
        """Return a rule.

        Raises:
            RigError: ``FaultNotPossible`` if there is none of that name.
        """
        with self._lock:
            if name not in self._rules:
                known = ", ".join(self._rules) or "none"
                raise RigError(Code.FaultNotPossible, f"fault {name!r}: is not armed in this process; armed: {known}")
            return self._rules[name]

    def spares_copies(self, file: HostFile) -> bool:
        """Return True if a rule for the file asks which bytes of the disk are written to it."""
        with self._lock:
            return any(rule.rule.spares_last_copies and rule.is_about(file) for rule in self._rules.values())

    def rules(self) -> list[HostRule]:
        """Return all rules in the order of arming."""
        with self._lock:
            return list(self._rules.values())

    def file_of(self, path: Path) -> HostFile | None:
        """Return the file of a path; None if no rule can be for it."""
        return next((file for places in self.places if (file := places.file_of(path)) is not None), None)

    def places_of(self, file: HostFile) -> FilePlaces:
        """Return the places that a file belongs to."""
        return next(places for places in self.places if places.layer == file.layer)

    def files_of(self, rule: HostRule) -> list[HostFile]:
        """Return the files at the place of a rule that exist now, for a fault at once only those that hold something."""
        found = [file for places in self.places for file in places.files() if rule.is_about(file)]
        return [file for file in found if not file.is_spare] if rule.rule.is_immediate else found

    # --- decisions ------------------------------------------------------------------------------------------------

    def judge(
        self,
        file: HostFile,
        op: str,
        start: int | None = None,
        length: int = 0,
        *,
        position: int | None = None,
        new_bytes: Callable[[], int | None] = lambda: None,
        skips: Sequence[str] = (),
        only: str | None = None,
        judged: str | None = None,
        written: Callable[[], Sequence[WrittenBytes]] = list,
    ) -> HostVerdict | None:
        """Count an operation, and return the faults that it meets; None if it meets none.

        Args:
            file: the file.
            op: the operation.
            start: its first byte in the file; None without bytes.
            length: its bytes.
            position: the position of the record that it writes, if it writes one.
            new_bytes: returns the bytes that take space on the host's disk; None for an allocation.
            skips: effects that cannot happen to this operation, which is not counted then.
            only: the only effect that can happen.
            judged: another name of the operation: rules that are for it have judged it already.
            written: returns the bytes of the disk that it writes, as far as they are known.
        """
        if self._own.is_own:
            return None
        operation = FaultOperation(file.layer, op, file.place, start=start, length=length, position=position)
        verdict, taken = HostVerdict(file, operation), list[tuple[HostRule, int]]()
        with self._lock:
            for rule in self._rules.values():
                if rule.rule.is_immediate or set(skips) & set(rule.effects):
                    continue
                if (only is not None and only not in rule.effects) or judged in rule.rule.operations:
                    continue
                if not rule.matches(operation):
                    continue
                if "full_after" in rule.effects and rule.take_space(new := new_bytes()):
                    taken.append((rule, new or 0))
                    continue
                n = rule.decide(self._clock.wall_ns())
                if n is None:
                    continue
                if rule.rule.spares_last_copies and op not in READS and file.part != "checkpoint":  # a cache, without blocks
                    verdict.allowed[rule.name] = rule.may_damage(file, written(), self.copies)
                    if not verdict.allowed[rule.name]:
                        rule.spare()
                        continue
                verdict.hits.append((rule, n))
            if any(rule.fails_operation for rule, _ in verdict.hits):
                for rule, new in taken:
                    rule.filled_bytes -= new  # nothing is written
        return verdict if verdict.hits else None

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """Let the calls of this thread meet no fault in the block."""
        self._own.is_own = True
        try:
            yield
        finally:
            self._own.is_own = False

    def decide_immediate(self, rule: HostRule) -> int | None:
        """Return the number of an immediate fault, 1, if it has not happened yet."""
        with self._lock:
            return rule.decide(self._clock.wall_ns()) if rule.is_open and not rule.fired else None

    # --- records --------------------------------------------------------------------------------------------------

    def record(
        self, rule: HostRule, n: int, operation: FaultOperation, done: str, ranges: Sequence[OperationRange] = ()
    ) -> int:
        """Record a fault that was injected, and return its sequence number."""
        injection = InjectedFault(
            name=rule.name,
            operation=operation.title(),
            n=n,
            time_ns=self._clock.wall_ns(),
            position=operation.position,
            done=done,
            ranges=tuple(ranges),
        )
        with self._lock:
            self._sequence += 1
            self._injections.append(injection)
            sequence = self._sequence
        _log.info(
            "fault_injected",
            rule=rule.name,
            operation=injection.operation,
            n=n,
            done=done,
            **logged_ranges(ranges),
        )
        self.has_news()
        return sequence

    def take_injections(self) -> list[InjectedFault]:
        """Return the injections since the last call, oldest first."""
        with self._lock:
            taken, self._injections = self._injections, []
        return taken

    def counts(self) -> dict[str, FaultCount]:
        """Return the counts of all rules."""
        return {rule.name: rule.count() for rule in self.rules()}

    def note_arrived(self, sequence: int) -> None:
        """Note that the director has all injections up to this one."""
        self._arrived = max(self._arrived, sequence)

    def kill(self, rule: HostRule, sequence: int) -> None:
        """Send this process the signal of a rule, as soon as its record has arrived, or is left for the next process."""
        is_left = self.leave_report()
        until_ns = self._clock.monotonic_ns() + int(KILL_AFTER_S * 1e9)
        while not is_left and self._arrived < sequence and self._clock.monotonic_ns() < until_ns:
            self._clock.sleep_thread(_KILL_POLL_S)
        os.kill(os.getpid(), signal.Signals[rule.rule.what.kill or "SIGKILL"])


def flipped_bits(rule: HostRule, n: int, range_bits: int) -> list[int]:
    """Return the bits of a range that a rule inverts."""
    flip = rule.rule.what.flip
    return decisions.flipped_bits(rule.turns.stream, n, range_bits, flip.bits if flip else 1)


def torn_ranges(rule: HostRule, n: int, length: int) -> list[tuple[int, int]]:
    """Return start and end of the parts of a torn write that reach the file."""
    tear = rule.rule.what.tear
    if tear is None:
        return [(0, length)]
    return decisions.torn_ranges(rule.turns.stream, n, length, parts=tear.parts, sizes=tear.sizes, keep=tear.keep)
