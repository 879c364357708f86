"""A resync that is interrupted continues in its generation, and the result is right at every later position."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.core.errors import Code, RigError
from siterig.replication.comparison import comparison
from siterig.replication.engine import disk_copy
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads

COARSE, SIZE = 16 << 10, 1 << 20


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)
    monkeypatch.setattr(comparison, "COARSE_BYTES", COARSE)
    monkeypatch.setattr(comparison, "FINE_BYTES", 4 << 10)
    monkeypatch.setattr(comparison, "WINDOW_BYTES", 2 * COARSE)
    monkeypatch.setattr(comparison, "CHUNK_COST_BYTES", 4 << 10)
    monkeypatch.setattr(disk_copy, "RECORDED_BYTES_MIN", 4 * COARSE)
    monkeypatch.setattr(disk_copy, "UNRECORDED_BYTES_MAX", 8 * COARSE)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path, sizes={"os": SIZE, "data": SIZE})
    await made.make_vm()
    made.write(150)
    async with made.agent() as agent:
        await made.protect(agent)
    return made


def first_compared(rig: Rig) -> dict[str, int]:
    """Return the first coarse chunk that was compared of each disk, and forget the comparisons."""
    found: dict[str, int] = {}
    for disk_id, chunk_bytes, spans in rig.vault.compared:
        if chunk_bytes == COARSE:
            found[disk_id] = min(found.get(disk_id, SIZE), spans[0][0])
    rig.vault.compared.clear()
    return found


def damage(rig: Rig, every: int) -> None:
    """Flip a byte in every so many blocks of the managed disks."""
    for managed in rig.recovery.disks.values():
        for at in range(100, SIZE, every):
            managed.data[at] ^= 1


async def interrupt(rig: Rig, compared: int, *, kill_host: bool = False, stop_applying_at: int = -1) -> None:
    """Begin a resync, and kill the agent or the host at a call of ``checksums``."""
    calls = 0

    def at_call(name: str) -> None:
        nonlocal calls
        calls += name == "checksums"
        rig.recovery.running = rig.recovery.running and calls != stop_applying_at
        if calls == compared and rig.interceptor.scope is not None:
            rig.write(5)
            if kill_host:
                rig.kill_host()
            rig.interceptor.scope.cancel()

    rig.interceptor.before = at_call
    async with rig.agent() as agent:
        with trio.move_on_after(600):
            await agent.resync(vm=VM)
    rig.interceptor.before = lambda _name: None
    assert calls >= compared


async def finish(rig: Rig) -> None:
    rig.write(5)
    async with rig.agent() as agent:
        await agent.resync(vm=VM)
        rig.write(5)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)


@pytest.mark.parametrize("every", [SIZE, 40_000])
@pytest.mark.parametrize("kill_host", [False, True])
async def test_an_interrupted_resync_continues_where_it_was(
    rig: Rig, autojump_clock: MockClock, every: int, kill_host: bool
) -> None:
    damage(rig, every)
    begun: list[dict[str, int]] = []
    for _ in range(2):
        await interrupt(rig, 12, kill_host=kill_host)
        begun.append(first_compared(rig))
    await finish(rig)
    begun.append(first_compared(rig))
    one = next(iter(begun[0]))
    firsts = [round_[one] for round_ in begun if one in round_]
    assert firsts == sorted(firsts)
    assert firsts[0] == 0 < firsts[1]
    assert all(managed.generation == 2 for managed in rig.recovery.disks.values())
    assert len(set(rig.cache.puts)) == len(rig.cache.puts), "no part was sent twice"
    assert rig.vault.resyncs == []


async def test_each_comparison_has_keys_of_its_own_and_is_ended(rig: Rig, autojump_clock: MockClock) -> None:
    await finish(rig)
    await finish(rig)
    assert len(rig.vault.ended_comparisons) == len(set(rig.vault.ended_comparisons)) == 2
    assert len(set(rig.vault.keys)) == 4  # two levels each


async def test_a_resync_after_a_complete_one_compares_everything_again(rig: Rig, autojump_clock: MockClock) -> None:
    await finish(rig)
    damage(rig, SIZE)
    first_compared(rig)
    await finish(rig)
    assert set(first_compared(rig).values()) == {0}
    assert all(managed.generation == 3 for managed in rig.recovery.disks.values())


@pytest.mark.parametrize("cause", ["log", "size", "managed disk"])
async def test_a_resync_that_cannot_continue_begins_a_new_generation(
    rig: Rig, autojump_clock: MockClock, cause: str
) -> None:
    damage(rig, 40_000)
    await interrupt(rig, 30)
    first_compared(rig)
    if cause == "log":
        await rig.host.start_tracking(vm=VM, new_generation=True)  # as after a power loss
    elif cause == "size":
        await rig.grow("os", COARSE)
    else:
        rig.vault.refusals.append(
            RigError(Code.ManagedDiskReplaced, "managed disk x is at generation 1; the resync is at 2")
        )
    await finish(rig)
    assert set(first_compared(rig).values()) == {0} or cause == "managed disk"
    assert all(managed.generation > 2 for managed in rig.recovery.disks.values())


async def test_a_part_that_was_lost_during_a_resync_begins_a_new_generation(rig: Rig, autojump_clock: MockClock) -> None:
    damage(rig, 40_000)
    await interrupt(rig, 14, stop_applying_at=4)
    for folder in (rig.folder / "agent" / "spool").iterdir():
        for path in folder.iterdir():
            path.unlink()
    rig.cache.blobs.clear()
    rig.recovery.running = True
    await finish(rig)
    assert all(managed.generation == 3 for managed in rig.recovery.disks.values())
