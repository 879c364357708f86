"""The clocks of a host: elapsed time within a boot and between boots, and the jumps that are reported."""

from __future__ import annotations

import time
import uuid

import pytest
import trio

from siterig.azure_emu.vault.context.rig_clock import place
from siterig.blockfs.core.clock import SYSTEM_CLOCK, SystemClock
from siterig.blockfs.core.clock_reading import SECOND_NS, ClockReading
from tests.support.clocks import FakeClock, SettableClock

HOUR_NS = 3600 * SECOND_NS
BOOT = str(uuid.uuid4())


def at(boottime_ns: int, wall_ns: int, boot_id: str = BOOT) -> ClockReading:
    return ClockReading(boot_id=boot_id, boottime_ns=boottime_ns, wall_ns=wall_ns)


@pytest.mark.parametrize("wall_step_ns", [-(10**18), -HOUR_NS, 0, HOUR_NS, 10**18])
def test_within_a_boot_the_wall_clock_is_ignored(wall_step_ns: int) -> None:
    before = at(5 * HOUR_NS, 10**18)
    assert before.elapsed_ns(at(8 * HOUR_NS, 10**18 + wall_step_ns)) == 3 * HOUR_NS


@pytest.mark.parametrize(
    ("step_ns", "counted_ns"),
    [
        (0, 0),
        (HOUR_NS // 2, HOUR_NS // 2),
        (HOUR_NS, HOUR_NS),
        (HOUR_NS + 1, 0),
        (1000 * HOUR_NS, 0),
        (-1, 0),
        (-1000 * HOUR_NS, 0),
    ],
)
def test_between_boots_a_step_of_more_than_an_hour_counts_as_zero(step_ns: int, counted_ns: int) -> None:
    before, after = at(5 * HOUR_NS, 10**18), at(SECOND_NS, 10**18 + step_ns, str(uuid.uuid4()))
    assert before.elapsed_ns(after) == counted_ns
    assert before.jump_ns(after) == (0 if counted_ns == step_ns or abs(step_ns) < SECOND_NS else step_ns - counted_ns)


@pytest.mark.parametrize(
    ("elapsed_s", "wall_s", "jump_s"),
    [(100, 100, 0), (100, 104, 0), (100, 110, 10), (100, 90, -10), (100_000, 100_099, 0), (100_000, 100_200, 200)],
)
def test_a_jump_is_a_step_that_clock_drift_cannot_explain(elapsed_s: int, wall_s: int, jump_s: int) -> None:
    before = at(0, 10**18)
    assert before.jump_ns(at(elapsed_s * SECOND_NS, 10**18 + wall_s * SECOND_NS)) == jump_s * SECOND_NS


def test_the_hosts_own_clock_reads_boottime() -> None:
    first, second = SYSTEM_CLOCK.read(), SYSTEM_CLOCK.read()
    assert first.boot_id == second.boot_id
    assert 0 <= first.elapsed_ns(second) < 60 * SECOND_NS
    assert abs(first.boottime_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) < 60 * SECOND_NS


@pytest.mark.parametrize(
    ("time_ns", "placed_ns"),
    [(1_000_000 + 30, 130), (1_000_000 + 10**18, 150), (1_000_000 - 10**18, 100), (1_000_000, 100)],
)
def test_a_wall_time_places_a_point_between_the_previous_one_and_now(time_ns: int, placed_ns: int) -> None:
    assert place((100, 1_000_000), time_ns, upto_ns=150) == placed_ns


def test_the_first_point_has_the_present_time() -> None:
    assert place(None, 10**18, upto_ns=150) == 150


async def test_the_system_clock_sleeps_and_ends_by_the_trio_run(autojump_clock: object) -> None:
    clock = SystemClock()
    began_s = clock.trio_time_s()
    await clock.sleep(3600)
    await clock.sleep_until(began_s + 7200)
    with clock.move_on_after(3600) as scope:
        await trio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(trio.TooSlowError), clock.fail_after(3600):
        await trio.sleep_forever()
    assert clock.trio_time_s() - began_s == pytest.approx(4 * 3600)


def test_the_system_clock_counts_in_threads_too() -> None:
    clock = SystemClock()
    first, first_boot = clock.monotonic_ns(), clock.boottime_ns()
    clock.sleep_thread(0.01)
    assert 10_000_000 <= clock.monotonic_ns() - first < 60 * SECOND_NS
    assert 10_000_000 <= clock.boottime_ns() - first_boot < 60 * SECOND_NS
    assert abs(clock.wall_ns() - time.time_ns()) < 60 * SECOND_NS


def test_a_settable_clock_separates_elapsed_time_steps_and_boots() -> None:
    clock = SettableClock()
    first = clock.read()
    clock.advance_ns(5 * SECOND_NS)
    clock.step_wall_ns(-HOUR_NS)
    assert (first.elapsed_ns(clock.read()), first.jump_ns(clock.read())) == (5 * SECOND_NS, -HOUR_NS)
    clock.reboot(60 * SECOND_NS)
    assert clock.read().boot_id != first.boot_id


async def test_a_fake_clock_ends_sleeps_and_deadlines_only_when_advanced(nursery: trio.Nursery) -> None:
    clock, ended = FakeClock(), list[tuple[str, float]]()

    async def sleeps(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        ended.append((name, clock.trio_time_s()))

    async def every(name: str, seconds: float, times: int) -> None:
        for _ in range(times):
            await sleeps(name, seconds)

    async def waits(seconds: float) -> None:
        with clock.move_on_after(seconds) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught
        ended.append(("moved on", clock.trio_time_s()))
        with clock.move_on_after(100) as scope:
            await clock.sleep(0)
        assert not scope.cancelled_caught

    nursery.start_soon(sleeps, "long", 30)
    nursery.start_soon(every, "short", 8, 3)
    nursery.start_soon(waits, 20)
    await clock.run_for(7)
    assert ended == []
    first = clock.read()
    await clock.run_for(24)
    assert ended == [("short", 8), ("short", 16), ("moved on", 20), ("short", 24), ("long", 30)]
    assert first.elapsed_ns(clock.read()) == 24 * SECOND_NS
    assert clock.trio_time_s() == 31


async def test_a_fake_deadline_raises_only_if_it_ended_the_block(nursery: trio.Nursery) -> None:
    clock, raised = FakeClock(), list[bool]()

    async def waits(seconds: float) -> None:
        try:
            with clock.fail_after(10):
                await clock.sleep(seconds)
        except trio.TooSlowError:
            raised.append(True)
        else:
            raised.append(False)

    nursery.start_soon(waits, 5)
    await clock.run_for(20)
    nursery.start_soon(waits, 50)
    await clock.run_for(20)
    assert raised == [False, True]
