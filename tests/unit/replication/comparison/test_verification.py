"""A verification names exactly what differs, raises no false alarm while guests write, and leaves no snapshot."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.core.errors import RigError
from siterig.replication.comparison import comparison
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads

COARSE, FINE, SIZE = 32 << 10, 8 << 10, 1 << 20


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)
    monkeypatch.setattr(comparison, "COARSE_BYTES", COARSE)
    monkeypatch.setattr(comparison, "FINE_BYTES", FINE)
    monkeypatch.setattr(comparison, "WINDOW_BYTES", 2 * COARSE)
    monkeypatch.setattr(comparison, "CHUNK_COST_BYTES", FINE)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path, sizes={"os": SIZE, "data": SIZE})
    await made.make_vm()
    made.write(60)
    async with made.agent() as agent:
        await made.protect(agent)
        made.write(10)
        await made.cycle(agent)
    made.recovery.apply()
    return made


async def has_snapshot(rig: Rig) -> bool:
    return any(info.snapshot for info in await rig.host.list_disks(vm=VM))


async def test_equal_sides_are_equal_while_guests_write(rig: Rig, autojump_clock: MockClock) -> None:
    writes = 0

    def at_call(name: str) -> None:
        nonlocal writes
        if writes < 5 and name in ("begin_snapshot", "cut", "segments", "checksums"):  # more do not fit into the snapshot
            rig.write()
            writes += 1

    rig.interceptor.before = at_call
    async with rig.agent() as agent:
        for _ in range(3):
            writes = 0
            found = await agent.verify(vm=VM)
            assert writes == 5
            assert found.differing_bytes == 0
            assert {disk.name: disk.size_bytes for disk in found.disks} == rig.sizes
            assert all(0 < disk.data_bytes <= SIZE for disk in found.disks)
        rig.interceptor.before = lambda _name: None
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)
    assert rig.vault.names.count("verify") == 3
    assert len(set(rig.vault.ended_comparisons)) == 3
    assert not await has_snapshot(rig)


async def test_a_difference_is_named_by_disk_offset_and_length(rig: Rig, autojump_clock: MockClock) -> None:
    rig.managed("data").data[5 * FINE + 7] ^= 1
    rig.managed("data").data[6 * FINE] ^= 1
    rig.managed("data").data[SIZE - 1] ^= 0x80
    async with rig.agent() as agent:
        found = await agent.verify(vm=VM)
    by_name = {disk.name: disk for disk in found.disks}
    assert by_name["os"].differing == []
    assert [(each.offset, each.length) for each in by_name["data"].differing] == [
        (5 * FINE, 2 * FINE),
        (SIZE - FINE, FINE),
    ]
    assert found.differing_bytes == by_name["data"].differing_bytes == 3 * FINE
    assert [part for part in rig.cache.puts if part.stream == "sync" and part.generation > 1] == []


async def test_a_slow_recovery_side_is_waited_for(rig: Rig, autojump_clock: MockClock) -> None:
    rig.write(5)
    asked = 0

    def at_call(name: str) -> None:
        nonlocal asked
        asked += name == "watermarks"
        rig.recovery.running = asked > 12
        if 6 < asked < 12:
            assert "RecoverySideBehind" in {wait.code for wait in rig.waits.list()}

    rig.interceptor.before = at_call
    async with rig.agent() as agent:
        assert (await agent.verify(vm=VM)).differing_bytes == 0
    assert asked > 12
    assert rig.waits.list() == []


async def test_a_resync_stops_a_verification_and_then_runs(rig: Rig, autojump_clock: MockClock) -> None:
    rig.managed("os").data[0] ^= 1
    began = trio.Event()

    def at_call(name: str) -> None:
        if name == "checksums":
            began.set()

    rig.interceptor.before = at_call
    async with rig.agent() as agent, trio.open_nursery() as nursery:

        async def verify() -> None:
            with pytest.raises(RigError) as caught:
                await agent.verify(vm=VM)
            assert caught.value.code == "Interrupted"

        nursery.start_soon(verify)
        await began.wait()
        await agent.resync(vm=VM)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)
    assert not await has_snapshot(rig)


async def test_one_verification_runs_at_a_time_and_can_be_stopped(rig: Rig, autojump_clock: MockClock) -> None:
    began = trio.Event()
    rig.interceptor.before = lambda name: began.set() if name == "checksums" else None
    outcomes: list[str] = []
    async with rig.agent() as agent, trio.open_nursery() as nursery:

        async def verify() -> None:
            try:
                await agent.verify(vm=VM)
            except RigError as error:
                outcomes.append(error.code)

        nursery.start_soon(verify)
        await began.wait()
        assert (await agent.progress(vm=VM)).phase == "Verification"
        with pytest.raises(RigError) as caught:
            await agent.verify(vm=VM)
        assert caught.value.code == "VmBusy"
        await agent.stop_verification(vm=VM)
        assert not await has_snapshot(rig)
    assert outcomes == ["Interrupted"]
    async with rig.agent() as agent:
        assert (await agent.verify(vm=VM)).differing_bytes == 0
        assert (await agent.progress(vm=VM)).phase != "Verification"


async def test_a_killed_agent_leaves_no_snapshot(rig: Rig, autojump_clock: MockClock) -> None:
    def at_call(name: str) -> None:
        if name == "checksums" and rig.interceptor.scope is not None:
            rig.interceptor.scope.cancel()
            rig.interceptor.dead = True

    rig.interceptor.before = at_call
    async with rig.agent() as agent:
        with suppress(RigError):
            await agent.verify(vm=VM)
    rig.interceptor.before = lambda _name: None
    rig.interceptor.dead = False
    assert await has_snapshot(rig)
    async with rig.agent() as agent:
        await rig.cycle(agent)
        assert not await has_snapshot(rig)


async def test_a_vm_that_is_not_replicated_cycle_by_cycle_is_refused(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = Rig(tmp_path)
    await rig.make_vm()
    async with rig.agent() as agent:
        await agent.create_relationship(vm=VM, interval_s=30, app_consistent_every_s=None)
        with pytest.raises(RigError) as caught:
            await agent.verify(vm=VM)
    assert caught.value.code == "InvalidState"
