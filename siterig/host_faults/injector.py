"""The injector of the layers log and store in one process; a role serves it as a :class:`FaultInjector`.

Fault contract: rules end with the process.  Without rules the calls of the process are those of the operating system, and
the engine in C has no hook.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.core.fault_contract import ArmedFaults, FaultInjector, FaultPlan, FaultReport
from siterig.host_faults import damage
from siterig.host_faults.faulty_calls import FaultyCalls
from siterig.host_faults.host_rules import HostRule
from siterig.host_faults.places import FilePlaces
from siterig.host_faults.rule_book import RuleBook
from siterig.scenarios.faults.atlas import FaultAtlas

PATIENCE_S_MAX = 4.0
TARGETS_MAX = 20
"""At most so many files of a rule are listed."""


class HostFileInjector(FaultInjector):
    """Injects the faults of change logs and managed disks into one process.  Use it on one trio thread.

    Args:
        places: the files of the process, for each layer once.
        acts_at_once: False in a process that has the same files as another one: that one carries out immediate faults.
        clock: the time of injections.
        atlas: the intact copies of blocks, for rules with ``recoverable = true``; None if they are not known here.
    """

    def __init__(
        self,
        places: Sequence[FilePlaces],
        *,
        acts_at_once: bool = True,
        clock: Clock = SYSTEM_CLOCK,
        atlas: FaultAtlas | None = None,
    ) -> None:
        self.names: dict[str, tuple[str, str]] = {}
        """VM and name of managed disks by their id, as the director knows them."""
        self._book = RuleBook(places, clock=clock, atlas=atlas)
        self._calls = FaultyCalls(self._book)
        self._acts_at_once = acts_at_once
        self._clock = clock
        self._in_force = False
        self._news = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._book.has_news = self._wake

    @property
    def is_in_force(self) -> bool:
        """True if a rule is armed."""
        return self._in_force

    def close(self) -> None:
        """Remove all rules."""
        self._book.remove([rule.name for rule in self._book.rules()])
        self._follow()

    def _follow(self) -> None:
        """Put the rules in force, or none."""
        wanted = bool(self._book.rules())
        if wanted and not self._in_force:
            self._calls.begin()
        elif not wanted and self._in_force:
            self._calls.end()
        self._in_force = wanted
        self._calls.rules_changed()

    # --- the contract ---------------------------------------------------------------------------------------------

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        new = self._book.add(plans)
        try:
            for rule in new:
                if rule.rule.is_immediate and rule.is_open and self._acts_at_once:
                    damage.check_possible(self._book, rule)
            self._follow()
            for rule in new:
                await self._act(rule)
        except BaseException:
            self._book.remove([rule.name for rule in new])
            self._follow()
            raise
        return self._armed(new)

    async def _act(self, rule: HostRule) -> None:
        if rule.rule.is_immediate and rule.is_open and self._acts_at_once:
            await trio.to_thread.run_sync(damage.act_at_once, self._book, rule)

    def _armed(self, rules: Sequence[HostRule]) -> ArmedFaults:
        targets = {}
        for rule in rules:
            paths = [str(file.path) for file in self._book.files_of(rule)]
            rest = [f"and {len(paths) - TARGETS_MAX} more files"] if len(paths) > TARGETS_MAX else []
            targets[rule.name] = paths[:TARGETS_MAX] + rest
        return ArmedFaults(targets=targets)

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        self._book.remove(names)
        self._follow()
        return ArmedFaults(targets={})

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        rule = self._book.rule(name)
        rule.is_open = is_open
        self._calls.rules_changed()
        await self._act(rule)
        return self._armed([rule])

    async def name_disks(self, *, disks: Mapping[str, tuple[str, str]]) -> None:
        self.names.update(disks)

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        self._token = trio.lowlevel.current_trio_token()
        after = after if epoch == self._book.epoch else 0
        self._book.report(after)  # everything up to there has arrived
        with self._clock.move_on_after(min(patience_s, PATIENCE_S_MAX)):
            while self._book.sequence <= after:
                await self._news.wait()
        return self._book.report(after)

    def _wake(self) -> None:
        if self._token is not None:
            self._token.run_sync_soon(self._set_news, idempotent=True)

    def _set_news(self) -> None:
        self._news.set()
        self._news = trio.Event()
