"""kill -9 of the agent or the host at any moment loses nothing and needs no resync.

A run kills the agent at some of its calls; ``SITERIG_ALL_STEPS=1`` takes all.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from trio.testing import MockClock

from siterig.blockfs.contracts.upload_limits import PER_VM
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_part import DiskChunk, SyncOrigin, pack_sync_part
from siterig.replication.comparison import comparison
from siterig.replication.engine import disk_copy, part_pipeline, snapshots
from tests.support.faults.some_steps import some_steps
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks and several parts a disk, though disks are small."""
    without_threads(monkeypatch)
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 32 << 10)
    monkeypatch.setattr(comparison, "COARSE_BYTES", 32 << 10)
    monkeypatch.setattr(comparison, "FINE_BYTES", 8 << 10)
    monkeypatch.setattr(comparison, "WINDOW_BYTES", 64 << 10)
    monkeypatch.setattr(comparison, "CHUNK_COST_BYTES", 8 << 10)
    monkeypatch.setattr(disk_copy, "RECORDED_BYTES_MIN", 64 << 10)
    monkeypatch.setattr(disk_copy, "PART_BYTES_MAX", 40 << 10)


async def one_life(rig: Rig, order: str) -> None:
    """The agent lives until the work is done, or the wire kills it."""
    async with rig.agent() as agent:
        if order == "resync":
            await agent.resync(vm=VM)
        else:
            await rig.protect(agent)
        rig.write(3)
        await rig.cycle(agent)


async def first_life(rig: Rig, order: str, kill_at: int | None, after: bool) -> tuple[list[str], bool]:
    """Kill the agent at call ``kill_at``, from 1, before or after its effect; return its calls, and whether it survived.

    The number of calls varies a little with the order of its tasks.
    """
    calls: list[str] = []
    rig.interceptor.calls = 0
    rig.interceptor.kill_at, rig.interceptor.after, rig.interceptor.before = kill_at, after, calls.append
    await one_life(rig, order)
    survived = kill_at is None or rig.interceptor.calls < kill_at
    rig.interceptor.kill_at, rig.interceptor.before = None, lambda _name: None
    return calls, survived


async def check_kills(killed: Callable[[int | None], Awaitable[tuple[list[str], bool]]]) -> None:
    """Run a life to its end, and then lives that are killed at some of its calls."""
    calls, _ = await killed(None)
    assert len(calls) > 20
    for number in some_steps(calls):
        _, survived = await killed(number + 1)
        assert number > 20 or not survived


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
async def test_agent_killed_at_each_call_of_initial_replication_and_a_cycle(
    tmp_path: Path, autojump_clock: MockClock, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Counter[PartName] = Counter()

    def pack(origin: SyncOrigin, number: int, chunks: deque[DiskChunk], *, is_last: bool) -> bytes:
        made[origin.part(number)] += 1
        return pack_sync_part(origin, number, chunks, is_last=is_last)

    monkeypatch.setattr(part_pipeline, "pack_sync_part", pack)

    async def killed(kill_at: int | None) -> tuple[list[str], bool]:
        made.clear()
        rig = Rig(tmp_path / str(kill_at))
        await rig.make_vm()
        rig.write(40)
        found = await first_life(rig, "protect", kill_at, after)
        rig.write(5)
        async with rig.agent() as agent:
            await rig.protect(agent)
            cut = await rig.cycle(agent)
        rig.check_point(cut.position)
        assert rig.vault.resyncs == []
        for work, counted in (("put", Counter(rig.cache.puts)), ("made", made)):
            again = [part for part, times in counted.items() if times > 1]
            assert len(again) <= PER_VM, f"only parts in work at the kill are {work} a second time"
        assert all(managed.generation == 1 for managed in rig.recovery.disks.values())
        rig.host.close()
        return found

    await check_kills(killed)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
async def test_agent_killed_at_each_call_of_a_resync(tmp_path: Path, autojump_clock: MockClock, after: bool) -> None:
    async def killed(kill_at: int | None) -> tuple[list[str], bool]:
        rig = Rig(tmp_path / str(kill_at))
        await rig.make_vm()
        rig.write(20)
        async with rig.agent() as agent:
            await rig.protect(agent)
        rig.write(5)
        found = await first_life(rig, "resync", kill_at, after)
        rig.write(5)
        async with rig.agent() as agent:
            await agent.resync(vm=VM)
            cut = await rig.cycle(agent)
        rig.check_point(cut.position)
        rig.host.close()
        return found

    await check_kills(killed)


async def test_host_killed_during_initial_replication_takes_a_new_snapshot(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    rig = Rig(tmp_path, sizes={"os": 1 << 20, "data": 1 << 20})
    await rig.make_vm()
    rig.write(300)
    releases = 0

    def at_call(name: str) -> None:
        nonlocal releases
        if name == "release_snapshot":
            releases += 1
            rig.write(4)
            if releases in (3, 9, 10):
                rig.kill_host()

    rig.interceptor.before = at_call
    async with rig.agent() as agent:
        await rig.protect(agent)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)
    assert releases > 10
    assert len(rig.vault.errors) >= 2
    assert len([part for part in rig.cache.puts if part.stream == "sync"]) == len(set(rig.cache.puts)) - len(
        {part for part in rig.cache.puts if part.stream == "log"}
    ), "no sync part was sent twice"
    assert all(managed.generation == 1 for managed in rig.recovery.disks.values())
    rig.host.close()


async def test_writes_during_initial_replication_are_in_the_first_point(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = Rig(tmp_path, sizes={"os": 2 << 20, "data": 2 << 20})
    await rig.make_vm()
    rig.write(30)
    rig.interceptor.before = lambda _name: rig.write(1 if rig.interceptor.calls < 100 else 0)
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.interceptor.before = lambda _name: None
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)
    rig.host.close()
