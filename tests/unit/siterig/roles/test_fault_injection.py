"""The rules of a role that starts: asked for and armed before it opens a file, and for seconds at most."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from siterig.blockfs.core.errors import Code, RigError
from siterig.core.fault_contract import (
    RULES_WAIT_S,
    ArmedFaults,
    DiskCopies,
    FaultInjector,
    FaultPlan,
    FaultReport,
    RoleRules,
)
from siterig.core.paths import Layout
from siterig.roles.fault_injection import RETRY_S, MadeInjector, RoleInjector
from tests.support.clocks import FakeClock


class FakeInjector(FaultInjector):
    """Notes its calls, and refuses some rules."""

    def __init__(self, *refuses: str) -> None:
        self.refuses, self.armed, self.opened = set(refuses), list[str](), list[str]()

    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        if self.refuses & {plan.name for plan in plans}:
            raise RigError(Code.FaultNotPossible, "no disk that the rule matches is open")
        without = {plan.name: "it is not here" for plan in plans if plan.name == "file"}
        self.armed += [plan.name for plan in plans if plan.name not in without]
        return ArmedFaults(targets={}, without_file=without)

    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        return ArmedFaults(targets={})

    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        self.opened.append(name)
        return ArmedFaults(targets={})

    async def fault_report(self, *, after: int, epoch: str, patience_s: float) -> FaultReport:
        raise AssertionError

    async def note_copies(self, *, copies: DiskCopies) -> None:
        raise AssertionError


class FakeDirector(RoleRules):
    """Answers by a function, and keeps the last reports that it gets."""

    def __init__(self, answer: Callable[[], Awaitable[list[FaultPlan]]]) -> None:
        self.answer, self.last = answer, list[FaultReport | None]()

    async def rules_of_role(self, *, role: str, last: FaultReport | None = None) -> list[FaultPlan]:
        assert role == "site"
        self.last.append(last)
        return await self.answer()


def plan(name: str, *, is_open: bool = True) -> FaultPlan:
    return FaultPlan(name=name, rule={}, seed=1, is_open=is_open)


@asynccontextmanager
async def role_with(injector: FakeInjector) -> AsyncIterator[RoleInjector]:
    role = RoleInjector(lambda: MadeInjector(injector, ()))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(role.run)
        yield role
        nursery.cancel_scope.cancel()


async def test_a_rule_that_cannot_be_armed_keeps_neither_the_others_nor_the_role_away() -> None:
    async def answer() -> list[FaultPlan]:
        return [plan("first"), plan("file"), plan("bad"), plan("waiting", is_open=False)]

    injector = FakeInjector("bad")
    async with role_with(injector) as role:
        with structlog.testing.capture_logs() as logged:
            await role.arm_rules_of(FakeDirector(answer), "site", FakeClock())
        assert injector.armed == ["first", "waiting"]
        await role.files_opened()
        assert injector.opened == ["first"]
    assert [(entry["event"], entry["rule"]) for entry in logged] == [
        ("fault_not_armed_again", "file"),
        ("fault_not_armed_again", "bad"),
    ]


async def test_a_director_that_is_starting_is_waited_for() -> None:
    clock, injector, is_there = FakeClock(), FakeInjector(), trio.Event()

    async def answer() -> list[FaultPlan]:
        if not is_there.is_set():
            raise RigError(Code.RoleUnavailable, "the faults does not answer", recoverable=True)
        return [plan("bad")]

    async with role_with(injector) as role, trio.open_nursery() as nursery:
        nursery.start_soon(role.arm_rules_of, FakeDirector(answer), "site", clock)
        await trio.testing.wait_all_tasks_blocked()
        assert injector.armed == []
        is_there.set()
        clock.advance_ns(int(RETRY_S * 1e9))
    assert injector.armed == ["bad"]


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_director_that_gives_no_answer_keeps_the_role_down_for_seconds_only(hangs: bool) -> None:
    clock, injector = FakeClock(), FakeInjector()

    async def answer() -> list[FaultPlan]:
        if hangs:
            await trio.sleep_forever()
        raise RigError(Code.RoleUnavailable, "the faults does not answer", recoverable=True)

    async with role_with(injector) as role:
        with structlog.testing.capture_logs() as logged:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(role.arm_rules_of, FakeDirector(answer), "site", clock)
                await trio.testing.wait_all_tasks_blocked()
                clock.advance_ns(int(RULES_WAIT_S * 1e9))
    assert injector.armed == []
    assert [entry["event"] for entry in logged] == ["served_without_fault_rules"]


async def test_a_role_without_the_order_to_ask_loads_no_injector(tmp_path: Path) -> None:
    def make() -> MadeInjector:
        raise AssertionError("the fault language is loaded")

    role = RoleInjector(make)
    await role.begin(Layout.of(tmp_path), "site", FakeClock())
    await role.files_opened()
