"""Faults of the hosts of a rig, and of its VMs: power loss, reboot, a host that does not come back, deletion, growth.

A power loss happens on the disks first, at one position over all of them: each operation fails from then on.  Then the roles
of the host are killed, and start again in another boot; so their recovery runs, and guests have lost their disks.  A power
loss of some VMs is not one of their host: its boot stays the same.

Fault contract: the kill of the director in the middle leaves roles that are held down; the next director lifts what no rule
in force needs.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from siterig.blockfs.contracts.control import DiskHostControl, DiskInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import loop_devices
from siterig.core.fault_contract import FaultInjector, FaultPlan, InjectedFault
from siterig.core.hosts import ROLES_OF_HOST
from siterig.core.supervisor_contract import RoleFault, SupervisorControl
from siterig.director.injectors import LayerInjector, not_possible
from siterig.scenarios.faults.rules import FaultRule
from siterig.scenarios.faults.schedule import ArmedRule, FaultDecision

REPORTS_MAX = 20
"""The most reports that are read for one power loss: twice as many as have all injections that a role keeps."""
_log = structlog.get_logger("faults")


class MachineInjector(LayerInjector):
    """The injector of the layer ``machine``.

    Args:
        supervisor: kills and starts the roles of a host.
        hosts: the disk host of each host.
        injectors: the injector in each disk host.
        note_reboot: lets later processes of a host belong to a new boot.
    """

    layers = ("machine",)

    def __init__(
        self,
        *,
        supervisor: SupervisorControl,
        hosts: Mapping[str, DiskHostControl],
        injectors: Mapping[str, FaultInjector],
        note_reboot: Callable[[str], None],
    ) -> None:
        self._supervisor = supervisor
        self._hosts, self._injectors, self._note_reboot = hosts, injectors, note_reboot
        self._prepared: dict[str, tuple[ArmedRule, dict[str, FaultPlan]]] = {}

    # --- rules ------------------------------------------------------------------------------------------------------

    async def check(self, rule: FaultRule) -> None:
        what, where = rule.what, rule.where
        if what.power in ("reboot", "off") and (where.vm is not None or where.disk is not None):
            key = "vm" if where.vm is not None else "disk"
            raise not_possible(rule, f"where.{key}: power = {what.power} is of a whole host; allowed: host")
        if rule.when.after is None and (where.vm is not None or where.disk is not None):
            await self._disks(rule)

    async def arm(self, rules: Sequence[ArmedRule]) -> None:
        """Let the disks of a power loss keep their unsynced writes from now on."""
        for armed in rules:
            if armed.rule.what.power in ("loss", "off"):
                plans = {host: _plan(armed) for host in self._hosts_of(armed.rule)}
                self._prepared[armed.label] = armed, plans
                for host, plan in plans.items():
                    await self._injectors[host].arm_faults(plans=[plan])

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        for armed in rules:
            await self._forget_disks(armed.label)
            await self._come_back(armed)

    async def window_closed(self, armed: ArmedRule) -> None:
        await self._come_back(armed)

    async def _forget_disks(self, label: str) -> None:
        _, plans = self._prepared.pop(label, (None, {}))
        for host, plan in plans.items():
            try:
                await self._injectors[host].disarm_faults(names=[plan.name])
            except RigError as error:
                _log.info("faults_ended_with_role", role=host, rules=[plan.name], reason=error.message)

    async def _come_back(self, armed: ArmedRule) -> None:
        """Let the roles of a host that was off start again, in a new boot."""
        if armed.rule.what.power != "off" or not armed.fired:
            return
        for host in self._hosts_of(armed.rule):
            self._note_reboot(host)
        await self._supervisor.lift_role_faults(fault=armed.label)

    def rules_of(self, role: str) -> list[FaultPlan]:
        """Return the rules that let the disks of a role which starts keep their unsynced writes from the first one on."""
        return [plans[role] for armed, plans in self._prepared.values() if role in plans and not armed.fired]

    async def role_is_ready(self, name: str) -> None:
        """Let the disks of a disk host that was started again keep their unsynced writes for rules that still wait."""
        for armed, plans in list(self._prepared.values()):
            if name in plans and not armed.fired:
                try:
                    await self._injectors[name].arm_faults(plans=[plans[name]])
                except RigError as error:
                    _log.warning("power_loss_not_prepared", rule=armed.label, role=name, reason=error.message)

    async def resume(self, rules: Sequence[ArmedRule]) -> None:
        await self.arm([armed for armed in rules if not armed.fired])
        held = {fault.fault for fault in await self._supervisor.role_faults() if fault.hold}
        for armed in rules:
            if armed.label in held and armed.rule.what.power != "off":  # the director was killed before the end of it
                await self._start_again(armed.rule, armed.label, self._hosts_of(armed.rule))

    # --- faults -----------------------------------------------------------------------------------------------------

    async def act(self, decision: FaultDecision) -> str:
        what = decision.rule.what
        if what.power is not None:
            return await self._switch_power(decision)
        disks = await self._disks(decision.rule)
        if what.resize is not None:
            return await self._grow(decision.rule, disks, what.resize)
        return await self._delete(decision.rule, disks)

    def _hosts_of(self, rule: FaultRule) -> list[str]:
        return [host for host in self._hosts if rule.where.host in (None, host)]

    async def _switch_power(self, decision: FaultDecision) -> str:
        rule, label = decision.rule, decision.label
        hosts = self._hosts_of(rule)
        if rule.where.vm is not None or rule.where.disk is not None:
            hosts = list(dict.fromkeys(host for host, _ in await self._disks(rule)))
        lost = [] if rule.what.power == "reboot" else await self._lose_writes(label, hosts)
        try:
            for host in hosts:
                for role in ROLES_OF_HOST[host]:
                    await self._supervisor.impose_role_fault(fault=RoleFault(fault=label, role=role, hold=True))
        except RigError:
            await self._supervisor.lift_role_faults(fault=label)
            raise
        await self._forget_disks(label)
        if rule.what.power == "off":
            return "; ".join([*lost, f"{' and '.join(hosts)}: off"])
        is_whole = await self._start_again(rule, label, hosts)
        if rule.what.power == "reboot":
            return f"{' and '.join(hosts)}: rebooted"
        return "; ".join([*lost, f"{' and '.join(hosts)}: started again{' in a new boot' if is_whole else ''}"])

    async def _start_again(self, rule: FaultRule, label: str, hosts: Sequence[str]) -> bool:
        """Let the roles of hosts start again; return True if that is a new boot, because the rule is for whole hosts."""
        is_whole = rule.where.vm is None and rule.where.disk is None
        for host in hosts if is_whole else ():
            self._note_reboot(host)
        await self._supervisor.lift_role_faults(fault=label)
        return is_whole

    async def _lose_writes(self, label: str, hosts: Sequence[str]) -> list[str]:
        """Let the disks of each host lose their unsynced writes at one position; return the effect in words."""
        words = []
        _, plans = self._prepared[label]
        for host in hosts:
            injector, plan = self._injectors[host], plans[host]
            before, epoch, _ = await _reported(injector)
            await injector.arm_faults(plans=[plan])
            await injector.set_fault_window(name=plan.name, is_open=True)
            _, _, injections = await _reported(injector, after=before, epoch=epoch)
            words += [f"{host}: {injected.done.partition('; ')[0]}" for injected in injections if injected.name == plan.name]
        return words

    async def _disks(self, rule: FaultRule) -> list[tuple[str, DiskInfo]]:
        """Return the disks that a rule names, each with its host."""
        where, found, known = rule.where, [], set[str]()
        for host in self._hosts_of(rule):
            for disk in await self._hosts[host].list_disks():
                known.add(f"{disk.vm}/{disk.name} ({host})")
                if fnmatch.fnmatchcase(disk.vm, where.vm or "*") and fnmatch.fnmatchcase(disk.name, where.disk or "*"):
                    found.append((host, disk))
        if not found:
            given = ", ".join(
                f"where.{key}: {value!r}" for key in ("vm", "disk") if (value := getattr(where, key)) is not None
            )
            raise not_possible(rule, f"{given}: matches no disk; there are: {', '.join(sorted(known)) or 'none'}")
        return found

    async def _grow(self, rule: FaultRule, disks: Sequence[tuple[str, DiskInfo]], size_bytes: int) -> str:
        for _, disk in disks:
            if disk.size_bytes >= size_bytes:
                raise not_possible(
                    rule, f"what.resize: disk {disk.vm}/{disk.name} has {disk.size_bytes} bytes; allowed: more than that"
                )
        for host, disk in disks:
            await self._hosts[host].resize_disk(vm=disk.vm, disk=disk.name, size_bytes=size_bytes)
        return f"grew {', '.join(f'{disk.vm}/{disk.name}' for _, disk in disks)} to {size_bytes} bytes"

    async def _delete(self, rule: FaultRule, disks: Sequence[tuple[str, DiskInfo]]) -> str:
        """Delete VMs as an administrator of the host does: the vault is not asked, and finds out."""
        hosts = {host for host, _ in disks}
        if len(hosts) > 1:
            raise not_possible(
                rule, f"where.host: is missing, and VMs on {' and '.join(sorted(hosts))} match; allowed: site, azure"
            )
        vms: dict[str, list[DiskInfo]] = {}
        for _, disk in disks:
            vms.setdefault(disk.vm, []).append(disk)
        host = hosts.pop()
        for vm, own in vms.items():
            try:
                await loop_devices.shutdown([Path(disk.path) for disk in own])
                await self._hosts[host].remove_vm(vm=vm)
            except RigError as error:
                if error.code not in (Code.VmBusy, Code.DiskInUse):
                    raise
                raise not_possible(rule, error.message) from error
        return f"deleted {', '.join(vms)} on {host}"


def _plan(armed: ArmedRule) -> FaultPlan:
    """Return the part of a power loss that the disks of a host carry out, with its window closed."""
    where, what = armed.rule.where, armed.rule.what
    place: dict[str, Any] = {"layer": "disk"}
    place |= {key: value for key in ("vm", "disk") if (value := getattr(where, key)) is not None}
    lost: dict[str, Any] = {"lose": "unflushed"}
    if what.tear is not None:
        lost["tear"] = what.tear.model_dump(mode="json", exclude_none=True)
    if what.survive is not None:
        lost["survive"] = "random"
    name = f"{armed.label} (disks)"
    return FaultPlan(name=name, rule={"name": name, "where": place, "what": lost}, seed=armed.seed, is_open=False)


async def _reported(injector: FaultInjector, after: int = 0, epoch: str = "") -> tuple[int, str, list[InjectedFault]]:
    """Return the number of the newest injection, the epoch, and all injections after a number; a report has some of them."""
    found: list[InjectedFault] = []
    for _ in range(REPORTS_MAX):
        report = await injector.fault_report(after=after, epoch=epoch, patience_s=0.0)
        found += report.injections
        after, epoch = report.sequence, report.epoch
        if not report.injections:
            break
    return after, epoch, found
