"""After an abandoned log only the chunks that can differ are compared, and the result is right nevertheless."""

from __future__ import annotations

from itertools import count, pairwise
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.replication.comparison import comparison
from siterig.replication.comparison.comparison import bounded_ranges
from siterig.replication.engine import disk_copy
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads

COARSE, CHUNK, SIZE = 64 << 10, 64 << 10, 2 << 20


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)
    monkeypatch.setattr(comparison, "COARSE_BYTES", COARSE)
    monkeypatch.setattr(comparison, "FINE_BYTES", 16 << 10)
    monkeypatch.setattr(comparison, "WINDOW_BYTES", 2 * COARSE)
    monkeypatch.setattr(comparison, "CHUNK_COST_BYTES", 4 << 10)
    monkeypatch.setattr(disk_copy, "RECORDED_BYTES_MIN", 4 * COARSE)


def write(rig: Rig, chunk: int, times: int = 1, name: str = "data") -> None:
    """Write 4 KiB to random places of a chunk."""
    for _ in range(times):
        offset = chunk * CHUNK + rig.random.randrange(0, CHUNK - 4096, 512)
        data = rig.random.randbytes(4096)
        rig.host.disk(VM, name).write(offset, data)
        rig.history.append((rig.host.positions.value, name, offset, data))


def compared(rig: Rig) -> set[int]:
    """Return the coarse chunks of disk ``data`` that were compared."""
    disk_id = rig.host.disk(VM, "data").state.disk_id
    return {
        chunk
        for each, chunk_bytes, spans in rig.vault.compared
        for first, number in spans
        for chunk in range(first, first + number)
        if each == disk_id and chunk_bytes == COARSE
    }


async def abandoned(folder: Path) -> Rig:
    """Return a rig with an abandoned log: chunks 3, 7 and 9 of disk ``data`` have changes that were not sent."""
    rig = Rig(folder, sizes={"data": SIZE})
    await rig.make_vm()
    for chunk in range(0, SIZE // CHUNK, 2):
        write(rig, chunk, 2)
    async with rig.agent() as agent:
        await rig.protect(agent)
        write(rig, 5, 3)
        await rig.cycle(agent)
        write(rig, 3, 2)  # in the log, and not sent
        write(rig, 7, 300)  # more than the log may have
        assert [info.needs_resync for info in await rig.host.list_disks(vm=VM)] == ["LogOverflow"]
        write(rig, 9, 2)  # in no log
        await trio.sleep(2 * rig.interval_s)
    assert rig.vault.resyncs == ["LogOverflow"]
    return rig


async def resync(rig: Rig, *, limited: bool) -> None:
    async with rig.agent() as agent:
        await agent.resync(vm=VM, limited=limited)
        write(rig, 11)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)


async def test_only_chunks_that_can_differ_are_compared(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await abandoned(tmp_path)

    def at_call(name: str) -> None:
        if name in ("start_tracking", "begin_snapshot", "lacking_changes", "watermarks"):
            write(rig, {"start_tracking": 13, "begin_snapshot": 15}.get(name, 17))

    rig.interceptor.before = at_call
    await resync(rig, limited=True)
    assert {3, 7, 9, 13, 15} <= compared(rig) <= {3, 5, 7, 9, 13, 15, 17}
    assert rig.managed("data").generation == 2


async def test_without_the_consent_of_the_vault_all_is_compared(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await abandoned(tmp_path)
    rig.managed("data").data[SIZE - 1] ^= 1
    await resync(rig, limited=False)
    assert compared(rig) == set(range(SIZE // COARSE))


@pytest.mark.parametrize("kill_before", ["start_tracking", "begin_snapshot", "lacking_changes", "checksums"])
async def test_after_a_kill_of_the_host_the_limit_holds_or_all_is_compared(
    tmp_path: Path, autojump_clock: MockClock, kill_before: str
) -> None:
    rig = await abandoned(tmp_path)
    killed = 0

    def at_call(name: str) -> None:
        nonlocal killed
        if name == kill_before and not killed:
            killed += 1
            write(rig, 19)
            rig.kill_host()
            write(rig, 21)

    rig.interceptor.before = at_call
    await resync(rig, limited=True)
    assert killed
    whole = compared(rig) == set(range(SIZE // COARSE))
    assert whole == (kill_before in ("begin_snapshot", "lacking_changes"))


async def test_a_log_that_is_abandoned_during_a_resync_limits_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await abandoned(tmp_path)

    def at_call(name: str) -> None:
        if name == "checksums" and rig.interceptor.scope is not None:
            rig.interceptor.scope.cancel()

    rig.interceptor.before = at_call
    async with rig.agent() as agent:
        await agent.resync(vm=VM, limited=True)
    rig.interceptor.before = lambda _name: None
    write(rig, 7, 300)
    assert [info.needs_resync for info in await rig.host.list_disks(vm=VM)] == ["LogOverflow"]
    rig.vault.compared.clear()
    await resync(rig, limited=True)
    assert compared(rig) == set(range(SIZE // COARSE))
    assert rig.managed("data").generation == 3


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
async def test_an_agent_that_is_killed_at_any_call_loses_nothing(
    tmp_path: Path, autojump_clock: MockClock, after: bool
) -> None:
    for kill_at in count(1, 3):
        rig = await abandoned(tmp_path / str(kill_at))
        rig.interceptor.calls = 0
        rig.interceptor.kill_at, rig.interceptor.after = kill_at, after
        async with rig.agent() as agent:
            await agent.resync(vm=VM, limited=True)
        survived = rig.interceptor.calls < kill_at
        rig.interceptor.kill_at = None
        write(rig, 23)
        await resync(rig, limited=True)
        rig.host.close()
        if survived:
            assert kill_at > 20
            return


async def test_a_second_resync_that_is_limited_compares_all(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await abandoned(tmp_path)
    await resync(rig, limited=True)
    rig.vault.compared.clear()
    await resync(rig, limited=True)  # no log was abandoned, so nobody knows what can differ
    assert compared(rig) == set(range(SIZE // COARSE))


def test_many_ranges_are_joined_over_gaps() -> None:
    ranges = [(at * 100_000, 10) for at in range(1000)]
    assert bounded_ranges(ranges, 1000) == ranges
    for count_max in (999, 50, 1):
        joined = bounded_ranges(ranges, count_max)
        assert len(joined) <= count_max
        assert all(any(start <= at and at + 10 <= start + length for start, length in joined) for at, _ in ranges)
        assert all(sum(one) < two[0] for one, two in pairwise(joined))
