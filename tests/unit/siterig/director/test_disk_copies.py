"""The disks that both sides have, as rules with ``recoverable = true`` need them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from siterig.azure_emu.vault.model.resources import ManagedDisk
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import DiskCopies
from siterig.director.disk_copies import LOOK_EVERY_S, DiskCopiesWatch
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultSchedule
from tests.support.clocks import FakeClock

ALL, NONE = DiskCopies(at_site=["web01/os"], at_both=["web01/os"]), DiskCopies()
AT_SITE = DiskCopies(at_site=["web01/os"])


class FakeRig:
    """The vault and the supervisor of a rig with one protected VM and one that is not."""

    def __init__(self) -> None:
        self.state, self.location, self.resync = "Protected", "Primary", cast(str | None, None)
        self.held = set[str]()
        self.is_away = False
        self.looks = 0

    async def status(self) -> Any:
        roles = [SimpleNamespace(name=name, state="held" if name in self.held else "ready") for name in ("site", "applier")]
        return SimpleNamespace(roles=roles)

    async def items(self) -> list[Any]:
        self.looks += 1
        if self.is_away:
            raise RigError(Code.RoleUnavailable, "the vault does not answer", recoverable=True)
        item = {"protectionState": self.state, "activeLocation": self.location, "resynchronizationRequired": self.resync}
        return [SimpleNamespace(name="web01", **item)]

    async def managed_disks(self) -> list[ManagedDisk]:
        return [ManagedDisk(vm=vm, name="os", disk_id=vm) for vm in ("web01", "gone")]


class Stage:
    """A watch of a fake rig; ``told`` are the reports to the roles, in their order."""

    def __init__(self) -> None:
        self.clock, self.rig, self.told = FakeClock(), FakeRig(), list[DiskCopies]()
        self.schedule = FaultSchedule(1, clock=self.clock)
        rig, self.change = cast(Any, self.rig), trio.Event()
        self.watch = DiskCopiesWatch(self.schedule, vault=rig, supervisor=rig, tell=self._tell, clock=self.clock)

    async def _tell(self, copies: DiskCopies) -> None:
        self.told.append(copies)

    async def add(self, line: str) -> None:
        self.schedule.add([read_rule(line)])
        old, self.change = self.change, trio.Event()
        old.set()
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def running() -> AsyncIterator[Stage]:
    stage = Stage()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.watch.run, lambda: stage.change)
        await trio.testing.wait_all_tasks_blocked()
        yield stage
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, ALL),
        ({"resync": "LogCorrupt"}, AT_SITE),
        ({"state": "InitialReplicationInProgress"}, AT_SITE),
        ({"state": "InitialReplicationCompletedOnRecovery"}, AT_SITE),
        ({"state": "EnablingProtection"}, NONE),
        ({"state": "UnplannedFailoverInitiated"}, NONE),
        ({"state": "PlannedFailoverCompleted"}, NONE),
        ({"state": "CommitFailoverCompleted", "location": "Recovery"}, NONE),
        ({"location": "Recovery"}, NONE),
        ({"state": "DisablingProtection"}, NONE),
        ({"held": {"site"}}, NONE),
        ({"held": {"applier"}}, AT_SITE),
    ],
)
async def test_the_state_of_the_vm_and_of_the_hosts_decides(changes: dict[str, Any], wanted: DiskCopies) -> None:
    stage = Stage()
    for name, value in changes.items():
        setattr(stage.rig, name, value)
    await stage.watch.look()
    assert stage.told == [wanted]


async def test_a_rig_without_such_rules_is_asked_nothing() -> None:
    async with running() as stage:
        await stage.add("disk web01/os write error=EIO")
        stage.clock.advance_ns(10 * 10**9)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.rig.looks == 0


async def test_each_event_and_each_second_has_a_look_at_the_rig() -> None:
    async with running() as stage:
        await stage.add("store write flip=true recoverable=true")
        assert stage.told == [ALL]
        stage.rig.state = "UnplannedFailoverInitiated"
        stage.watch.note_change()
        await trio.testing.wait_all_tasks_blocked()
        assert stage.told == [ALL, NONE]
        stage.rig.state = "Protected"
        stage.clock.advance_ns(int(LOOK_EVERY_S * 1e9))
        await trio.testing.wait_all_tasks_blocked()
        assert stage.told == [ALL, NONE, ALL]


async def test_all_disks_are_spared_while_the_vault_does_not_answer() -> None:
    async with running() as stage:
        await stage.add("store write flip=true recoverable=true")
        stage.rig.is_away = True
        stage.watch.note_change()
        await trio.testing.wait_all_tasks_blocked()
        assert stage.told == [ALL, NONE]
