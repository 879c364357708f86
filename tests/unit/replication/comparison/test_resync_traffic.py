"""A resync reads and sends no more than it must, uses all cores of both sides, and lets guests write."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from siterig.azure_emu.applier import comparisons
from siterig.blockfs.layers.chunk_tags import DataRanges
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.cext.packed_tags import PackedTags, Span
from siterig.replication.comparison import comparison
from siterig.replication.comparison.comparison import FINE_BYTES, WINDOWS_MAX, ComparedDisk, Comparison
from siterig.replication.engine.snapshots import MountedSnapshot
from tests.support.io_faults import READ, io_verdict
from tests.support.rigs.agent_rig import VM, HostSnapshot, Rig, packed_tags
from tests.support.threads import without_threads

MIB = 1 << 20


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return (offset, length) of all reads of snapshots, and run functions for threads in place."""
    without_threads(monkeypatch)
    found: list[tuple[int, int]] = []
    pread = HostSnapshot.pread

    def noted(self: HostSnapshot, offset: int, length: int) -> bytes:
        found.append((offset, length))
        return pread(self, offset, length)

    monkeypatch.setattr(HostSnapshot, "pread", noted)
    return found


def write(rig: Rig, offset: int, data: bytes) -> None:
    rig.host.disk(VM, "os").write(offset, data)
    rig.history.append((rig.host.positions.value, "os", offset, data))


async def test_a_resync_reads_no_holes_and_sends_only_differing_bytes(
    tmp_path: Path, autojump_clock: MockClock, reads: list[tuple[int, int]]
) -> None:
    size, at = 256 * MIB, 200 * MIB + 5 * FINE_BYTES
    rig = Rig(tmp_path, sizes={"os": size})
    await rig.make_vm()
    write(rig, at, rig.random.randbytes(MIB))
    async with rig.agent() as agent:
        await rig.protect(agent)
        await rig.cycle(agent)
        for wrong in (at + 100, at + 9 * FINE_BYTES):
            rig.managed("os").data[wrong] ^= 1
        rig.vault.compared.clear()
        rig.cache.put_bytes.clear()
        reads.clear()
        await agent.resync(vm=VM)
    first_level, second_level, sent, opens_generation = 2 * MIB, 11 * FINE_BYTES, 2 * FINE_BYTES, 4096
    assert sum(length for _, length in reads) == first_level + second_level + sent + opens_generation
    assert all(offset == 0 or 200 * MIB <= offset < 202 * MIB for offset, _ in reads)
    assert sent < sum(rig.cache.put_bytes) < sent + 2 * opens_generation
    fine = [spans for _, chunk_bytes, spans in rig.vault.compared if chunk_bytes == FINE_BYTES]
    assert fine == [[(200 * MIB // FINE_BYTES, MIB // FINE_BYTES)]]
    data = bytes(rig.managed("os").data[199 * MIB : 203 * MIB])
    assert data[MIB + 5 * FINE_BYTES :][:MIB] == rig.history[0][3]
    assert not any(data[: MIB + 5 * FINE_BYTES]), "nothing else was written"


async def test_guests_write_anywhere_during_a_resync(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, reads: list[tuple[int, int]]
) -> None:
    chunk, size = 16 << 10, 4 << 20
    monkeypatch.setattr(comparison, "COARSE_BYTES", chunk)
    monkeypatch.setattr(comparison, "FINE_BYTES", 4096)
    monkeypatch.setattr(comparison, "WINDOW_BYTES", chunk)
    monkeypatch.setattr(comparison, "CHUNK_COST_BYTES", 4096)
    rig = Rig(tmp_path, sizes={"os": size})
    await rig.make_vm()
    rig.write(200)
    writes: list[int] = []
    calls = 0

    def at_call(name: str) -> None:
        nonlocal calls
        compared = [spans[0][0] * chunk for _, chunk_bytes, spans in rig.vault.compared if chunk_bytes == chunk]
        calls += name == "checksums"
        if name == "checksums" and calls % 12 == 6 and len(writes) < 24:  # more would not fit into the snapshot
            upto = max(compared)
            for offset in (upto // 3, upto + (size - upto) // 3 * 2):
                writes.append(offset - upto)
                write(rig, offset // 512 * 512, rig.random.randbytes(512))

    async with rig.agent() as agent:
        await rig.protect(agent)
        await rig.cycle(agent)
        for wrong in range(100, size, 40_000):
            rig.managed("os").data[wrong] ^= 1
        rig.vault.compared.clear()
        rig.interceptor.before = at_call
        await agent.resync(vm=VM)
        rig.interceptor.before = lambda _name: None
        cut = await rig.cycle(agent)
    assert len(writes) > 10
    assert min(writes) < -size // 4
    assert max(writes) > size // 4
    rig.check_point(cut.position)


@pytest.mark.parametrize("side", ["site", "recovery"])
def test_each_side_hashes_on_all_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    cores, key = 3, bytes(32)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    path = tmp_path / "disk"
    path.write_bytes(random.Random(1).randbytes(8 * 4096))
    all_read, readers = threading.Barrier(cores), set()

    def meet(operation: int, _path: str, _offset: int, _size: int) -> int:
        """Hold each thread at its first read until all threads are at one."""
        if operation == READ and threading.get_native_id() not in readers:
            readers.add(threading.get_native_id())
            all_read.wait(timeout=60)
        return 0

    layer, snapshot = RawLayer(path), MountedSnapshot(path)
    with io_verdict(meet):
        if side == "site":
            found = snapshot.tags(key, 4096, [(0, 8)], DataRanges([(0, 8 * 4096)]))
        else:
            found = comparisons.tags_of(layer, key, 4096, [(0, 8)])
    layer.close()
    snapshot.close()
    assert len(readers) == cores
    assert found.packed == packed_tags(lambda at, length: path.read_bytes()[at : at + length], key, 4096, [(0, 8)])


class SlowVault:
    """Answers no call before ``release``; counts the calls that wait."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.release = trio.Event()
        self.waiting = 0

    async def checksums(self, *, spans: list[Span], **_rest: object) -> ChunkTags:
        self.waiting += 1
        self.called.set()
        await self.release.wait()
        self.waiting -= 1
        return ChunkTags.of(PackedTags(b"", None))


async def test_both_sides_compute_at_the_same_time_a_few_windows_ahead() -> None:
    vault = SlowVault()
    ours: list[Sequence[Span]] = []

    def tags(_key: bytes, _chunk_bytes: int, spans: Sequence[Span]) -> PackedTags:
        assert vault.called.wait(60), "the other side computes only after this one"
        ours.append(spans)
        return PackedTags(b"", None)

    size = 8 * comparison.WINDOW_BYTES
    disk = ComparedDisk(disk_id="d", size_bytes=size, tags=tags, data=[(0, size)], scope=[(0, size)])
    async with Comparison(vault).windows(disk) as windows:  # type: ignore[arg-type]
        with trio.fail_after(60):
            while len(ours) < WINDOWS_MAX or vault.waiting < WINDOWS_MAX:  # noqa: ASYNC110 (threads)
                await trio.sleep(0.001)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert (len(ours), vault.waiting) == (WINDOWS_MAX, WINDOWS_MAX)
        vault.release.set()
        ends = [window.end async for window in windows]
    assert ends == [(number + 1) * comparison.WINDOW_BYTES for number in range(8)]
