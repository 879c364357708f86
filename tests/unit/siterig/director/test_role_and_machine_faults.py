"""Faults of processes and of machines: the calls that carry them out, in their order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import ArmedFaults, DiskCopies, FaultInjector, FaultPlan, FaultReport, InjectedFault
from siterig.core.supervisor_contract import RigStatus, RoleFault
from siterig.director.director import FaultDirector
from siterig.director.machine_faults import MachineInjector
from siterig.director.process_faults import ProcessInjector
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultSchedule
from tests.support.clocks import FakeClock
from tests.support.samples import sample

ROLES = ("azurite", "site", "azure", "vault", "applier", "agent", "faults")
MIB = 1 << 20


class FakeRig:
    """Supervisor, disk hosts and injectors that write down their calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.dead: set[str] = set()
        self.lasting: list[RoleFault] = []
        self.refused = ""

    # --- supervisor

    async def status(self) -> RigStatus:
        role = sample(RoleStatus)
        return RigStatus(folder="/rig", pid=1, roles=[role.model_copy(update={"name": name}) for name in ROLES])

    async def signal_role(self, *, name: str, signal: str, fault: str) -> RoleStatus | None:
        self.calls.append(f"{signal} {name}")
        return None if name in self.dead else sample(RoleStatus)

    async def impose_role_fault(self, *, fault: RoleFault) -> None:
        kinds = [key for key in ("pause", "hold", "files_max", "memory_max") if getattr(fault, key)]
        if fault.role == self.refused:
            raise RigError(Code.RoleUnavailable, "it is away")
        self.calls.append(f"{'+'.join(kinds)} {fault.role}")
        self.lasting.append(fault)

    async def lift_role_faults(self, *, fault: str) -> None:
        self.calls.append(f"lift {fault}")
        if fault == self.refused:
            raise RigError(Code.RoleUnavailable, "it did not answer", uncertain=True)

    async def role_faults(self) -> list[RoleFault]:
        return self.lasting

    async def ask_before_starts(self, *, ask: bool) -> None:
        self.calls.append(f"ask {ask}")

    def note_reboot(self, host: str) -> None:
        self.calls.append(f"reboot {host}")


AT_ONCE = 3
"""The most injections in one report."""


class FakeHost(FaultInjector):
    """A disk host with its injector."""

    def __init__(self, rig: FakeRig, name: str, *disks: str) -> None:
        self.rig, self.name = rig, name
        made = [disk.split("/") for disk in disks]
        self.disks = [
            sample(DiskInfo).model_copy(update={"vm": vm, "name": disk, "size_bytes": MIB, "path": f"/none/{vm}/{disk}"})
            for vm, disk in made
        ]
        self.plans: dict[str, FaultPlan] = {}
        self.lost: list[InjectedFault] = []

    async def list_disks(self, *, vm: str | None = None) -> list[DiskInfo]:
        return self.disks

    async def resize_disk(self, *, vm: str, disk: str, size_bytes: int) -> None:
        self.rig.calls.append(f"{self.name} resize {vm}/{disk} {size_bytes}")

    async def remove_vm(self, *, vm: str) -> None:
        self.rig.calls.append(f"{self.name} remove {vm}")

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        for plan in plans:
            self.plans.setdefault(plan.name, plan)
        return ArmedFaults(targets={plan.name: [] for plan in plans})

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        for name in names:
            self.plans.pop(name, None)
        return ArmedFaults(targets={})

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        self.rig.calls.append(f"{self.name} lose {self.plans[name].rule['where']} {self.plans[name].rule['what']}")
        self.lost.append(InjectedFault(name=name, operation="-", n=1, time_ns=1, done="lost 2 writes"))
        return ArmedFaults(targets={})

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        found = self.lost[after : after + AT_ONCE]
        return FaultReport(epoch="1", sequence=after + len(found), injections=found, counts={})

    async def note_copies(self, *, copies: DiskCopies) -> None:
        raise NotImplementedError


class Stage:
    """A director of processes and machines."""

    def __init__(self) -> None:
        self.rig = FakeRig()
        self.clock = FakeClock()
        self.schedule = FaultSchedule(1, clock=self.clock)
        self.site, self.azure = FakeHost(self.rig, "site", "web01/os", "web01/data"), FakeHost(self.rig, "azure", "web02/os")
        supervisor: Any = self.rig
        hosts: dict[str, Any] = {"site": self.site, "azure": self.azure}
        self.processes = ProcessInjector(self.schedule, supervisor)
        machines = MachineInjector(supervisor=supervisor, hosts=hosts, injectors=hosts, note_reboot=self.rig.note_reboot)
        self.director = FaultDirector(self.schedule, [self.processes, machines], clock=self.clock)

    async def add(self, line: str) -> list[str]:
        """Arm a rule; return the calls that it made."""
        before = len(self.rig.calls)
        await self.director.add_faults(rules=[read_rule(line).document()])
        return self.rig.calls[before:]

    async def remove(self, name: str) -> list[str]:
        before = len(self.rig.calls)
        await self.director.remove_fault(name=name)
        return self.rig.calls[before:]

    async def done(self) -> str:
        return (await self.director.injections(after=0))[-1].done


@asynccontextmanager
async def running() -> AsyncIterator[Stage]:
    stage = Stage()
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.director.run)
        yield stage
        nursery.cancel_scope.cancel()


# --- processes ------------------------------------------------------------------------------------------------------


async def test_a_signal_reaches_every_role_of_the_pattern_but_the_director() -> None:
    async with running() as stage:
        assert await stage.add("process a* kill=TERM name=end") == [
            "SIGTERM azurite",
            "SIGTERM azure",
            "SIGTERM applier",
            "SIGTERM agent",
        ]
        assert "SIGTERM faults" not in await stage.add("process kill=KILL name=all")


async def test_a_stop_and_limits_last_as_long_as_their_rule() -> None:
    async with running() as stage:
        assert await stage.add("process site pause=true name=stop") == ["pause site"]
        assert await stage.remove("stop") == ["lift stop", "ask False"]
        assert await stage.add("process site files_max=40 memory_max=1GiB for=10s name=few") == ["files_max+memory_max site"]
        assert await stage.done() == "limited to 40 open files, limited to 1073741824 bytes of address space: site"
        stage.clock.advance_ns(10_000_000_000)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.rig.calls[-1] == "lift few"


async def test_a_role_that_may_still_be_stopped_keeps_its_rule() -> None:
    async with running() as stage:
        await stage.add("process site pause=true name=stop")
        stage.rig.refused = "stop"
        with pytest.raises(RigError, match="it did not answer"):
            await stage.remove("stop")
        assert [rule.name for rule in (await stage.director.list_faults()).rules] == ["stop"]
        stage.rig.refused = ""
        assert await stage.remove("stop") == ["lift stop", "ask False"]


async def test_a_role_that_does_not_exist_or_run_is_refused_by_name() -> None:
    async with running() as stage:
        known = "azurite, site, azure, vault, applier, agent"
        with pytest.raises(RigError, match=rf"where.role: 'sit' matches no role \(did you mean site\?\); allowed: {known}"):
            await stage.add("process sit kill=KILL name=end")
        stage.rig.dead.add("site")
        with pytest.raises(RigError, match="no process of site runs now, so none can get SIGKILL"):
            await stage.add("process site kill=KILL name=end")
        assert await stage.director.verdicts() == []


async def test_the_faults_of_a_start_are_decided_when_the_supervisor_asks() -> None:
    async with running() as stage:
        assert await stage.add("process vault start delay=2s occurrence=2 name=slow") == ["ask True"]
        assert await stage.add("process vault start kill=KILL timing=after name=die") == ["ask True"]
        first = await stage.processes.role_starts(role="vault")
        assert (first.delay_ns, first.kill, first.when_ready, first.fault) == (0, "SIGKILL", True, "die")
        second = await stage.processes.role_starts(role="vault")
        assert (second.delay_ns, second.fault) == (2_000_000_000, "slow, die")
        other = await stage.processes.role_starts(role="site")
        assert (other.delay_ns, other.kill) == (0, None)
        assert await stage.remove("slow") == ["lift slow"]
        assert await stage.remove("die") == ["lift die", "ask False"]


async def test_a_new_director_lifts_a_fault_that_no_rule_keeps_up() -> None:
    async with running() as stage:
        await stage.add("process site pause=true name=stop")
        stage.rig.lasting.append(RoleFault(fault="stranger", role="agent", pause=True))
        stage.rig.calls.clear()
        await stage.director.resume()
        assert stage.rig.calls == ["lift stranger"]


# --- machines -------------------------------------------------------------------------------------------------------


async def test_a_power_loss_is_one_of_the_disks_and_then_a_new_boot() -> None:
    async with running() as stage:
        stage.site.lost += [InjectedFault(name="other", operation="-", n=1, time_ns=1, done="")] * (3 * AT_ONCE)
        await stage.add("machine site power=loss tear=true after=mark:cut name=cut")
        assert [plan.is_open for plan in stage.site.plans.values()] == [False]
        assert stage.rig.calls == []
        await stage.director.note_mark(name="cut")
        assert stage.rig.calls == [
            "site lose {'layer': 'disk'} {'lose': 'unflushed', 'tear': {}}",
            "hold site",
            "hold agent",
            "reboot site",
            "lift cut",
        ]
        assert await stage.done() == "site: lost 2 writes; site: started again in a new boot"
        assert stage.site.plans == {}


async def test_a_power_loss_of_one_vm_leaves_the_boot_of_its_host() -> None:
    async with running() as stage:
        assert await stage.add("machine vm=web02 power=loss name=cut") == [
            "azure lose {'layer': 'disk', 'vm': 'web02'} {'lose': 'unflushed'}",
            "hold azure",
            "lift cut",
        ]


async def test_a_reboot_loses_nothing_and_a_host_that_is_off_stays_off() -> None:
    async with running() as stage:
        assert await stage.add("machine site power=reboot name=boot") == [
            "hold site",
            "hold agent",
            "reboot site",
            "lift boot",
        ]
        assert await stage.add("machine azure power=off name=off") == [
            "azure lose {'layer': 'disk'} {'lose': 'unflushed'}",
            "hold azure",
        ]
        assert await stage.remove("off") == ["reboot azure", "lift off"]
        await stage.add("machine azure power=off name=off")
        await stage.add("process site pause=true name=stop")
        before = len(stage.rig.calls)
        await stage.director.clear_faults()
        assert stage.rig.calls[before:] == ["lift stop", "ask False", "reboot azure", "lift off"]  # a stopped role first
        with pytest.raises(RigError, match=r"where.vm: power = reboot is of a whole host; allowed: host"):
            await stage.add("machine vm=web01 power=reboot")


async def test_a_disk_grows_and_a_vm_is_deleted_on_its_host() -> None:
    async with running() as stage:
        assert await stage.add("machine vm=web01 disk=data resize=2MiB") == [f"site resize web01/data {2 * MIB}"]
        with pytest.raises(RigError, match=f"disk web01/os has {MIB} bytes; allowed: more than that"):
            await stage.add("machine vm=web01 disk=os resize=1MiB name=same")
        assert await stage.add("machine vm=web02 delete=true") == ["azure remove web02"]
        with pytest.raises(RigError, match=r"where.vm: 'web09': matches no disk; there are: web01/data \(site\)"):
            await stage.add("machine vm=web09 delete=true name=none")
        with pytest.raises(RigError, match=r"where.host: is missing, and VMs on azure and site match"):
            await stage.add("machine vm=web* delete=true name=both")


async def test_the_next_director_ends_a_power_loss_that_was_half_done() -> None:
    async with running() as stage:
        await stage.add("machine site power=loss name=cut")
        stage.rig.calls.clear()
        await stage.director.resume()
        assert stage.rig.calls == ["reboot site", "lift cut"]


async def test_a_power_loss_that_fails_half_way_holds_no_role_down() -> None:
    async with running() as stage:
        stage.rig.refused = "agent"
        with pytest.raises(RigError, match="it is away"):
            await stage.add("machine site power=loss name=cut")
        assert "hold site" in stage.rig.calls
        assert "lift cut" in stage.rig.calls
