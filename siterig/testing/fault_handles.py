"""The handle that a test gets for fault rules: on a rig, or on one disk of the workbench.

The methods block, and return when the change is in force.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import FaultControl, FaultSummary
from siterig.rpc.contract import Method
from siterig.scenarios.faults.catalog import LAYERS
from siterig.scenarios.faults.records import FaultVerdict, Injection, RuleStatus
from siterig.scenarios.faults.rule_files import with_file_in
from siterig.scenarios.faults.rules import FaultRule, read_rule
from siterig.testing.disk_handles import DiskHandle, FileSystemHandle
from siterig.testing.rig_handles import RigHandle, VmHandle
from siterig.testing.timeline import Timeline
from siterig.testing.trio_thread import run_in_thread

Rule = str | Mapping[str, Any]
"""A rule as words (``disk write error=EIO times=3``), or as the dictionary that TOML has."""
_POLL_S = 0.02
_DISK_LAYERS = ("disk", "log")


class _Target(Protocol):
    """The rig or disk that faults are for."""

    timeline: Timeline

    def ask(self, method: str, /, **arguments: object) -> Any:
        """Make a call of :class:`siterig.core.fault_contract.FaultControl`."""
        ...

    def placed(self, rule: FaultRule) -> dict[str, Any]:
        """Return the document of a rule, for the target only."""
        ...


class _RigTarget:
    def __init__(self, rig: RigHandle) -> None:
        self._rig, self.timeline = rig, rig.timeline

    def ask(self, method: str, /, **arguments: object) -> Any:
        async def call() -> Any:
            return await getattr(await self._rig.testbed.start_faults(), method)(**arguments)

        return run_in_thread(call)

    def placed(self, rule: FaultRule) -> dict[str, Any]:
        return rule.document()


class _DiskTarget:
    def __init__(self, disk: DiskHandle) -> None:
        self._disk, self.timeline = disk, disk.timeline

    def ask(self, method: str, /, **arguments: object) -> Any:
        return _contract(method).result.validate_python(self._disk.ask(method, **arguments))

    def placed(self, rule: FaultRule) -> dict[str, Any]:
        document = rule.document()
        where = document["where"]
        if rule.where.layer not in _DISK_LAYERS:
            raise RigError(
                Code.FaultNotPossible,
                f"fault {rule.label!r}: where.layer: {rule.where.layer!r}: the fixture has a disk and no rig; allowed: "
                f"{', '.join(_DISK_LAYERS)}",
            )
        if "vm" in where:
            raise RigError(
                Code.InvalidFault,
                f"fault {rule.label!r}: where.vm: {where['vm']!r}: the rule acts on the disk of the fixture; name no VM; "
                f"operations: {', '.join(LAYERS[rule.where.layer].operations)}",
            )
        # The name selects the random choices: it must not depend on the number of the disk.
        return document | {"name": rule.label, "where": where | {"vm": self._disk.name}}


class FaultsHandle:
    """The fault rules of one test, on a rig or on a disk.

    At the end of the test all of them are removed, and a rule that fired too rarely or too often fails the test.

    Attributes:
        seed: the seed of random choices, of the rules that have none.
        timeout_s: the longest wait of :meth:`wait`.
    """

    def __init__(self, at: RigHandle | VmHandle | DiskHandle | FileSystemHandle, *, seed: int, timeout_s: float) -> None:
        """Add rules to what a fixture gave.

        Args:
            at: a rig, a VM (its rig), a disk, or a file system (its disk).
            seed: the seed of random choices.
            timeout_s: the longest wait of :meth:`wait`.

        Raises:
            RigError: ``BadRequest`` for a rig that other processes use, too.
        """
        self.seed, self.timeout_s = seed, timeout_s
        at = at.rig if isinstance(at, VmHandle) else at.disk if isinstance(at, FileSystemHandle) else at
        if isinstance(at, RigHandle):
            at.check_own("faults")
        self._target: _Target = _RigTarget(at) if isinstance(at, RigHandle) else _DiskTarget(at)
        self._names: dict[str, None] = {}
        self._former: Counter[str] | None = None
        self._after = 0
        self._is_judged = False

    def add(self, *rules: Rule) -> list[RuleStatus]:
        """Arm rules, all or none, and return them.

        Args:
            rules: each as words (``disk write error=EIO times=3 name=journal``), or as the dictionary that TOML has:
                ``{"where": {"layer": "disk", "op": "write"}, "what": {"error": "EIO"}}``.

        Example:
            ``siterig_faults.add("disk write error=EIO times=1")``

        Raises:
            RigError: ``InvalidFault`` or ``FaultNotPossible``; the message names the key, its value and what is allowed.
        """
        read = [with_file_in(read_rule(rule), Path.cwd()) for rule in rules]
        documents = [self._target.placed(rule) for rule in read]
        self._begin()
        summary: FaultSummary = self._target.ask("add_faults", rules=documents, seed=self.seed)
        labels = [rule.label for rule in read]
        self._names |= dict.fromkeys(labels)
        self._is_judged = False
        for label in labels:
            self._target.timeline.add("fault_added", fault=label)
        return [status for status in summary.rules if status.name in labels]

    def rules(self) -> list[RuleStatus]:
        """Return the rules that are armed, with the number of operations that matched, and of faults."""
        return self._own(self._target.ask("list_faults").rules) if self._names else []

    def remove(self, name: str) -> None:
        """Remove a rule, and undo all that it keeps up; its verdict counts at the end of the test.

        Args:
            name: its name; a rule without a name has its words as name, as :meth:`rules` shows them.

        Raises:
            RigError: ``InvalidFault`` if there is none of this name.
        """
        self._known(name)
        self._target.ask("remove_fault", name=name)
        self._target.timeline.add("fault_removed", fault=name)

    def clear(self) -> int:
        """Remove all rules of this handle, and return their number."""
        armed = self.rules()
        for status in armed:
            self.remove(status.name)
        return len(armed)

    def wait(self, name: str, times: int = 1, timeout: float | None = None) -> RuleStatus:
        """Wait until a rule has fired so often.

        Args:
            name: the rule.
            times: the number of faults.
            timeout: the longest wait in seconds; None for the setting ``timeout``.

        Raises:
            RigError: ``FaultNotFired``; ``InvalidFault`` if there is no such rule.
        """
        self._known(name)
        limit_s = self.timeout_s if timeout is None else timeout

        async def until() -> RuleStatus:
            with SYSTEM_CLOCK.move_on_after(limit_s):
                while not (found := self._status(name)).fired >= times:
                    await SYSTEM_CLOCK.sleep(_POLL_S)
                return found
            fired = self._status(name).fired
            text = f"fault {name!r} has fired {fired} of {times} times within {limit_s:g} s"
            raise RigError(Code.FaultNotFired, text)

        return run_in_thread(until)

    def _status(self, name: str) -> RuleStatus:
        found = next((status for status in self.rules() if status.name == name), None)
        if found is None:
            raise RigError(Code.InvalidFault, f"fault {name!r} was removed")
        return found

    def mark(self, name: str) -> None:
        """Set a mark: rules with ``after=mark:NAME`` begin, those with ``until=mark:NAME`` end."""
        self._begin()
        self._target.ask("note_mark", name=name)
        self._target.timeline.add("mark_set", mark=name)

    def injections(self, name: str | None = None) -> list[Injection]:
        """Return the faults that happened, oldest first: the operation, and what was done to it.

        Args:
            name: only those of this rule.
        """
        if not self._names:
            return []
        found: list[Injection] = self._target.ask("injections", after=self._after)
        return [each for each in found if each.rule in self._names and name in (None, each.rule)]

    def verdicts(self) -> list[FaultVerdict]:
        """Return for each rule, also a removed one, whether it fired as often as it should."""
        if self._former is None:
            return []
        seen: Counter[str] = Counter()
        found = []
        for verdict in self._target.ask("verdicts"):
            seen[verdict.name] += 1
            if verdict.name in self._names and seen[verdict.name] > self._former[verdict.name]:
                found.append(verdict)
        return found

    def check(self) -> None:
        """Remove all rules, and check that each fired as often as it should; the end of a test does it.

        Raises:
            RigError: ``FaultNotFired`` with the verdicts.
        """
        if self._is_judged:
            return
        self._is_judged = True
        self.clear()
        if wrong := [verdict.text for verdict in self.verdicts() if not verdict.ok]:
            raise RigError(Code.FaultNotFired, "; ".join(wrong))

    def keep(self, folder: Path) -> list[Path]:
        """Save the verdicts and the injections to ``faults.json`` in a folder; return the file."""
        folder.mkdir(parents=True, exist_ok=True)
        found = {"seed": self.seed, "verdicts": _dumped(self.verdicts()), "injections": _dumped(self.injections())}
        (folder / "faults.json").write_text(json.dumps(found, indent=1) + "\n")
        return [folder / "faults.json"]

    def _begin(self) -> None:
        """Note what was there before the first change: a rig and a disk server have rules of former tests, too."""
        if self._former is None:
            injections = self._target.ask("injections", after=0)
            self._after = injections[-1].sequence if injections else 0
            self._former = Counter(verdict.name for verdict in self._target.ask("verdicts"))

    def _own(self, statuses: Sequence[RuleStatus]) -> list[RuleStatus]:
        return [status for status in statuses if status.name in self._names]

    def _known(self, name: str) -> None:
        if name not in self._names:
            there = ", ".join(self._names) or "none"
            raise RigError(Code.InvalidFault, f"this test has added no fault {name!r}; it has added: {there}")


@functools.cache
def _contract(method: str) -> Method:
    return Method.of(FaultControl.__name__, getattr(FaultControl, method))


def _dumped(records: Sequence[FaultVerdict] | Sequence[Injection]) -> list[dict[str, Any]]:
    return [record.model_dump(mode="json") for record in records]
