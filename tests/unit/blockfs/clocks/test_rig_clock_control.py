"""Changes of a rig's clock: they return when the roles follow, and name the roles that do not."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.clocks.clock_page import ClockPage
from siterig.blockfs.clocks.clock_terms import MILLION, SECOND_NS
from siterig.blockfs.clocks.controlled_clock import ControlledClock
from siterig.blockfs.clocks.rig_clock_control import RigClockControl
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.watch import inotify

HOUR_NS = 3600 * SECOND_NS


@pytest.fixture
def control(tmp_path: Path) -> Iterator[RigClockControl]:
    with RigClockControl(tmp_path / "clock", limit_s=0.05) as found:
        yield found


@asynccontextmanager
async def role(folder: Path, name: str, *, runs: bool = True) -> AsyncIterator[ControlledClock]:
    clock = ControlledClock(folder / "clock", name)
    try:
        async with trio.open_nursery() as nursery:
            if runs:
                await nursery.start(clock.run)
            yield clock
            nursery.cancel_scope.cancel()
    finally:
        clock.close()


async def test_a_change_returns_when_the_roles_follow(tmp_path: Path) -> None:
    with RigClockControl(tmp_path / "clock", limit_s=10) as control:
        async with role(tmp_path, "agent") as agent, role(tmp_path, "vault"):
            slept = trio.Event()

            async def sleeper() -> None:
                await agent.sleep(3600)
                slept.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(sleeper)
                await trio.testing.wait_all_tasks_blocked()
                state = await control.advance(HOUR_NS)
                assert slept.is_set()
            assert [(each.role, each.change, each.running) for each in state.roles] == [
                ("agent", 1, True),
                ("vault", 1, True),
            ]
            assert state.wall_ahead_ns == state.monotonic_ahead_ns == HOUR_NS
            assert not state.is_system


async def test_a_role_that_does_not_follow_is_named_and_the_change_stays(tmp_path: Path, control: RigClockControl) -> None:
    async with role(tmp_path, "agent", runs=False), role(tmp_path, "vault"):
        with pytest.raises(RigError, match=r"change 1.*did not follow: agent$") as error:
            await control.jump(HOUR_NS)
        assert error.value.code == "ClockNotFollowed"
        assert control.state().wall_ahead_ns == HOUR_NS


@pytest.mark.slow
async def test_a_role_that_has_ended_or_ends_meanwhile_is_not_waited_for(tmp_path: Path) -> None:
    with RigClockControl(tmp_path / "clock", limit_s=60) as control, ClockPage(tmp_path / "clock") as page:
        child = subprocess.Popen(["sleep", "600"])  # noqa: ASYNC220 (it returns at once)
        started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        page.claim("agent", HostProcess(pid=child.pid, started=started))
        page.claim("vault", HostProcess(pid=child.pid, started=started + 1))  # another process has its number now
        async with trio.open_nursery() as nursery:
            nursery.start_soon(control.jump, HOUR_NS)
            await trio.testing.wait_all_tasks_blocked()
            child.kill()
        child.wait()
        assert [each.running for each in control.state().roles] == [False, False]


async def test_a_jump_of_one_role_is_a_skew_that_keeps_its_drift(control: RigClockControl) -> None:
    await control.set_skew(["agent"], HOUR_NS, drift_ppm=100_000)
    await control.advance(10 * HOUR_NS)
    state = await control.jump(-2 * HOUR_NS, ["agent", "vault"])
    agent, vault = state.roles
    assert (agent.drift_ppm, vault.drift_ppm) == (100_000, 0)
    assert vault.skew_ns == -2 * HOUR_NS
    assert 0 <= agent.skew_ns < SECOND_NS  # 1 h, and 10 % of 10 h, less 2 h
    assert state.wall_ahead_ns == 10 * HOUR_NS


async def test_a_reset_is_the_system_again_but_for_monotonic_time(control: RigClockControl) -> None:
    assert control.state().is_system
    await control.set_rate(10 * MILLION)
    await control.set_skew(["agent"], HOUR_NS)
    await control.jump(HOUR_NS)
    state = await control.reset()
    assert (state.rate, state.wall_ahead_ns, [each.skew_ns for each in state.roles]) == (1.0, 0, [0])
    assert state.monotonic_ahead_ns > 0
    assert not state.is_system


async def test_without_an_inotify_instance_a_change_still_waits_for_the_roles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with RigClockControl(tmp_path / "clock", limit_s=10) as control:
        async with role(tmp_path, "agent"):
            monkeypatch.setattr(inotify, "open_instance", none_left)
            assert [each.change for each in (await control.advance(HOUR_NS)).roles] == [1]


@pytest.mark.slow
async def test_a_stopped_role_is_not_waited_for(control: RigClockControl, tmp_path: Path) -> None:
    """It does nothing before it sees the change."""
    with subprocess.Popen(["sleep", "600"]) as child, ClockPage(tmp_path / "clock") as page:  # noqa: ASYNC220
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)  # noqa: ASYNC222 (it stops at once)
        started = int(Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19])
        page.claim("agent", HostProcess(pid=child.pid, started=started))
        await control.jump(HOUR_NS)
        child.kill()
