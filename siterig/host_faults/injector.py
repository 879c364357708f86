"""The injector of the layers log and store in one process; a role serves it as a :class:`FaultInjector`.

Fault contract: rules end with the process.  Without rules the calls of the process are those of the operating system, and
the engine in C has no hook.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.json_text import json_text
from siterig.core.fault_contract import ArmedFaults, DiskCopies, FaultInjector, FaultPlan, FaultReport
from siterig.faults.injection_log import InjectionLog
from siterig.host_faults import damage
from siterig.host_faults.disk_names import DiskNames
from siterig.host_faults.faulty_calls import FaultyCalls
from siterig.host_faults.host_rules import HostRule
from siterig.host_faults.places import FilePlaces, HostLayer
from siterig.host_faults.rule_book import RuleBook

TARGETS_MAX = 20
"""At most so many files of a rule are listed."""
NAMES_EVERY_S = 2.0
"""The delay between two questions for the names of managed disks, while rules are armed."""
_log = structlog.get_logger("faults")


class HostFileInjector(FaultInjector):
    """Injects the faults of change logs and managed disks into one process; :meth:`run` must run while rules are armed.

    Use it on one trio thread; there is one in a process.

    Attributes:
        log: the log of injections, which other injectors of the process may use, too.

    Args:
        places: the files of the process, for each layer once.
        lent_layers: layers whose files belong to another process, which carries out immediate faults.
        must_match: refuse a rule that matches no file now; otherwise another process may have such files.
        names: the names of the managed disks, which are asked for while rules are armed; None without managed disks.
        clock: the time of injections.
        last_report: the file in which a process that a rule kills leaves its report, if it cannot wait for the director to
            get it; None without a successor.
    """

    def __init__(
        self,
        places: Sequence[FilePlaces],
        *,
        lent_layers: Collection[HostLayer] = (),
        must_match: bool = False,
        names: DiskNames | None = None,
        clock: Clock = SYSTEM_CLOCK,
        last_report: Path | None = None,
    ) -> None:
        self._book = RuleBook(places, clock=clock)
        self._calls = FaultyCalls(self._book)
        self.log = InjectionLog(self._book.counts, clock)
        self._lent, self._must_match, self._names, self._clock = frozenset(lent_layers), must_match, names, clock
        self._epoch = ""
        self._token: trio.lowlevel.TrioToken | None = None
        self._in_force = False
        self._changed = trio.Event()
        self._book.has_news = self._wake
        self._last_report = last_report
        self._book.leave_report = self._leave_report

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Follow the names of managed disks until cancelled; then remove all rules."""
        task_status.started()
        try:
            while True:
                changed = self._changed
                if self._in_force:
                    await self._learn_names()
                    with self._clock.move_on_after(NAMES_EVERY_S):
                        await changed.wait()
                else:
                    await changed.wait()
        finally:
            self.close()

    def close(self) -> None:
        """Remove all rules."""
        self._remove([rule.name for rule in self._book.rules()])

    async def _learn_names(self) -> None:
        if self._names is not None and await self._names.learn():
            self._calls.files_changed()

    def _follow(self) -> None:
        """Put the rules in force, or none."""
        wanted = bool(self._book.rules())
        if wanted and not self._in_force:
            self._token = trio.lowlevel.current_trio_token()
            self._calls.begin()
        elif not wanted and self._in_force:
            self._calls.end()
        self._in_force = wanted
        self._calls.rules_changed()
        self._changed.set()
        self._changed = trio.Event()

    def _remove(self, names: Sequence[str]) -> None:
        for name, count in self._book.remove(names).items():
            self.log.note_over(name, count)
        self._follow()

    def check(self, plan: FaultPlan) -> None:
        """Refuse a rule that cannot be armed here.

        Raises:
            RigError: ``FaultNotPossible``.
        """
        self._check_matches(self._book.checked(plan))

    # --- the contract ---------------------------------------------------------------------------------------------

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        new = self._book.add(plans)
        try:
            await self._learn_names()
            for rule in new:
                self.log.forget_over(rule.name)
                self._check_matches(rule)
            self._follow()
            for rule in new:
                await self._act(rule)
        except BaseException:
            self._remove([rule.name for rule in new])
            raise
        return self._armed([self._book.rule(plan.name) for plan in plans])

    def _check_matches(self, rule: HostRule) -> None:
        if self._must_match and not self._book.files_of(rule):
            raise damage.not_possible(rule, "there is no such file now")

    def _is_due(self, rule: HostRule) -> bool:
        return rule.rule.is_immediate and rule.is_open and rule.layer not in self._lent

    async def _act(self, rule: HostRule) -> None:
        if self._is_due(rule):
            await trio.to_thread.run_sync(damage.act_at_once, self._book, rule)
            self._note_news()

    def _armed(self, rules: Sequence[HostRule]) -> ArmedFaults:
        targets = {}
        for rule in rules:
            paths = [str(file.path) for file in self._book.files_of(rule)]
            rest = [f"and {len(paths) - TARGETS_MAX} more files"] if len(paths) > TARGETS_MAX else []
            targets[rule.name] = paths[:TARGETS_MAX] + rest
        return ArmedFaults(targets=targets)

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        self._remove(names)
        return ArmedFaults(targets={})

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        rule = self._book.rule(name)
        rule.is_open = is_open
        self._calls.rules_changed()
        await self._act(rule)
        return self._armed([rule])

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        if epoch == self._epoch:
            self._book.note_arrived(after)
        self._note_news()
        report = await self.log.report(after=after, epoch=epoch, patience_s=patience_s)
        self._epoch = report.epoch
        return report

    async def note_copies(self, *, copies: DiskCopies) -> None:
        self._book.copies = copies

    def _note_news(self) -> None:
        for injected in self._book.take_injections():
            self.log.add(injected)

    def _leave_report(self) -> bool:
        """Write the report of this process, which is killed by a rule; in another thread the director can get it itself."""
        if self._last_report is None or not trio.lowlevel.in_trio_task():
            return False
        self._note_news()
        try:
            write_atomically(self._last_report, json_text(self.log.last_report()).encode())
        except (OSError, RigError) as error:
            _log.error("last_faults_not_written", path=str(self._last_report), reason=str(error))
        return True

    def _wake(self) -> None:
        if self._token is not None:
            self._token.run_sync_soon(self._note_news, idempotent=True)
