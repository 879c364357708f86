"""The clock of a role follows the page: its times, its sleepers, and the records of the C core."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.clocks.clock_page import PAGE_BYTES, SEQUENCE_AT, TERMS_AT, TERMS_STEP, ClockPage, ensure_page
from siterig.blockfs.clocks.clock_terms import MILLION, SECOND_NS, ClockTerms, KernelTimes
from siterig.blockfs.clocks.controlled_clock import ControlledClock
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.cext._core import lib

HOUR_NS = 3600 * SECOND_NS
NEAR_NS = SECOND_NS
"""Two readings of one clock in a test differ by less."""


class Rig:
    """A page, with the changes that a user makes, and the clocks of some roles."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "clock"
        ensure_page(self.path)
        self.page = ClockPage(self.path)
        self.clocks: list[ControlledClock] = []

    def clock(self, role: str) -> ControlledClock:
        self.clocks.append(ControlledClock(self.path, role))
        return self.clocks[-1]

    def close(self) -> None:
        for clock in self.clocks:
            clock.close()
        self.page.close()

    def change(self, make: Callable[[ClockTerms, KernelTimes], ClockTerms]) -> int:
        return self.page.change(make).generation

    def advance(self, by_ns: int) -> int:
        return self.change(lambda terms, kernel: terms.advanced(by_ns, kernel))

    def jump(self, by_ns: int) -> int:
        return self.change(lambda terms, kernel: terms.jumped(by_ns, kernel))

    def rate(self, times: float) -> int:
        return self.change(lambda terms, kernel: terms.with_rate(int(times * MILLION), kernel))

    def skew(self, role: str, by_ns: int, drift_ppm: int = 0) -> int:
        slot = self.page.claim(role).number
        return self.change(lambda terms, kernel: terms.with_skews({slot: by_ns}, kernel, {slot: drift_ppm}))

    async def followed(self, role: str, generation: int) -> None:
        """Wait until the role has taken over a change."""
        with trio.fail_after(10):
            while (slot := self.page.slot_of(role)) is None or slot.acknowledged < generation:
                await trio.lowlevel.checkpoint()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    found = Rig(tmp_path)
    try:
        yield found
    finally:
        found.close()


@asynccontextmanager
async def running(clock: ControlledClock) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        await nursery.start(clock.run)
        yield nursery
        nursery.cancel_scope.cancel()


def ahead_ns(clock: ControlledClock) -> tuple[int, int, int]:
    """Return the lead over the system's clock of wall, monotonic and boot time, in whole seconds."""
    system = (SYSTEM_CLOCK.wall_ns(), SYSTEM_CLOCK.monotonic_ns(), SYSTEM_CLOCK.boottime_ns())
    ours = (clock.wall_ns(), clock.monotonic_ns(), clock.boottime_ns())
    wall, monotonic, boottime = (
        round((mine - kernel) / NEAR_NS) * NEAR_NS for mine, kernel in zip(ours, system, strict=True)
    )
    return wall, monotonic, boottime


# --- times ------------------------------------------------------------------------------------------------------------


def test_a_clock_that_was_never_changed_is_the_systems_exactly(rig: Rig) -> None:
    clock = rig.clock("agent")
    for ours, system in (
        (clock.wall_ns, SYSTEM_CLOCK.wall_ns),
        (clock.monotonic_ns, SYSTEM_CLOCK.monotonic_ns),
        (clock.boottime_ns, SYSTEM_CLOCK.boottime_ns),
    ):
        before, now, after = system(), ours(), system()
        assert before <= now <= after
    assert rig.page.terms().is_system
    assert clock.boot_id == SYSTEM_CLOCK.boot_id


def test_an_advance_moves_wall_and_monotonic_time_of_all_roles(rig: Rig) -> None:
    agent, vault = rig.clock("agent"), rig.clock("vault")
    rig.advance(25 * HOUR_NS)
    rig.advance(HOUR_NS)
    for clock in (agent, vault):
        assert ahead_ns(clock) == (26 * HOUR_NS,) * 3


def test_a_jump_moves_wall_time_only(rig: Rig) -> None:
    clock = rig.clock("agent")
    rig.jump(-HOUR_NS)
    assert ahead_ns(clock) == (-HOUR_NS, 0, 0)


def test_a_skew_moves_the_wall_time_of_one_role(rig: Rig) -> None:
    agent, vault = rig.clock("agent"), rig.clock("vault")
    rig.skew("agent", HOUR_NS)
    assert ahead_ns(agent) == (HOUR_NS, 0, 0)
    assert ahead_ns(vault) == (0, 0, 0)


def test_a_drift_grows_with_the_controlled_time(rig: Rig) -> None:
    agent = rig.clock("agent")
    rig.skew("agent", -30 * SECOND_NS, drift_ppm=100_000)
    rig.advance(1000 * SECOND_NS)
    assert ahead_ns(agent) == (1070 * SECOND_NS, 1000 * SECOND_NS, 1000 * SECOND_NS)


def test_a_rate_lets_both_times_run_faster_and_goes_nowhere_back(rig: Rig) -> None:
    clock = rig.clock("agent")
    start_ns, started = SYSTEM_CLOCK.monotonic_ns(), clock.monotonic_ns()
    last_ns = started
    for times in (1000, 0.5, 1000, 1, 0):
        rig.rate(times)
        until_ns = SYSTEM_CLOCK.monotonic_ns() + 10_000_000
        while SYSTEM_CLOCK.monotonic_ns() < until_ns:
            now_ns = clock.monotonic_ns()
            assert now_ns >= last_ns
            last_ns = now_ns
    real_ns = SYSTEM_CLOCK.monotonic_ns() - start_ns
    assert clock.monotonic_ns() - started > 12 * SECOND_NS > 10 * real_ns
    assert clock.monotonic_ns() == clock.monotonic_ns()  # the last rate is 0: time stands still


def test_a_reset_restores_wall_time_and_speed_and_keeps_monotonic_time(rig: Rig) -> None:
    clock = rig.clock("agent")
    rig.advance(5 * HOUR_NS)
    rig.jump(-HOUR_NS)
    rig.skew("agent", HOUR_NS, drift_ppm=50)
    rig.rate(0)
    rig.change(lambda terms, kernel: terms.as_system(kernel))
    assert ahead_ns(clock) == (0, 5 * HOUR_NS, 5 * HOUR_NS)
    assert rig.page.terms().wall_is_system


def test_c_and_python_calculate_the_same_times(rig: Rig) -> None:
    clock = rig.clock("agent")
    rig.skew("agent", 12345, drift_ppm=-777)
    rig.advance(HOUR_NS + 1)
    rig.rate(3.000001)
    terms, slot = rig.page.terms(), rig.page.claim("agent").number
    for _ in range(20):
        low = KernelTimes.now()
        wall_ns, monotonic_ns = clock.wall_ns(), clock.monotonic_ns()
        high = KernelTimes.now()
        assert terms.wall_at(low, slot) <= wall_ns <= terms.wall_at(high, slot)
        assert terms.monotonic_at(low) <= monotonic_ns <= terms.monotonic_at(high)


def test_a_change_that_leaves_the_allowed_times_changes_nothing(rig: Rig) -> None:
    changes: tuple[Callable[[], object], ...] = (
        lambda: rig.jump(-40 * 366 * 24 * HOUR_NS),
        lambda: rig.jump(200 * 366 * 24 * HOUR_NS),
        lambda: rig.skew("agent", -40 * 366 * 24 * HOUR_NS),
        lambda: rig.advance(-1),
        lambda: rig.rate(1001),
        lambda: rig.rate(-1),
        lambda: rig.skew("agent", 0, drift_ppm=-MILLION),
    )
    for change in changes:
        with pytest.raises(RigError) as error:
            change()
        assert error.value.code == "InvalidClock"
    assert rig.page.terms().is_system
    assert rig.page.sequence == 0


def test_after_a_reboot_of_the_machine_the_clock_keeps_its_shift(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.advance(5 * HOUR_NS)
    rig.page.settle_after_reboot()
    assert rig.page.sequence == 1  # the same boot: nothing to do
    monkeypatch.setattr("siterig.blockfs.core.boot.kernel_boot_id", lambda: "00000000-0000-4000-8000-000000000000")
    rig.page.settle_after_reboot()
    assert rig.page.sequence == 2
    assert ahead_ns(rig.clock("agent")) == (5 * HOUR_NS,) * 3


def test_records_of_the_c_core_have_the_wall_time_of_the_attached_clock(rig: Rig) -> None:
    clock = rig.clock("site")
    rig.jump(7 * HOUR_NS)
    assert abs(lib.sr_time_of_day_ns() - SYSTEM_CLOCK.wall_ns()) < NEAR_NS
    clock.attach_core()
    assert abs(lib.sr_time_of_day_ns() - SYSTEM_CLOCK.wall_ns() - 7 * HOUR_NS) < NEAR_NS
    rig.skew("site", HOUR_NS)
    assert abs(lib.sr_time_of_day_ns() - clock.wall_ns()) < NEAR_NS
    clock.close()
    rig.clocks.remove(clock)
    assert abs(lib.sr_time_of_day_ns() - SYSTEM_CLOCK.wall_ns()) < NEAR_NS


# --- sleepers ---------------------------------------------------------------------------------------------------------


async def test_an_advance_wakes_hundreds_of_sleepers_in_the_order_of_their_deadlines(rig: Rig) -> None:
    clock, woken = rig.clock("agent"), list[int]()
    hours = [n * 7919 % 600 + 1 for n in range(600)]  # each of 1 to 600 once, in no order

    async def sleeper(n: int) -> None:
        if n % 3 == 0:
            await clock.sleep(n * 3600)
        elif n % 3 == 1:
            with clock.move_on_after(n * 3600):
                await trio.sleep_forever()
        else:
            with pytest.raises(trio.TooSlowError), clock.fail_after(n * 3600):
                await trio.sleep_forever()
        woken.append(n)

    async with running(clock) as nursery:
        for n in hours:
            nursery.start_soon(sleeper, n)
        await trio.testing.wait_all_tasks_blocked()
        await rig.followed("agent", rig.advance(400 * HOUR_NS))
        assert woken == list(range(1, 401))
        await rig.followed("agent", rig.advance(200 * HOUR_NS))
        assert woken == list(range(1, 601))


async def test_a_sleeper_that_a_woken_one_cancels_does_not_wake(rig: Rig) -> None:
    clock, woken = rig.clock("agent"), list[str]()
    scope = trio.CancelScope()

    async def first() -> None:
        await clock.sleep(100)
        scope.cancel()
        woken.append("first")

    async def second() -> None:
        with scope:
            await clock.sleep(200)
            woken.append("second")

    async with running(clock) as nursery:
        nursery.start_soon(first)
        nursery.start_soon(second)
        await trio.testing.wait_all_tasks_blocked()
        await rig.followed("agent", rig.advance(HOUR_NS))
    assert woken == ["first"]


async def test_a_jump_and_a_skew_wake_no_sleeper(rig: Rig) -> None:
    clock = rig.clock("agent")
    async with running(clock) as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(clock.sleep, 3600)
            await trio.testing.wait_all_tasks_blocked()
            await rig.followed("agent", rig.jump(1000 * HOUR_NS))
            await rig.followed("agent", rig.skew("agent", 1000 * HOUR_NS, drift_ppm=10 * MILLION))
            assert len(clock.timers) == 1
        assert not scope.cancelled_caught


async def test_with_a_rate_a_long_sleep_is_short_and_without_time_none_ends(rig: Rig) -> None:
    clock = rig.clock("agent")
    async with running(clock) as nursery:
        slept = trio.Event()

        async def sleeper() -> None:
            await clock.sleep(30)
            slept.set()

        await rig.followed("agent", rig.rate(0))
        nursery.start_soon(sleeper)
        await trio.testing.wait_all_tasks_blocked()
        assert math.isinf(clock.real_seconds_until(clock.monotonic_ns() + 1))
        began_ns = clock.monotonic_ns()
        with trio.fail_after(10):
            await rig.followed("agent", rig.rate(1000))
            await slept.wait()
        assert clock.monotonic_ns() - began_ns >= 30 * SECOND_NS


async def test_a_sleep_never_ends_before_its_time(rig: Rig) -> None:
    clock = rig.clock("agent")
    async with running(clock):
        for times in (1, 1000, 3, 0.5):
            await rig.followed("agent", rig.rate(times))
            for seconds in (0.0, 0.001, 0.01 * times):
                due_ns = clock.monotonic_ns() + int(seconds * SECOND_NS)
                await clock.sleep(seconds)
                assert clock.monotonic_ns() >= due_ns - 1000  # trio's own times are floating-point numbers


def descriptors() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


async def test_a_sleeping_thread_follows_the_clock(rig: Rig) -> None:
    clock = rig.clock("agent")
    rig.rate(0.000001)  # the hour would take 114 years, more than poll(2) takes
    before = descriptors()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, clock.sleep_thread, 3600.0)
        with trio.fail_after(10):
            while descriptors() <= before:
                await trio.lowlevel.checkpoint()
        rig.advance(2 * HOUR_NS)


async def test_the_real_clock_of_a_role_follows_no_change(rig: Rig) -> None:
    clock = rig.clock("agent")
    async with running(clock) as nursery:
        with clock.real.move_on_after(60) as scope:
            rig_change = rig.advance(HOUR_NS)
            await rig.followed("agent", rig_change)
        assert not scope.cancelled_caught
        nursery.cancel_scope.cancel()
    assert clock.real is SYSTEM_CLOCK


# --- the page ---------------------------------------------------------------------------------------------------------


def test_readers_see_whole_changes_while_many_writers_change_the_page(rig: Rig) -> None:
    """Each change moves wall and monotonic time by the same, so a mixture of two changes would be seen as a difference."""
    clock = rig.clock("agent")
    rig.jump(HOUR_NS)
    ended, wrong = threading.Event(), list[int]()

    def writer() -> None:
        with ClockPage(rig.path) as page:
            for _ in range(300):
                page.change(lambda terms, kernel: terms.advanced(SECOND_NS, kernel))

    def reader() -> None:
        lead_ns = SYSTEM_CLOCK.wall_ns() - SYSTEM_CLOCK.monotonic_ns() + HOUR_NS
        while not ended.is_set():
            before = clock.monotonic_ns()
            wall = clock.wall_ns()
            after = clock.monotonic_ns()
            if not before - SECOND_NS // 2 <= wall - lead_ns <= after + SECOND_NS // 2:
                wrong.append(wall)

    writers = [threading.Thread(target=writer) for _ in range(3)]
    readers = [threading.Thread(target=reader) for _ in range(2)]
    for thread in (*readers, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    for thread in readers:
        thread.join()
    assert not wrong
    assert rig.page.sequence == 901
    assert ahead_ns(clock) == (900 * SECOND_NS + HOUR_NS, 900 * SECOND_NS, 900 * SECOND_NS)


def test_a_writer_that_is_killed_half_way_changes_nothing(rig: Rig) -> None:
    clock = rig.clock("agent")
    rig.advance(HOUR_NS)
    half = TERMS_AT + ((rig.page.sequence + 1) & 1) * TERMS_STEP
    os.pwrite(rig.page.fd, b"\xa5" * 500, half)
    assert ahead_ns(clock)[0] == HOUR_NS
    rig.advance(HOUR_NS)
    assert ahead_ns(clock)[0] == 2 * HOUR_NS


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda fd: os.ftruncate(fd, 100), "has 100 bytes"),
        (lambda fd: os.ftruncate(fd, PAGE_BYTES * 2), "has 8192 bytes"),
        (lambda fd: os.pwrite(fd, b"X", 0), "begins with"),
        (lambda fd: os.pwrite(fd, b"\x02", 8), "version 2"),
        (lambda fd: os.pwrite(fd, b"\x09", SEQUENCE_AT), "checksum"),
        (lambda fd: os.pwrite(fd, b"\xff", TERMS_AT + 30), "checksum"),
        (lambda fd: os.pwrite(fd, b"../../etc", 2048), "name of role 0"),
        (lambda fd: os.pwrite(fd, b"\xff" * 8, 2048 + 24), "process of role 'agent'"),
        (lambda fd: os.fchmod(fd, 0o644), "0644"),
    ],
)
def test_a_damaged_page_is_refused_by_name_and_field(rig: Rig, damage: Callable[[int], object], named: str) -> None:
    rig.page.claim("agent")
    damage(rig.page.fd)
    with pytest.raises(RigError, match=named) as error:
        ClockPage(rig.path)
    assert str(rig.path) in error.value.message


@pytest.mark.parametrize("damage", [lambda fd: os.ftruncate(fd, 0), lambda fd: os.pwrite(fd, b"\xa5" * 2000, 0)])
def test_damage_while_a_role_runs_leaves_its_time_as_it_was(rig: Rig, damage: Callable[[int], object]) -> None:
    clock = rig.clock("agent")
    rig.advance(HOUR_NS)
    assert ahead_ns(clock)[0] == HOUR_NS
    damage(rig.page.fd)
    assert ahead_ns(clock) == (HOUR_NS,) * 3


def test_a_slot_is_kept_by_name_and_the_last_is_refused(rig: Rig) -> None:
    first = rig.page.claim("agent")
    assert rig.page.claim("agent") == first
    for n in range(31):
        rig.page.claim(f"role-{n}")
    with pytest.raises(RigError, match="all 32 slots"):
        rig.page.claim("one-more")
    with pytest.raises(RigError, match="small letters"):
        rig.page.claim("../x")
