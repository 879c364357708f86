"""The user's settings at the agent: a paused VM sends nothing, whatever restarts, and its schedule can change."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.sides.vault_link import ReplicationSettings
from siterig.replication.replicas.replica import PAUSED_CHECK_S
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path)
    await rig.make_vm()
    say(rig, paused=False)
    return rig


def say(rig: Rig, *, paused: bool) -> None:
    """Let the vault give this answer to the agent's question."""
    rig.vault.user_settings = ReplicationSettings(
        paused=paused, interval_s=rig.interval_s, app_consistent_every_s=rig.app_consistent_every_s
    )


async def test_no_cycle_runs_while_paused_and_one_runs_at_once_on_resume(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        say(rig, paused=True)
        await agent.pause(vm=VM)
        before = list(rig.vault.points)
        for _ in range(3):
            rig.write(5)
            await trio.sleep(2 * rig.interval_s)
        assert rig.vault.points == before
        assert sum(disk.unsent_log_bytes for disk in await rig.host.list_disks(vm=VM)) > 0
        say(rig, paused=False)
        await agent.resume(vm=VM)
        await trio.sleep(1)
        (new,) = rig.vault.points[len(before) :]
        assert rig.vault.resyncs == []
    rig.check_point(new)
    assert len(rig.history) == 15  # all of them are in the point, by check_point
    assert new >= rig.history[-1][0]


async def test_a_pause_interrupts_a_running_cycle_and_its_point_is_sent_later(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        rig.write(5)
        with rig.cache_down():
            await trio.sleep(2 * rig.interval_s)  # the cut is made, and cannot be sent
            say(rig, paused=True)
            await agent.pause(vm=VM)
            assert not [wait for wait in rig.waits.list() if wait.vm == VM]
        await trio.sleep(4 * rig.interval_s)
        known = list(rig.vault.points)
        say(rig, paused=False)
        await agent.resume(vm=VM)
        await trio.sleep(1)
        new = rig.vault.points[len(known) :]
        assert len(new) == 2
    for position in new:
        rig.check_point(position)


@pytest.mark.parametrize("kills_host", [False, True])
async def test_a_pause_survives_restarts(rig: Rig, autojump_clock: MockClock, *, kills_host: bool) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        say(rig, paused=True)
        await agent.pause(vm=VM)
    before = list(rig.vault.points)
    if kills_host:
        rig.kill_host()
    async with rig.agent() as agent:
        rig.write(5)
        await trio.sleep(5 * rig.interval_s)
        assert rig.vault.points == before
        say(rig, paused=False)
        await agent.resume(vm=VM)
        await trio.sleep(1)
        (new,) = rig.vault.points[len(before) :]
    rig.check_point(new)


async def test_a_lost_order_is_followed_after_a_while(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        say(rig, paused=True)
        await agent.pause(vm=VM)
        before = list(rig.vault.points)
        say(rig, paused=False)  # the call to resume does not arrive
        await trio.sleep(PAUSED_CHECK_S + 1)
        assert len(rig.vault.points) > len(before)
    say(rig, paused=True)  # the agent is killed before the call to pause arrives
    before = list(rig.vault.points)
    async with rig.agent() as agent:
        await trio.sleep(3 * rig.interval_s)
        assert rig.vault.points == before


async def test_a_log_that_becomes_too_long_while_paused_makes_a_resync_due(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        say(rig, paused=True)
        await agent.pause(vm=VM)
        rig.write(200)
        await trio.sleep(2 * PAUSED_CHECK_S)
        assert rig.vault.resyncs == ["LogOverflow"]
        say(rig, paused=False)
        await agent.resume(vm=VM)
        await agent.resync(vm=VM)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)


async def test_a_paused_vm_refuses_a_cycle_and_replaces_asked_parts_only(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.recovery.running = False
        rig.write(5)
        await rig.cycle(agent)
        say(rig, paused=True)
        await agent.pause(vm=VM)
        with pytest.raises(RigError, match="VM 'web01' is paused; a cycle runs after siterig resume web01"):
            await rig.cycle(agent)
        rig.write(5)
        there = set(rig.cache.blobs)
        asked = next(part for part in there if part.stream == "log")
        del rig.cache.blobs[asked]
        await agent.send_again(vm=VM, parts=[asked.blob()])
        assert set(rig.cache.blobs) == there


async def test_a_copy_in_progress_is_not_paused(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await agent.create_relationship(vm=VM, interval_s=30, app_consistent_every_s=None)
        with pytest.raises(RigError, match="is in phase 'created'; it can be paused in the phases 'delta'") as caught:
            await agent.pause(vm=VM)
        assert caught.value.code == "InvalidState"


@pytest.mark.parametrize("call", [1, 2, 3])
async def test_a_kill_in_a_cycle_that_resumes_loses_nothing(rig: Rig, autojump_clock: MockClock, call: int) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        say(rig, paused=True)
        await agent.pause(vm=VM)
        rig.write(10)
        say(rig, paused=False)
        rig.interceptor.kill_at = rig.interceptor.calls + call
        await agent.resume(vm=VM)
        await trio.sleep(1)
    rig.interceptor.kill_at = None
    async with rig.agent() as agent:
        await trio.sleep(2)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)
    assert rig.vault.resyncs == []


async def test_another_interval_and_schedule_hold_at_once_and_after_a_restart(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        rig.guests.mounted = ["/mnt"]
        rig.interval_s, rig.app_consistent_every_s = 5.0, 10.0
        say(rig, paused=False)
        await agent.change_schedule(vm=VM, interval_s=5, app_consistent_every_s=10)
        before = len(rig.vault.points)
        rig.write(5)
        await trio.sleep(21)
        assert len(rig.vault.points) - before in (4, 5)
        assert rig.vault.kinds.count("ApplicationConsistent") in (1, 2)
    before = len(rig.vault.points)
    async with rig.agent() as agent:
        await trio.sleep(21)
        assert len(rig.vault.points) - before in (4, 5)
        rig.check_point(rig.vault.points[-1])


async def test_a_change_that_was_lost_is_followed_after_a_restart(rig: Rig, autojump_clock: MockClock) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
    rig.interval_s = 5
    say(rig, paused=False)
    before = len(rig.vault.points)
    async with rig.agent():
        await trio.sleep(21)
        assert len(rig.vault.points) - before in (4, 5)
