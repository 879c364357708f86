"""A disk that is not replicated is never tracked, read or sent, and cannot hinder the others."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
from trio.testing import MockClock

from siterig.blockfs.core.errors import RigError
from siterig.replication.hyperv.agent import HyperVAgent
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


async def protect_os(rig: Rig, agent: HyperVAgent) -> None:
    await agent.create_relationship(vm=VM, interval_s=30, app_consistent_every_s=None, disks=["os"])
    await agent.initial_replication(vm=VM)


async def check_only_os(rig: Rig, position: int) -> None:
    """Check the point on the replicated disk, and that nothing is known about the other one outside its own file."""
    rig.recovery.apply()
    assert rig.managed("os").points[position] == rig.disk_at("os", position)
    data = next(disk for disk in await rig.host.list_disks(vm=VM) if disk.name == "data")
    assert (data.tracked, data.last_seq, data.unsent_log_bytes, data.snapshot) == (False, 0, 0, False)
    assert {part.disk_id for part in rig.cache.puts} == {rig.host.disk(VM, "os").state.disk_id}


async def test_an_excluded_disk_is_never_tracked_sent_or_compared(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    rig.write(20)
    async with rig.agent() as agent:
        await protect_os(rig, agent)
        rig.write(5)
        await check_only_os(rig, (await rig.cycle(agent)).position)
        assert [disk.disk for disk in (await agent.progress(vm=VM)).disks] in ([], ["os"])
        await agent.resync(vm=VM)
        rig.write(5)
        await check_only_os(rig, (await rig.cycle(agent)).position)
    async with rig.agent() as agent:  # a restarted agent knows it from its file
        rig.write(5)
        await check_only_os(rig, (await rig.cycle(agent)).position)
        await agent.remove_relationship(vm=VM)
    rig.host.close()


@pytest.mark.slow
async def test_agent_killed_at_each_call_never_touches_an_excluded_disk(tmp_path: Path, autojump_clock: MockClock) -> None:
    for kill_at in count(1):
        rig = Rig(tmp_path / str(kill_at), sizes={"os": 64 << 10, "data": 64 << 10})
        await rig.make_vm()
        rig.write(6)
        rig.interceptor.kill_at, rig.interceptor.after = kill_at, kill_at % 2 == 0
        async with rig.agent() as agent:
            await protect_os(rig, agent)
            rig.write(3)
            await rig.cycle(agent)
        survived = rig.interceptor.calls < kill_at
        rig.interceptor.kill_at = None
        rig.write(2)
        async with rig.agent() as agent:
            await protect_os(rig, agent)
            await check_only_os(rig, (await rig.cycle(agent)).position)
        rig.host.close()
        if survived:
            assert kill_at > 10
            return


async def test_an_excluded_disk_that_cannot_be_opened_hinders_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    rig.write(20)
    async with rig.agent() as agent:
        await protect_os(rig, agent)
    description = rig.host.disk(VM, "data").paths.folder / "data.disk"
    description.write_bytes(b"rot")
    rig.kill_host()
    assert list(rig.host.broken) == [f"{VM}/data"]
    rig.sizes.pop("data")
    async with rig.agent() as agent:
        rig.write(5)
        cut = await rig.cycle(agent)
        rig.recovery.apply()
        assert rig.managed("os").points[cut.position] == rig.disk_at("os", cut.position)
        await agent.resync(vm=VM)
        assert (await agent.check_prerequisites(vm=VM, excluded=["data"])).unmet == []
        assert [disk.name for disk in await agent.check_vm(vm=VM, excluded=["data"])] == ["os"]
        assert [unmet.code for unmet in (await agent.check_prerequisites(vm=VM)).unmet] == ["DiskCorrupt"]
    rig.host.close()


async def check_removed(rig: Rig, last: int, cut: int) -> None:
    """Check that points up to ``last`` have both disks, that ``cut`` has one, and that the other's log is gone."""
    rig.check_point(last)
    assert rig.managed("os").points[cut] == rig.disk_at("os", cut)
    assert cut not in rig.managed("data").points
    assert all(position <= last for position in rig.managed("data").points)
    data = next(disk for disk in await rig.host.list_disks(vm=VM) if disk.name == "data")
    assert (data.tracked, data.unsent_log_bytes) == (False, 0)


async def test_points_up_to_a_removal_have_the_disk_and_later_ones_do_not(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    rig.write(20)
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        before = await rig.cycle(agent)
        rig.write(5)
        last = await agent.remove_disks(vm=VM, disks=["data"])
        assert last > before.position
        rig.write(5)
        cut = await rig.cycle(agent)
        rig.check_point(before.position)
        await check_removed(rig, last, cut.position)
        assert await agent.remove_disks(vm=VM, disks=["data"]) == last
    async with rig.agent() as agent:
        assert await agent.remove_disks(vm=VM, disks=["data"]) == last
        await agent.resync(vm=VM)
        await check_removed(rig, last, (await rig.cycle(agent)).position)
        assert rig.vault.resyncs == []
    rig.host.close()


async def test_a_disk_is_removed_while_a_resync_is_due(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    async with rig.agent() as agent:
        await rig.protect(agent)
        await rig.host.start_tracking(vm=VM, disks=["data"], new_generation=True)
        with pytest.raises(RigError, match="resync"):
            await rig.cycle(agent)
        last = await agent.remove_disks(vm=VM, disks=["data"])
        assert last >= max(rig.vault.points, default=0)
        rig.write(5)
        await agent.resync(vm=VM)
        cut = await rig.cycle(agent)
        rig.recovery.apply()
        assert rig.managed("os").points[cut.position] == rig.disk_at("os", cut.position)
    rig.host.close()


@pytest.mark.slow
async def test_agent_killed_at_each_call_of_a_removal(tmp_path: Path, autojump_clock: MockClock) -> None:
    for kill_at in count(1):
        rig = Rig(tmp_path / str(kill_at), sizes={"os": 64 << 10, "data": 64 << 10})
        await rig.make_vm()
        rig.write(6)
        async with rig.agent() as agent:
            await rig.protect(agent)
        rig.write(3)
        rig.interceptor.calls = 0
        rig.interceptor.kill_at, rig.interceptor.after = kill_at, kill_at % 2 == 0
        async with rig.agent() as agent:
            await agent.remove_disks(vm=VM, disks=["data"])
            rig.write(2)
            await rig.cycle(agent)
        survived = rig.interceptor.calls < kill_at
        rig.interceptor.kill_at = None
        rig.write(2)
        async with rig.agent() as agent:
            last = await agent.remove_disks(vm=VM, disks=["data"])
            await check_removed(rig, last, (await rig.cycle(agent)).position)
            assert rig.vault.resyncs == []
        rig.host.close()
        if survived:
            assert kill_at > 10
            return
