"""The host's clock is set, or the host restarts: no point is lost, health and RPO are right, and an event reports it."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.vault.model.resources import Event
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.control import CutInfo
from siterig.blockfs.core.clock_reading import SECOND_NS
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

pytestmark = pytest.mark.slow

HOUR_NS = 3600 * SECOND_NS
MINUTE_NS = 60 * SECOND_NS
DAYS_2_H = 48


async def take(world: World, *, age_s: float = 0.0) -> CutInfo:
    """A point of now, by the site's clock, which is the host's."""
    assert world.vault is not None
    world.position += 10
    cut = CutInfo(
        vm="web01",
        tag_id=f"00000000-0000-4000-8000-{world.position:012}",
        kind="CrashConsistent",
        name="cycle",
        position=world.position,
        time_ns=world.now_ns,
    )
    world.cached.append(("web01", cut))
    await world.vault.reports.point_sent(**cut.model_dump(), age_s=age_s)
    await world.apply_cached()
    return cut


async def points_of(vault: Vault) -> set[str]:
    return {point.id for point in await vault.recovery_points.points(vm="web01")}


async def jumps(vault: Vault) -> list[Event]:
    return [event for event in await vault.status.events() if event.eventCode == "ClockJumped"]


async def hour_of_points(world: World) -> None:
    for _ in range(12):
        world.clock.advance_ns(5 * MINUTE_NS)
        await take(world)


@pytest.mark.parametrize("by_h", [-DAYS_2_H, -1, 1, DAYS_2_H, 10_000])
async def test_no_point_goes_when_the_clock_is_set_and_set_again(tmp_path: Path, by_h: int) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await hour_of_points(world)
        before = await points_of(vault)
        world.clock.step_wall_ns(by_h * HOUR_NS)
        await take(world)
        await vault.retention.round()
        world.clock.advance_ns(6 * MINUTE_NS)
        await take(world)
        await vault.retention.round()
        world.clock.step_wall_ns(-by_h * HOUR_NS)
        await take(world)
        await vault.retention.round()
        assert await points_of(vault) >= before
        assert len(await jumps(vault)) == 2


async def test_no_point_is_pruned_after_a_restart_with_a_clock_two_days_ahead(
    tmp_path: Path,
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await hour_of_points(world)
        before = await points_of(vault)
    world.clock.advance_ns(MINUTE_NS)
    world.clock.step_wall_ns(DAYS_2_H * HOUR_NS)
    async with running(world, tmp_path) as vault:
        (event,) = await jumps(vault)
        assert (event.eventType, event.severity, event.affectedObject) == ("ServerHealth", "Warning", "rig")
        assert event.description.startswith("the host's clock was set forward by 2 days, 0:00:00, to ")
        await take(world)
        await vault.retention.round()
        assert await points_of(vault) >= before


@pytest.mark.parametrize(
    ("off_h", "told"),
    [
        (0.5, None),
        (1.5, "the host was off for 1:30:00, or its clock was set forward"),
        (-2.0, "the host's clock is 2:00:00 behind the last boot"),
        (10_000.0, "the host was off for 416 days, 16:00:00, or its clock was set forward"),
    ],
)
async def test_of_the_time_between_two_boots_an_hour_counts_at_most(tmp_path: Path, off_h: float, told: str | None) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await hour_of_points(world)
        before = await points_of(vault)
    world.clock.reboot(int(off_h * HOUR_NS))
    async with running(world, tmp_path) as vault:
        assert [event.description.split(":  ")[0].startswith(told or "?") for event in await jumps(vault)] == (
            [] if told is None else [True]
        )
        await take(world)
        await vault.retention.round()
        assert await points_of(vault) >= before


async def test_time_that_passed_prunes_points_and_an_event_reports_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await hour_of_points(world)
        before = len(await points_of(vault))
        world.clock.advance_ns(30 * HOUR_NS)
        await take(world)
        await vault.retention.round()
        (event,) = [event for event in await vault.status.events() if event.eventCode == "RecoveryPointsPruned"]
        assert (event.severity, event.affectedObject) == ("OK", "web01")
        gone = before + 1 - len(await points_of(vault))
        assert gone > 10
        assert event.description.startswith(f"{gone} recovery points of VM 'web01' were pruned: retention 24 h; the oldest ")
        assert await jumps(vault) == []


async def test_retention_counts_elapsed_time_when_the_clock_is_set(tmp_path: Path) -> None:
    """The rules go by the rig's clock: with the clock set every few hours, the number of points kept is the same."""
    left = []
    for name, step_h in (("steady", 0), ("jumping", 7)):
        world = World()
        (tmp_path / name).mkdir()
        async with running(world, tmp_path / name) as vault:
            await protected(vault)
            for number in range(4 * 30):
                world.clock.advance_ns(15 * MINUTE_NS)
                if number % 10 == 0:
                    world.clock.step_wall_ns((step_h if number % 20 else -step_h) * HOUR_NS)
                await take(world)
            await vault.retention.round()
            left.append(len(await points_of(vault)))
    assert left[0] == left[1]


@pytest.mark.parametrize("by_h", [-DAYS_2_H, -1, 1, DAYS_2_H])
async def test_no_cycle_is_missed_because_the_clock_was_set(tmp_path: Path, by_h: int) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for number in range(40):
            world.clock.advance_ns(30 * SECOND_NS)
            if number == 20:
                world.clock.step_wall_ns(by_h * HOUR_NS)
            await take(world)
        (item,) = await vault.status.items()
        assert item.replicationHealth == "Normal", item.healthErrors
        assert item.lastRpoInSeconds == pytest.approx(0, abs=0.001)


async def test_cycles_that_are_missed_after_the_clock_was_set_back_are_reported(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for _ in range(5):
            world.clock.advance_ns(30 * SECOND_NS)
            await take(world)
        world.clock.step_wall_ns(-DAYS_2_H * HOUR_NS)
        world.clock.advance_ns(2 * HOUR_NS)
        await vault.watch.round()
        (item,) = await vault.status.items()
        assert {"ReplicationCyclesMissed", "LogUnsent"} <= {error.errorCode for error in item.healthErrors}
        assert item.lastRpoInSeconds == pytest.approx(7200)


async def test_a_report_that_comes_late_has_the_age_of_the_state(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.clock.advance_ns(HOUR_NS)
        world.clock.step_wall_ns(-5 * HOUR_NS)
        await take(world, age_s=600)
        (item,) = await vault.status.items()
        assert item.lastRpoInSeconds == pytest.approx(600)


async def test_a_jobs_times_are_in_order_though_the_clock_is_set_back_while_it_runs(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        real = world.called

        async def called(name: str) -> None:
            world.clock.step_wall_ns(-HOUR_NS)
            await real(name)

        world.called = called  # type: ignore[method-assign]
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point="Latest"))
        times = [time for task in job.tasks for time in (task.startTime, task.endTime)]
        assert None not in times
        shown = [str(job.startTime), *map(str, times), str(job.endTime)]
        assert shown == sorted(shown)
