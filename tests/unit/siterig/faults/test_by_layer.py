"""Several injectors of one process as one."""

from __future__ import annotations

import pytest

from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import ArmedFaults, DiskCopies, FaultInjector, FaultPlan, FaultReport
from siterig.faults.by_layer import LayeredInjector
from siterig.scenarios.faults.rules import read_rule


class RecordingInjector(FaultInjector):
    """An injector that writes down the calls of all injectors of a test."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls, self.is_refusing = name, calls, False

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        if self.is_refusing:
            raise RigError(Code.FaultNotPossible, "no")
        without = {plan.name: "it is not here" for plan in plans if plan.name == "away"}
        plans = [plan for plan in plans if plan.name not in without]
        self.calls += [f"{self.name} arms {plan.name}" for plan in plans]
        return ArmedFaults(targets={plan.name: [self.name] for plan in plans}, without_file=without)

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        self.calls += [f"{self.name} disarms {name}" for name in names]
        return ArmedFaults(targets={})

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        self.calls.append(f"{self.name} {'opens' if is_open else 'closes'} {name}")
        return ArmedFaults(targets={})

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        raise NotImplementedError

    async def note_copies(self, *, copies: DiskCopies) -> None:
        self.calls.append(f"{self.name} notes {copies.at_site}")


def plans(*rules: str) -> list[FaultPlan]:
    """Return the plans of rules."""
    read = [read_rule(rule) for rule in rules]
    return [FaultPlan(name=rule.label, rule=rule.document(), seed=1, is_open=True) for rule in read]


async def test_rules_are_armed_in_the_order_of_the_layers_whatever_order_they_have() -> None:
    calls: list[str] = []
    disk, log = RecordingInjector("disk", calls), RecordingInjector("log", calls)
    injector = LayeredInjector({"disk": disk, "log": log}, log)
    armed = await injector.arm_faults(plans=plans("log append error=EIO name=l", "disk write file=/x error=EIO name=d"))
    assert calls == ["disk arms d", "log arms l"]
    assert armed.targets == {"d": ["disk"], "l": ["log"]}
    await injector.set_fault_window(name="d", is_open=False)
    await injector.disarm_faults(names=["l", "d"])
    await injector.note_copies(copies=DiskCopies(at_site=["web01/os"]))
    assert calls[2:5] == ["disk closes d", "log disarms l", "disk disarms d"]
    assert calls[5:] == ["disk notes ['web01/os']", "log notes ['web01/os']"]


async def test_a_rule_that_is_refused_takes_the_others_back() -> None:
    calls: list[str] = []
    disk, log = RecordingInjector("disk", calls), RecordingInjector("log", calls)
    log.is_refusing = True
    with pytest.raises(RigError, match=r"^no$"):
        await LayeredInjector({"disk": disk, "log": log}, log).arm_faults(
            plans=plans("log append error=EIO name=l", "disk write error=EIO name=d")
        )
    assert calls == ["disk arms d", "disk disarms d"]


async def test_a_rule_whose_file_is_not_here_is_named_and_its_window_changes_nothing() -> None:
    calls: list[str] = []
    disk, log = RecordingInjector("disk", calls), RecordingInjector("log", calls)
    injector = LayeredInjector({"disk": disk, "log": log}, log)
    armed = await injector.arm_faults(plans=plans("disk file=/x error=EIO name=away", "disk write error=EIO name=d"))
    assert (armed.targets, armed.without_file) == ({"d": ["disk"]}, {"away": "it is not here"})
    await injector.set_fault_window(name="away", is_open=True)
    await injector.disarm_faults(names=["away"])
    assert calls == ["disk arms d"]
