"""The director of a rig's faults: it holds the schedule, and tells the injectors which rules are in force.

Each change returns when it is in force.  Changes happen one at a time, in the order of the calls; reading waits for none of
them.

Fault contract: the director can be killed at any moment.  :mod:`siterig.director.run_file` keeps the rules and their
counts, so that the next director continues the run; the injectors of other roles keep their rules meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import FaultControl, FaultSummary
from siterig.director.injectors import LayerInjector, not_possible
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.records import FaultVerdict, Injection, RuleStatus
from siterig.scenarios.faults.rules import FaultRule, mark_words, read_rule
from siterig.scenarios.faults.schedule import ArmedRule, FaultListener, FaultSchedule

_log = structlog.get_logger("faults")


async def _nobody(_count: int) -> None:
    pass


class FaultDirector(FaultControl, FaultListener):
    """The director of one rig.  Use it on one trio thread; :meth:`run` must run.

    Args:
        schedule: the rules; the director subscribes to it.
        injectors: the injectors; each layer belongs to one of them at most.
        clock: the clock of the schedule.
        save: called after each change of rules, windows or counts, before an immediate fault acts.
        note_count: awaited with the number of rules after it changed.
        remedies: how to have the faults of layers that belong to none of the injectors.
    """

    def __init__(
        self,
        schedule: FaultSchedule,
        injectors: Sequence[LayerInjector],
        *,
        clock: Clock = SYSTEM_CLOCK,
        save: Callable[[], None] = lambda: None,
        note_count: Callable[[int], Awaitable[None]] = _nobody,
        remedies: Mapping[LayerName, str] | None = None,
    ) -> None:
        self._schedule = schedule
        self._injectors = list(injectors)
        self._clock = clock
        self._save, self._note_count, self._remedies = save, note_count, remedies or {}
        self._changing = trio.Lock()
        self._changed_windows: deque[ArmedRule] = deque()
        self._news = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        schedule.subscribe(self)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open and close windows, and let the injectors work, until cancelled."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for injector in self._injectors:
                nursery.start_soon(injector.run)
            nursery.start_soon(self._follow_windows)
            task_status.started()

    async def resume(self) -> None:
        """Continue a run whose rules the schedule has already; the failure of an injector is logged."""
        async with self._changing:
            for injector in self._injectors:
                own = [armed for armed in self._schedule.armed() if armed.rule.where.layer in injector.layers]
                try:
                    await injector.resume([armed for armed in own if not _is_only_mark(armed.rule)])
                except RigError as error:
                    _log.error("faults_not_resumed", layers=injector.layers, code=error.code, reason=error.message)
            self._changed_windows += filter(_is_due, self._schedule.armed())
        self._wake()

    # --- listening --------------------------------------------------------------------------------------------------

    def window_changed(self, armed: ArmedRule) -> None:
        self._changed_windows.append(armed)
        self._wake()

    def injected(self, injection: Injection) -> None:
        self._wake()

    def _wake(self) -> None:
        if self._token is not None:
            self._token.run_sync_soon(self._set_news, idempotent=True)

    def _set_news(self) -> None:
        self._news.set()
        self._news = trio.Event()

    def next_change(self) -> trio.Event:
        """Return the event that is set at the next change of rules, windows or injections."""
        return self._news

    async def _follow_windows(self) -> None:
        """Act on windows that open and close by the clock, by moments, and by operations."""
        while True:
            news = self._news
            if self._changed_windows:
                async with self._changing:
                    await self._settle()
            self._schedule.refresh()
            if self._changed_windows:
                continue
            due_ns = self._schedule.next_change_ns()
            if due_ns is None:
                await news.wait()
            else:
                with self._clock.move_on_after(max(0.0, (due_ns - self._clock.monotonic_ns()) / 1e9)):
                    await news.wait()

    async def settled(self) -> None:
        """Return when all windows that changed so far are in force."""
        async with self._changing:
            await self._settle()

    async def _settle(self, added: Collection[ArmedRule] = ()) -> None:
        """Act on all windows that changed; the caller holds the lock.

        Raises:
            RigError: a fault of a rule in ``added`` failed; that of an older rule is logged, and does not count.
        """
        while self._changed_windows:
            armed = self._changed_windows.popleft()
            if armed.is_removed:
                continue
            try:
                with trio.CancelScope(shield=armed not in added):  # a caller that ends must not take it along
                    await self._follow(armed)
            except RigError as error:
                if armed in added:
                    raise
                _log.error("fault_failed", rule=armed.label, code=error.code, reason=error.message)
        self._save()
        self._set_news()  # a new rule may have another time to wait for

    async def _follow(self, armed: ArmedRule) -> None:
        is_mark = _is_only_mark(armed.rule)
        injector = None if is_mark else self._injector(armed.rule)
        if injector is not None:
            await (injector.window_opened(armed) if armed.window.is_open else injector.window_closed(armed))
        if not armed.window.is_open or not armed.rule.is_immediate or (injector is not None and injector.is_remote):
            return
        delay_s = self._schedule.immediate_delay_ns(armed.label) / 1e9
        if delay_s and self._nursery is not None:
            self._nursery.start_soon(self._act_later, armed, injector, delay_s)
        else:
            await self._act(armed, injector)

    async def _act_later(self, armed: ArmedRule, injector: LayerInjector | None, delay_s: float) -> None:
        """Carry out an immediate fault after its delay, in which other rules can change."""
        await self._clock.sleep(delay_s)
        async with self._changing:
            if armed.is_removed or not armed.window.is_open:
                return
            try:
                await self._act(armed, injector)
            except RigError as error:
                _log.error("fault_failed", rule=armed.label, code=error.code, reason=error.message)
            await self._settle()

    async def _act(self, armed: ArmedRule, injector: LayerInjector | None) -> None:
        decision = self._schedule.decide_immediate(armed.label)
        if decision is None:
            return
        self._save()  # after a kill of this process the fault must not happen a second time
        try:
            done = mark_words(decision.rule) if injector is None else await injector.act(decision)
        except OSError as error:
            self._schedule.take_back(decision)
            raise not_possible(armed.rule, f"it failed: {error}") from error
        except RigError:
            self._schedule.take_back(decision)
            raise
        self._schedule.record(decision, done)

    def _injector(self, rule: FaultRule) -> LayerInjector:
        for injector in self._injectors:
            if rule.where.layer in injector.layers:
                return injector
        layers = [layer for injector in self._injectors for layer in injector.layers]
        remedy = self._remedies.get(rule.where.layer, "")
        text = f"where.layer: {rule.where.layer!r} has no faults here; allowed: {', '.join(layers)}"
        raise not_possible(rule, f"{text}; {remedy}" if remedy else text)

    # --- calls ------------------------------------------------------------------------------------------------------

    async def add_faults(self, *, rules: list[dict[str, Any]], seed: int | None = None) -> FaultSummary:
        read = [read_rule(rule) for rule in rules]
        async with self._changing:
            new = [rule for rule in read if not self._is_armed(rule)]
            for rule in new:
                if not _is_only_mark(rule):
                    await self._injector(rule).check(rule)
            added = self._schedule.add(new, seed=seed)
            self._save()  # the next director finds all rules that an injector may have
            await self._arm(added)
            await self._note_count(len(self._schedule.armed()))
        return await self.list_faults()

    def _is_armed(self, rule: FaultRule) -> bool:
        return any(
            armed.label == rule.label and armed.rule.document() == rule.document() for armed in self._schedule.armed()
        )

    async def _arm(self, added: Sequence[ArmedRule]) -> None:
        by_injector = self._by_injector(added)
        try:
            for injector, rules in by_injector:
                await injector.arm(rules)
            await self._settle(added)
        except BaseException:
            with trio.CancelScope(shield=True):
                for injector, rules in by_injector:  # an operation may have met a rule before its turn
                    try:
                        await injector.disarm(rules)
                    except RigError as error:  # the first failure is the one that the caller gets
                        _log.error("faults_not_undone", layers=injector.layers, code=error.code, reason=error.message)
            self._schedule.discard([armed.label for armed in added])
            self._save()
            raise

    def _by_injector(self, rules: Sequence[ArmedRule]) -> list[tuple[LayerInjector, list[ArmedRule]]]:
        found = [
            (
                injector,
                [armed for armed in rules if armed.rule.where.layer in injector.layers and not _is_only_mark(armed.rule)],
            )
            for injector in self._injectors
        ]
        return [(injector, own) for injector, own in found if own]

    async def list_faults(self) -> FaultSummary:
        await self._collect()
        return FaultSummary(seed=self._schedule.seed, rules=self._schedule.status())

    async def _collect(self) -> None:
        for injector in self._injectors:
            await injector.collect()

    async def remove_fault(self, *, name: str) -> FaultSummary:
        async with self._changing:
            rules = [self._schedule.rule(name)]
            with trio.CancelScope(shield=True):  # half removed rules would be armed for the list only
                await self._remove(rules)
        return await self.list_faults()

    async def clear_faults(self) -> int:
        async with self._changing:
            armed = self._schedule.armed()
            with trio.CancelScope(shield=True):
                await self._remove(armed)
        return len(armed)

    async def _remove(self, rules: Sequence[ArmedRule]) -> None:
        self._schedule.end([armed.label for armed in rules])
        by_injector = self._by_injector(rules)
        by_injector.sort(key=lambda found: "process" not in found[0].layers)  # roles that a rule has stopped continue first
        failed: RigError | None = None
        kept = set[str]()
        for injector, own in by_injector:
            try:
                await injector.disarm(own)
            except RigError as error:  # the rules of the other layers must end all the same
                _log.error("faults_not_removed", layers=injector.layers, code=error.code, reason=error.message)
                failed = failed or error
                kept.update(armed.label for armed in own)
        for armed in rules:
            if armed.label not in kept:  # one that may still be in force stays in the list, to be removed again
                self._schedule.remove(armed.label)
        await self._settle()
        await self._note_count(len(self._schedule.armed()))
        if failed is not None:
            raise failed

    async def wait_fired(self, *, name: str, times: int) -> RuleStatus:
        await self._collect()
        armed = self._schedule.rule(name)
        while armed.fired < times:
            news = self._news
            if armed.is_removed:
                raise RigError(
                    Code.InvalidFault,
                    f"fault {name!r} was removed; it had fired {armed.fired} of {times} times",
                )
            await news.wait()
        return next(status for status in self._schedule.status() if status.name == name)

    async def note_mark(self, *, name: str) -> None:
        self._schedule.note_mark(name)
        async with self._changing:
            await self._settle()

    async def injections(self, *, after: int) -> list[Injection]:
        await self._collect()
        return [injection for injection in self._schedule.injections if injection.sequence > after]

    async def verdicts(self) -> list[FaultVerdict]:
        await self._collect()
        return self._schedule.verdicts()


def _is_due(armed: ArmedRule) -> bool:
    """Return True for an immediate fault that should have happened already."""
    return armed.rule.is_immediate and armed.window.is_open and not armed.fired


def _is_only_mark(rule: FaultRule) -> bool:
    """Return True if a rule does nothing but set a mark when its window opens; no injector has to know it."""
    return rule.is_immediate and rule.what.keys() == ("mark",)
