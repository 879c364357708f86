"""The events of a rig: a rig without rules is asked nothing, and each event reaches the rules by both of its names."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import trio

from siterig.azure_emu.contracts.moments import VaultMoment, VaultMoments
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.supervisor_contract import RoleChange, RoleChanges
from siterig.director.rig_events import RigEvents
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultSchedule
from tests.support.clocks import FakeClock

SECOND = 1_000_000_000


class FakeRig:
    """Vault, supervisor and site, with the events that a test gives them."""

    def __init__(self) -> None:
        self.calls = 0
        self.reached = 0
        self.epoch = "1"
        self.seen: list[VaultMoment] = [VaultMoment(name="RenameVmStarted", vm="web01")]
        self.changed: list[RoleChange] = []
        self.is_away = False
        self.vault_is_away = False
        self.news = trio.Event()
        self.answers = trio.Event()
        self.answers.set()

    def wake(self) -> None:
        self.news.set()
        self.news = trio.Event()

    def _asked(self) -> None:
        self.calls += 1
        if self.is_away:
            raise RigError(Code.RoleUnavailable, "it is away")

    async def moments(self, *, after: int | None, epoch: str, patience_s: float) -> VaultMoments:
        self._asked()
        if self.vault_is_away:
            raise RigError(Code.RoleUnavailable, "it is away")
        if after is None:
            return VaultMoments(epoch=self.epoch, last=len(self.seen), moments=[])
        if epoch != self.epoch:
            after = 0
        if after == len(self.seen):
            await self.news.wait()
        return VaultMoments(epoch=self.epoch, last=len(self.seen), moments=self.seen[after:])

    async def role_changes(self, *, after: int, patience_s: float) -> RoleChanges:
        self._asked()
        if not patience_s:
            await self.answers.wait()
        if patience_s and after == len(self.changed):
            await self.news.wait()
        return RoleChanges(last=len(self.changed), changes=self.changed[after:])

    async def position(self) -> int:
        self._asked()
        return self.reached


class Stage:
    """The events of a rig, and a schedule that notes them."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.schedule = FaultSchedule(1, clock=self.clock)
        self.rig = FakeRig()
        rig = cast(Any, self.rig)
        self.ready: list[str] = []
        self.change = trio.Event()
        self.events = RigEvents(self.schedule, vault=rig, supervisor=rig, site=rig, role_ready=self._ready, clock=self.clock)

    async def _ready(self, name: str) -> None:
        self.ready.append(name)

    async def add(self, *lines: str) -> None:
        self.schedule.add([read_rule(line) for line in lines])
        await self.rules_changed()

    async def rules_changed(self) -> None:
        old, self.change = self.change, trio.Event()
        old.set()
        await trio.testing.wait_all_tasks_blocked()

    async def happened(self, *, vault: tuple[str, str] | None = None, role: tuple[Any, str] | None = None) -> None:
        if vault is not None:
            self.rig.seen.append(VaultMoment(name=vault[0], vm=vault[1]))
        if role is not None:
            self.rig.changed.append(RoleChange(change=role[0], role=role[1], pid=1))
        self.rig.wake()
        await trio.testing.wait_all_tasks_blocked()

    def open(self) -> list[str]:
        return [armed.label for armed in self.schedule.armed() if armed.window.is_open]


@asynccontextmanager
async def running() -> AsyncIterator[Stage]:
    stage = Stage()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stage.events.run, lambda: stage.change)
        await trio.testing.wait_all_tasks_blocked()
        yield stage
        nursery.cancel_scope.cancel()


async def test_a_rig_without_rules_is_asked_nothing() -> None:
    async with running() as stage:
        stage.clock.advance_ns(60 * SECOND)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.rig.calls == 0
        await stage.add("process site kill=KILL after=event:VmProtected name=never")
        assert stage.rig.calls > 0
        stage.schedule.clear()
        await stage.rules_changed()
        asked = stage.rig.calls
        await stage.happened(vault=("Protected", "web01"))
        stage.clock.advance_ns(60 * SECOND)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.rig.calls == asked


async def test_events_after_the_arming_open_windows_by_name_and_subject() -> None:
    async with running() as stage:
        await stage.add(
            "process site kill=KILL after=event:Protected name=any",
            "process site kill=KILL after=event:Protected/web02 name=one",
            "process site kill=KILL after=event:Role*/agent name=role",
            "process site kill=KILL after=event:RenameVmStarted name=old",
        )
        assert stage.open() == []
        await stage.happened(vault=("Protected", "web01"))
        assert stage.open() == ["any"]
        await stage.happened(vault=("Protected", "web02"), role=("RoleEnded", "agent"))
        assert stage.open() == ["any", "one", "role"]
        await stage.happened(role=("RoleReady", "site"))
        assert stage.ready == ["site"]


async def test_a_vault_that_is_away_or_new_is_followed_again() -> None:
    async with running() as stage:
        await stage.add("process site kill=KILL after=event:Protected name=any")
        stage.rig.is_away = True
        await stage.happened()
        stage.rig.is_away, stage.rig.epoch, stage.rig.seen = False, "2", []
        stage.clock.advance_ns(SECOND)
        await trio.testing.wait_all_tasks_blocked()
        await stage.happened(vault=("Protected", "web01"))
        assert stage.open() == ["any"]


async def test_the_position_is_read_only_while_a_rule_waits_for_one() -> None:
    async with running() as stage:
        await stage.add("process site kill=KILL after=position:100 name=there")
        stage.rig.reached = 99
        stage.clock.advance_ns(SECOND)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.open() == []
        stage.rig.reached = 100
        stage.clock.advance_ns(SECOND)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.open() == ["there"]
        asked = stage.rig.calls
        stage.clock.advance_ns(60 * SECOND)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.rig.calls == asked


async def test_a_rule_is_armed_when_no_event_of_it_can_be_missed() -> None:
    async with running() as stage:
        stage.rig.answers = trio.Event()
        stage.schedule.add([read_rule("process site kill=KILL after=event:RoleEnded name=any")])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.events.wait_followed)
            await stage.rules_changed()
            assert len(nursery.child_tasks) == 1
            stage.rig.answers.set()
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks
            stage.rig.changed.append(RoleChange(change="RoleEnded", role="vault", pid=1))
            stage.rig.wake()
            await trio.testing.wait_all_tasks_blocked()
        assert stage.open() == ["any"]


async def test_the_first_events_of_a_vault_that_starts_later_count() -> None:
    async with running() as stage:
        stage.rig.vault_is_away = True
        await stage.add("process site kill=KILL after=event:Protected name=any")
        with trio.fail_after(1):
            await stage.events.wait_followed()
        stage.rig.vault_is_away, stage.rig.epoch = False, "2"
        stage.rig.seen = [VaultMoment(name="Protected", vm="web01")]
        stage.clock.advance_ns(SECOND)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.open() == ["any"]
