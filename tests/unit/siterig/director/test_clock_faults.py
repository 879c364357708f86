"""Faults of the clock: jumps, skews and drifts of a rig's roles, moved back with their rules."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.clocks import imposed_faults
from siterig.blockfs.clocks.clock_page import ClockPage
from siterig.blockfs.clocks.clock_terms import SECOND_NS
from siterig.blockfs.clocks.rig_clock_control import RigClockControl
from siterig.blockfs.core.errors import Code, RigError
from siterig.director.clock_faults import ClockInjector
from siterig.director.director import FaultDirector
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultSchedule
from tests.support.clocks import FakeClock


class Stage:
    """A director with the injector of the clock, and a page on which three roles have slots."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.page = folder / "clock"
        self.injector = ClockInjector(self.page, folder / "faults.json")
        with ClockPage(self.page) as page:
            for role in ("agent", "vault", "faults"):
                page.claim(role)
        self.schedule = FaultSchedule(1, clock=self.clock)
        self.director = FaultDirector(self.schedule, [self.injector], clock=self.clock, save=lambda: None)

    async def add(self, words: str) -> None:
        await self.director.add_faults(rules=[read_rule(words).document()])

    def leads_s(self) -> list[int]:
        """Return by how many seconds the clock and the three roles are ahead."""
        with RigClockControl(self.page) as control:
            state = control.state()
        leads_ns = [state.wall_ahead_ns, *(state.wall_ahead_ns + role.skew_ns for role in state.roles)]
        return [round(lead_ns / SECOND_NS) for lead_ns in leads_ns]


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[Stage]:
    stage = Stage(folder)
    async with trio.open_nursery() as nursery:
        await nursery.start(stage.director.run)
        yield stage
        nursery.cancel_scope.cancel()


async def test_a_jump_of_all_roles_lasts_until_its_rule_is_removed(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        await stage.add("clock jump=+1h name=late")
        assert stage.leads_s() == [3600] * 4
        (injection,) = await stage.director.injections(after=0)
        assert injection.done == "wall time jumped by +1h: all roles"
        await stage.director.remove_fault(name="late")
        assert stage.leads_s() == [0] * 4


async def test_a_skew_ends_with_the_window_of_its_rule(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        await stage.add("clock agent skew=-30s for=20s name=slow")
        await stage.add("clock role=* jump=+5s name=all")  # all but the director
        assert stage.leads_s() == [0, -25, 5, 0]
        stage.clock.advance_ns(20 * SECOND_NS)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.leads_s() == [0, 5, 5, 0]


async def test_a_clock_that_cannot_be_moved_back_stays_in_the_list_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_path: Path, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with running(tmp_path) as stage:
        await stage.add("clock jump=+1h for=20s name=late")
        await stage.add("clock mark=seen after=mark:never name=other")
        with monkeypatch.context() as patch:
            patch.setattr(imposed_faults, "write_atomically", full)
            stage.clock.advance_ns(20 * SECOND_NS)  # the end of the window ends nothing else
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(RigError, match=r"fault 'late': the clock cannot be moved back: .*No space left") as failed:
                await stage.director.clear_faults()
            assert failed.value.code == Code.FaultNotPossible
        assert [rule.name for rule in (await stage.director.list_faults()).rules] == ["late"]
        assert stage.leads_s() == [3600] * 4
        assert await stage.director.clear_faults() == 1
        assert stage.leads_s() == [0] * 4


async def test_a_drift_is_an_injection_that_names_role_and_drift(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        await stage.add("clock agent drift=+200ppm skew=+1s name=drift")
        (injection,) = await stage.director.injections(after=0)
        assert injection.done == "wall time skewed by +1s and drifts by +200ppm: agent"


async def test_a_rule_that_cannot_be_put_in_force_is_refused_by_name(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        for words, problem in (
            ("clock agnt skew=+1h name=x", r"where.role: 'agnt' matches no role.*agent.*allowed: agent, vault, faults"),
            ("clock skew=+1h name=x", r"what.skew: where.role is missing"),
            ("clock drift=+1% name=x", r"what.drift: where.role is missing"),
        ):
            with pytest.raises(RigError, match=problem) as error:
                await stage.add(words)
            assert error.value.code == "FaultNotPossible"
        for number in range(2):
            await stage.add(f"clock jump=-3650d name=back-{number}")
        with pytest.raises(RigError, match="allowed is 2000-01-01 to 2200-01-01"):
            await stage.add("clock jump=-3650d name=back-too-far")
        assert [rule.name for rule in (await stage.director.list_faults()).rules] == ["back-0", "back-1"]


async def test_the_next_director_knows_the_faults_of_a_killed_one(tmp_path: Path) -> None:
    async with running(tmp_path) as killed:
        await killed.add("clock jump=+1h name=kept")
        await killed.add("clock agent skew=+60s name=gone")
        armed = [each for each in killed.schedule.armed() if each.label == "kept"]
    following = ClockInjector(tmp_path / "clock", tmp_path / "faults.json")
    await following.resume(armed)
    assert killed.leads_s() == [3600] * 4
    await following.disarm(armed)
    assert killed.leads_s() == [0] * 4


async def test_a_role_that_does_not_follow_keeps_no_rule_armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def not_followed(_self: RigClockControl, _change: int) -> None:
        raise RigError(Code.ClockNotFollowed, "vault did not follow")

    async with running(tmp_path) as stage:
        await stage.add("clock jump=+1h name=late")
        monkeypatch.setattr(RigClockControl, "wait_followed", not_followed)
        with pytest.raises(RigError, match="vault did not follow"):
            await stage.add("clock jump=+1h name=refused")
        assert [rule.name for rule in (await stage.director.list_faults()).rules] == ["late"]
        assert stage.leads_s() == [3600] * 4
        await stage.director.remove_fault(name="late")
        assert stage.leads_s() == [0] * 4


async def test_the_removal_of_a_rule_moves_nothing_after_a_reset(tmp_path: Path) -> None:
    async with running(tmp_path) as stage:
        await stage.add("clock jump=+1h name=late")
        await stage.add("clock agent skew=+1h name=skew")
        with RigClockControl(stage.page, faults=tmp_path / "faults.json") as control:
            await control.reset()
        assert stage.leads_s() == [0] * 4
        assert await stage.director.clear_faults() == 2
        assert stage.leads_s() == [0] * 4
