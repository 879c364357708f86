"""The director of a rig's faults: a change is in force when its call returns, and what cannot be armed changes nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.director.director import FaultDirector
from siterig.director.injectors import LayerInjector, not_possible
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.rules import FaultRule, read_rule
from siterig.scenarios.faults.schedule import ArmedRule, FaultDecision, FaultSchedule
from tests.support.clocks import FakeClock


class RecordingInjector(LayerInjector):
    """An injector that writes down the calls."""

    layers: tuple[LayerName, ...] = ("process", "link")

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refused = ""
        self.failure: Exception | None = None

    def _note(self, what: str, rules: Sequence[ArmedRule]) -> None:
        self.calls += [f"{what} {armed.label}" for armed in rules]

    async def check(self, rule: FaultRule) -> None:
        if self.refused == "check":
            raise not_possible(rule, "no")

    async def arm(self, rules: Sequence[ArmedRule]) -> None:
        self._note("arm", rules)
        if self.refused == "arm":
            raise not_possible(rules[0].rule, "no")

    async def disarm(self, rules: Sequence[ArmedRule]) -> None:
        self._note("disarm", rules)
        if self.refused == "disarm":
            raise RigError(Code.RoleUnavailable, "it is away")

    async def act(self, decision: FaultDecision) -> str:
        self.calls.append(f"act {decision.label}")
        if self.refused == "act":
            raise not_possible(decision.rule, "no")
        if self.failure is not None:
            raise self.failure
        return "killed it"

    async def window_opened(self, armed: ArmedRule) -> None:
        self._note("open", [armed])

    async def window_closed(self, armed: ArmedRule) -> None:
        self._note("close", [armed])


class Stage:
    """A director with one injector and a clock that the test advances."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.schedule = FaultSchedule(1, clock=self.clock)
        self.injector = RecordingInjector()
        self.saves = 0
        self.director = FaultDirector(self.schedule, [self.injector], clock=self.clock, save=self._save)

    def _save(self) -> None:
        self.saves += 1

    async def add(self, *lines: str) -> None:
        await self.director.add_faults(rules=[read_rule(line).document() for line in lines])

    async def injected(self) -> list[tuple[str, str]]:
        return [(found.rule, found.done) for found in await self.director.injections(after=0)]


@asynccontextmanager
async def running() -> AsyncIterator[Stage]:
    stage = Stage()
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.director.run)
        yield stage
        nursery.cancel_scope.cancel()


async def test_an_immediate_fault_has_happened_when_its_rule_is_armed() -> None:
    async with running() as stage:
        await stage.add("process site kill=SIGKILL name=end")
        assert stage.injector.calls == ["arm end", "open end", "act end"]
        assert await stage.injected() == [("end", "killed it")]
        (status,) = (await stage.director.list_faults()).rules
        assert (status.fired, status.state) == (1, "armed")


async def test_a_rule_that_waits_for_a_mark_acts_when_the_mark_is_set() -> None:
    async with running() as stage:
        await stage.add("process site kill=SIGKILL after=mark:now name=end")
        assert stage.injector.calls == ["arm end"]
        await stage.director.note_mark(name="now")
        assert stage.injector.calls[1:] == ["open end", "act end"]


async def test_a_rule_for_a_while_ends_by_the_clock_alone() -> None:
    async with running() as stage:
        await stage.add("process site pause=true for=20s name=stop")
        stage.clock.advance_ns(20_000_000_000)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.injector.calls[-1] == "close stop"


async def test_a_rule_follows_another_one_that_fired_on_an_operation() -> None:
    async with running() as stage:
        await stage.add(
            "link agent-vault send delay=1ms occurrence=2 name=slow", "process agent kill=SIGKILL after=fault:slow name=end"
        )
        stage.schedule.decide(FaultOperation("link", "send", {"link": "agent-vault"}))
        await trio.testing.wait_all_tasks_blocked()
        assert "act end" not in stage.injector.calls
        stage.schedule.decide(FaultOperation("link", "send", {"link": "agent-vault"}))
        await trio.testing.wait_all_tasks_blocked()
        assert stage.injector.calls[-1] == "act end"


@pytest.mark.parametrize("refused", ["check", "arm", "act"])
async def test_rules_that_cannot_be_put_in_force_change_nothing(refused: str) -> None:
    async with running() as stage:
        await stage.add("process agent kill=SIGTERM name=old")
        stage.injector.calls.clear()
        stage.injector.refused = refused
        with pytest.raises(RigError, match="'new': no"):
            await stage.add("process site kill=SIGKILL name=new", "link agent-vault send delay=1s name=slow")
        assert [status.name for status in (await stage.director.list_faults()).rules] == ["old"]
        assert [verdict.name for verdict in await stage.director.verdicts()] == ["old"]
        armed = {call.split()[1] for call in stage.injector.calls if call.startswith("arm")}
        assert armed == {call.split()[1] for call in stage.injector.calls if call.startswith("disarm")}


async def test_the_same_rule_again_stays_and_another_of_its_name_is_refused() -> None:
    async with running() as stage:
        await stage.add("process site kill=SIGKILL name=end")
        await stage.add("process site kill=SIGKILL name=end")
        assert stage.injector.calls.count("act end") == 1
        with pytest.raises(RigError, match="another rule with the name 'end' is armed"):
            await stage.add("process agent kill=SIGKILL name=end")


async def test_a_layer_without_injector_is_refused_by_name() -> None:
    async with running() as stage:
        with pytest.raises(RigError, match=r"where\.layer: 'clock' has no faults here; allowed: process, link"):
            await stage.add("clock jump=+1h")


async def test_a_removed_rule_is_released_and_its_verdict_stays() -> None:
    async with running() as stage:
        await stage.add("process site pause=true name=stop", "link agent-vault send delay=1s name=slow")
        left = await stage.director.remove_fault(name="stop")
        assert [status.name for status in left.rules] == ["slow"]
        assert stage.injector.calls[-1] == "disarm stop"
        assert await stage.director.clear_faults() == 1
        verdicts = {verdict.name: verdict.ok for verdict in await stage.director.verdicts()}
        assert verdicts == {"stop": True, "slow": False}


async def test_a_wait_ends_when_the_rule_has_fired_or_is_removed() -> None:
    async with running() as stage:
        await stage.add("link agent-vault send delay=1s name=slow")
        results: list[str] = []

        async def wait(times: int) -> None:
            try:
                results.append(f"fired {(await stage.director.wait_fired(name='slow', times=times)).fired}")
            except RigError as error:
                results.append(error.message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, 1)
            nursery.start_soon(wait, 2)
            await trio.testing.wait_all_tasks_blocked()
            (decision,) = stage.schedule.decide(FaultOperation("link", "send", {"link": "agent-vault"}))
            stage.schedule.record(decision, "delayed it")
            await trio.testing.wait_all_tasks_blocked()
            assert results == ["fired 1"]
            await stage.director.remove_fault(name="slow")
        assert results == ["fired 1", "fault 'slow' was removed; it had fired 1 of 2 times"]


async def test_the_run_is_saved_before_an_immediate_fault_acts() -> None:
    async with running() as stage:
        saves: list[int] = []
        act = stage.injector.act

        async def acting(decision: FaultDecision) -> str:
            saves.append(stage.saves)
            return await act(decision)

        stage.injector.act = acting  # type: ignore[method-assign]
        await stage.add("process site kill=SIGKILL name=end")
        assert saves == [2]  # the first one before the rule was armed


async def test_a_rule_that_only_sets_a_mark_needs_no_injector() -> None:
    async with running() as stage:
        await stage.add("clock mark=late after=time:5s name=mark", "process site kill=SIGKILL after=mark:late name=end")
        stage.clock.advance_ns(5_000_000_000)
        await trio.testing.wait_all_tasks_blocked()
        assert await stage.injected() == [("mark", "set the mark late"), ("end", "killed it")]


async def test_a_delayed_fault_keeps_no_other_rule_waiting() -> None:
    async with running() as stage:
        await stage.add(
            "process site kill=SIGKILL delay=60s name=late", "process agent kill=SIGKILL after=fault:late name=end"
        )
        await stage.add("process vault kill=SIGKILL delay=60s name=removed")
        await stage.director.remove_fault(name="removed")
        stage.clock.advance_ns(59_000_000_000)
        await trio.testing.wait_all_tasks_blocked()
        assert [call for call in stage.injector.calls if call.startswith("act")] == []
        assert [status.fired for status in (await stage.director.list_faults()).rules] == [0, 0]
        stage.clock.advance_ns(1_000_000_000)
        await trio.testing.wait_all_tasks_blocked()
        assert [call for call in stage.injector.calls if call.startswith("act")] == ["act late", "act end"]


async def test_a_fault_that_was_due_when_the_director_was_killed_happens() -> None:
    async with running() as stage:
        state = {"seed": 1, "matched": 0, "fired": 0, "spared": 0, "last_ns": None}
        state |= {"was_open": True, "is_closed": False, "is_removed": False}
        rule = read_rule("process site kill=SIGKILL name=end")
        stage.schedule.resume([(rule, state)], sequence=0, marks=())
        await stage.director.resume()
        await trio.testing.wait_all_tasks_blocked()
        assert stage.injector.calls[-1] == "act end"
        assert stage.schedule.rule("end").fired == 1


async def test_a_failure_to_undo_leaves_no_rule_and_hides_no_error() -> None:
    async with running() as stage:
        stage.injector.refused, stage.injector.failure = "disarm", OSError(28, "No space left on device")
        with pytest.raises(RigError, match=r"'end': it failed: .*No space left on device") as error:
            await stage.add("process site kill=SIGKILL name=end")
        assert error.value.code == "FaultNotPossible"
        assert (await stage.director.list_faults()).rules == []


async def test_a_layer_whose_rules_cannot_be_removed_keeps_no_rule_of_another_one() -> None:
    async with running() as stage:
        others = RecordingInjector()
        others.layers = ("disk",)
        stage.director = FaultDirector(stage.schedule, [stage.injector, others], clock=stage.clock)
        await stage.add("process site pause=true name=stop", "disk write error=EIO name=bad")
        stage.injector.refused = "disarm"
        with pytest.raises(RigError, match="it is away"):
            await stage.director.clear_faults()
        assert others.calls[-1] == "disarm bad"
        assert [rule.name for rule in (await stage.director.list_faults()).rules] == ["stop"]
        stage.injector.refused = ""
        assert await stage.director.clear_faults() == 1


async def test_a_caller_that_ends_takes_no_fault_of_another_rule_along() -> None:
    async with running() as stage:
        await stage.add("process site kill=SIGKILL after=mark:now name=end")
        act, reached = stage.injector.act, trio.Event()

        async def slow(decision: FaultDecision) -> str:
            reached.set()
            await trio.sleep(0.01)
            return await act(decision)

        stage.injector.act = slow  # type: ignore[method-assign]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(stage.director.note_mark, name="now"))
            await reached.wait()
            nursery.cancel_scope.cancel()
        assert await stage.injected() == [("end", "killed it")]
