"""Several injectors of one role as one: each layer belongs to one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import ArmedFaults, DiskCopies, FaultInjector, FaultPlan, FaultReport
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.rules import read_rule


class LayeredInjector(FaultInjector):
    """The injectors of one process, with one log of injections.

    Args:
        layers: the injector of each layer, in the order in which rules of several layers are armed.  A rule with ``file``
            lets the file system of the guest write everything first, which no other rule of the same call may meet; so
            ``disk`` is the first one.
        reporter: the one that reports for all of them.
    """

    def __init__(self, layers: Mapping[LayerName, FaultInjector], reporter: FaultInjector) -> None:
        self._layers, self._reporter = layers, reporter
        self._of_rule: dict[str, FaultInjector] = {}

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        groups: defaultdict[FaultInjector, list[FaultPlan]] = defaultdict(list)
        for plan in plans:
            groups[self._of_layer(plan)].append(plan)
        position: int | None = None
        targets: dict[str, list[str]] = {}
        without_file: dict[str, str] = {}
        new: list[str] = []
        for injector in dict.fromkeys(self._layers.values()):
            if not (own := groups.get(injector, [])):
                continue
            try:
                armed = await injector.arm_faults(plans=own)
            except BaseException:
                await self.disarm_faults(names=new)
                raise
            without_file |= armed.without_file
            there = [plan.name for plan in own if plan.name not in armed.without_file]
            new += [name for name in there if name not in self._of_rule]
            self._of_rule |= dict.fromkeys(there, injector)
            position = armed.position if position is None else position
            targets |= armed.targets
        return ArmedFaults(position=position, targets=targets, without_file=without_file)

    def _of_layer(self, plan: FaultPlan) -> FaultInjector:
        layer = read_rule(plan.rule).where.layer
        if layer not in self._layers:
            allowed = ", ".join(self._layers)
            raise RigError(Code.FaultNotPossible, f"fault {plan.name!r}: where.layer: {layer!r}; allowed: {allowed}")
        return self._layers[layer]

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        groups: defaultdict[FaultInjector, list[str]] = defaultdict(list)
        for name in names:
            if (injector := self._of_rule.pop(name, None)) is not None:
                groups[injector].append(name)
        position: int | None = None
        for injector, own in groups.items():
            found = (await injector.disarm_faults(names=own)).position
            position = found if position is None else position
        return ArmedFaults(position=position, targets={})

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        injector = self._of_rule.get(name)
        if injector is None:  # its file is not here
            return ArmedFaults(targets={})
        return await injector.set_fault_window(name=name, is_open=is_open)

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        return await self._reporter.fault_report(after=after, epoch=epoch, patience_s=patience_s)

    async def note_copies(self, *, copies: DiskCopies) -> None:
        for injector in dict.fromkeys(self._layers.values()):
            await injector.note_copies(copies=copies)
