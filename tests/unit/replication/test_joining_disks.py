"""A disk joins the replication of a VM while its other disks are replicated; later cuts have it, and earlier ones do not."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.core.errors import Code, RigError
from siterig.replication.hyperv.agent import HyperVAgent
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


async def protect_os(rig: Rig, agent: HyperVAgent) -> None:
    await agent.create_relationship(vm=VM, interval_s=rig.interval_s, app_consistent_every_s=None, disks=["os"])
    await agent.initial_replication(vm=VM)


async def ready(folder: Path) -> Rig:
    """Return a rig whose VM has a disk that is replicated, and one that is not."""
    rig = Rig(folder, sizes={"os": 64 << 10, "data": 64 << 10})
    await rig.make_vm()
    rig.write(6)
    return rig


def check_without(rig: Rig, position: int) -> None:
    """Check the point of a cut before the join."""
    rig.recovery.apply()
    assert rig.managed("os").points[position] == rig.disk_at("os", position)
    assert position not in rig.managed("data").points


async def test_cuts_have_a_disk_from_its_join_on(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await ready(tmp_path)
    async with rig.agent() as agent:
        await protect_os(rig, agent)
        rig.write(5)
        before = await rig.cycle(agent)
        await agent.add_disks(vm=VM, disks=["data"])
        rig.write(5)
        after = await rig.cycle(agent)
        check_without(rig, before.position)
        rig.check_point(after.position)
        await agent.add_disks(vm=VM, disks=["data"])
    async with rig.agent() as agent:
        rig.write(5)
        rig.check_point((await rig.cycle(agent)).position)
        assert (await agent.verify(vm=VM)).differing_bytes == 0
    assert rig.vault.resyncs == []
    rig.host.close()


async def test_cycles_continue_while_a_disk_joins_and_it_can_be_withdrawn(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await ready(tmp_path)
    data = rig.host.disk(VM, "data").state.disk_id
    async with rig.agent() as agent, trio.open_nursery() as nursery:
        await protect_os(rig, agent)
        rig.interceptor.before = lambda name: rig.write(length=512) if name == "put" else None
        hold = RigError(Code.CacheUnreachable, "held for the test", recoverable=True)
        held = rig.cache.put

        async def put(part: object, packed: bytes, *, replace: bool = False) -> bool:
            if getattr(part, "disk_id", None) == data:
                raise hold
            return await held(part, packed, replace=replace)  # type: ignore[arg-type]

        rig.cache.put = put  # type: ignore[assignment]
        errors: list[str] = []

        async def add() -> None:
            try:
                await agent.add_disks(vm=VM, disks=["data"])
            except RigError as error:
                errors.append(error.code)

        nursery.start_soon(add)
        await trio.sleep(5)
        rig.write(3)
        cut = await rig.cycle(agent)
        check_without(rig, cut.position)
        assert (await agent.verify(vm=VM)).differing_bytes == 0
        await agent.pause(vm=VM)
        await agent.resume(vm=VM)
        await agent.withdraw_disks(vm=VM, disks=["data"])
        await agent.withdraw_disks(vm=VM, disks=["data"])
        await trio.sleep(1)
        assert errors == ["Interrupted"]
        info = next(disk for disk in await rig.host.list_disks(vm=VM) if disk.name == "data")
        assert (info.tracked, info.snapshot, info.unsent_log_bytes) == (False, False, 0)
        check_without(rig, (await rig.cycle(agent)).position)
        rig.cache.put = held  # type: ignore[method-assign]
        await agent.add_disks(vm=VM, disks=["data"])
        rig.write(5)
        rig.check_point((await rig.cycle(agent)).position)
        await agent.withdraw_disks(vm=VM, disks=["data"])  # just joined
        check_without(rig, (await rig.cycle(agent)).position)
        rig.interceptor.before = lambda _name: None
    assert rig.vault.resyncs == []
    rig.host.close()


async def test_a_removed_disk_joins_again_by_comparison_and_keeps_its_points(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rig = await ready(tmp_path)
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        last = await agent.remove_disks(vm=VM, disks=["data"])
        rig.write(9)
        between = await rig.cycle(agent)
        await agent.add_disks(vm=VM, disks=["data"])
        copied = (await agent.progress(vm=VM)).last_copy
        assert copied is not None
        assert (copied.phase, copied.total_bytes) == ("Resynchronization", 64 << 10), "the figures of the join"
        rig.write(5)
        after = await rig.cycle(agent)
        rig.check_point(last)
        check_without(rig, between.position)
        rig.check_point(after.position)
        assert await agent.remove_disks(vm=VM, disks=["data"]) > after.position
    rig.host.close()


async def test_a_disk_joins_while_a_resync_is_due_and_is_part_of_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await ready(tmp_path)
    async with rig.agent() as agent:
        with pytest.raises(RigError, match="no replication relationship"):
            await agent.add_disks(vm=VM, disks=["data"])
        await protect_os(rig, agent)
        with pytest.raises(RigError, match="tmp"):
            await agent.add_disks(vm=VM, disks=["tmp"])
        await rig.host.start_tracking(vm=VM, disks=["os"], new_generation=True)
        with pytest.raises(RigError, match="resync"):
            await rig.cycle(agent)
    async with rig.agent() as agent:
        await agent.add_disks(vm=VM, disks=["data"])
        rig.write(5)
        await agent.resync(vm=VM)
        rig.write(5)
        cut = await rig.cycle(agent)
        rig.check_point(cut.position)
        await agent.suspend(vm=VM)
        with pytest.raises(RigError, match="suspended"):
            await agent.add_disks(vm=VM, disks=["data", "tmp"])
    rig.host.close()


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["new", "removed before"])
async def test_agent_killed_at_each_call_of_a_join(tmp_path: Path, autojump_clock: MockClock, again: bool) -> None:
    for kill_at in count(1):
        rig = await ready(tmp_path / str(kill_at))
        async with rig.agent() as agent:
            if again:
                await rig.protect(agent)
                await agent.remove_disks(vm=VM, disks=["data"])
            else:
                await protect_os(rig, agent)
            rig.write(3)
            before = await rig.cycle(agent)
        rig.interceptor.calls = 0
        rig.interceptor.kill_at, rig.interceptor.after = kill_at, kill_at % 2 == 0
        async with rig.agent() as agent:
            await agent.add_disks(vm=VM, disks=["data"])
            rig.write(2)
            await rig.cycle(agent)
        survived = rig.interceptor.calls < kill_at
        rig.interceptor.kill_at = None
        rig.write(2)
        async with rig.agent() as agent:
            await agent.add_disks(vm=VM, disks=["data"])
            rig.write(2)
            cut = await rig.cycle(agent)
            check_without(rig, before.position)
            rig.check_point(cut.position)
            for position in set(rig.managed("data").points) - {cut.position}:
                assert rig.managed("data").points[position] == rig.disk_at("data", position)
            assert rig.vault.resyncs == []
        rig.host.close()
        if survived:
            assert kill_at > 10
            return
