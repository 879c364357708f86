from __future__ import annotations

import random
import uuid
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.codec import pack
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_stream import SyncStream
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads

SIZE = 1 << 20


class Export:
    """A disk of the recovery side in the cache account."""

    def __init__(self, rig: Rig, folder: Path, *, finished: bool = True) -> None:
        self.source_id = str(uuid.uuid4())
        self.data = bytearray(SIZE)
        self.parts: list[PartName] = []
        folder.mkdir()
        stream = SyncStream(
            folder,
            disk_id=self.source_id,
            generation=1,
            disk_size_bytes=SIZE,
            position=9,
            time_ns=1,
            first_seq=1,
            part_bytes_max=100 << 10,
        )
        rng = random.Random(3)
        for offset in range(0, SIZE, 128 << 10):
            if rng.random() < 0.3:
                continue
            piece = rng.randbytes(128 << 10)
            self.data[offset : offset + len(piece)] = piece
            self._keep(rig, stream.add(offset, piece, len(piece)))
        self._keep(rig, stream.add(0, None, 8192))
        self.data[:8192] = bytes(8192)
        if finished:
            self._keep(rig, stream.finish())

    def _keep(self, rig: Rig, part: tuple[PartName, Path] | None) -> None:
        if part is not None:
            rig.cache.blobs[part[0]] = pack(part[1])
            self.parts.append(part[0])


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    rig = Rig(tmp_path, sizes={"os": SIZE})
    await rig.make_vm()
    rig.host.disk(VM, "os").write(SIZE // 2, b"old" * 1000)
    return rig


async def receive(rig: Rig, export: Export) -> None:
    async with rig.agent() as agent:
        await agent.receive_disk(vm=VM, disk="os", source_id=export.source_id, size_bytes=SIZE, parts=len(export.parts))


async def test_disk_comes_back_byte_for_byte_and_its_blobs_go(rig: Rig, autojump_clock: MockClock, tmp_path: Path) -> None:
    export = Export(rig, tmp_path / "export")
    await receive(rig, export)
    assert rig.cache.blobs == {}
    assert rig.host.disk(VM, "os").read(SIZE // 2, 3000) == b"old" * 1000, "untouched until the commit"
    async with rig.agent() as agent:
        await agent.commit_failback(vm=VM, keep=[])
    assert rig.host.disk(VM, "os").read(0, SIZE) == bytes(export.data)


async def test_a_site_disk_that_has_grown_since_stays_as_large(rig: Rig, autojump_clock: MockClock, tmp_path: Path) -> None:
    export = Export(rig, tmp_path / "export")
    await rig.grow("os", SIZE)
    await receive(rig, export)
    async with rig.agent() as agent:
        await agent.commit_failback(vm=VM, keep=[])
    assert rig.host.disk(VM, "os").read(0, 2 * SIZE) == bytes(export.data) + bytes(SIZE)


@pytest.mark.slow
async def test_agent_killed_at_each_call_of_a_failback_loses_nothing(
    rig: Rig, autojump_clock: MockClock, tmp_path: Path
) -> None:
    kill_at, calls = 0, 1
    while calls >= kill_at:
        kill_at += 1
        export = Export(rig, tmp_path / f"export{kill_at}")
        rig.interceptor.calls, rig.interceptor.kill_at, rig.interceptor.after = 0, kill_at, kill_at % 2 == 0
        await receive(rig, export)
        calls = rig.interceptor.calls
        rig.interceptor.kill_at = None
        await receive(rig, export)
        assert rig.host.disk(VM, "os").staging.read_bytes() == bytes(export.data)
        assert rig.cache.blobs == {}
    assert kill_at > 12


async def test_unreachable_cache_account_is_waited_out(rig: Rig, autojump_clock: MockClock, tmp_path: Path) -> None:
    export = Export(rig, tmp_path / "export")
    async with trio.open_nursery() as nursery:
        with rig.cache_down():
            nursery.start_soon(receive, rig, export)
            await trio.sleep(300)
    assert rig.host.disk(VM, "os").staging.read_bytes() == bytes(export.data)


async def test_bad_or_missing_parts_are_refused_and_nothing_is_deleted(
    rig: Rig, autojump_clock: MockClock, tmp_path: Path
) -> None:
    export = Export(rig, tmp_path / "a")
    gone = rig.cache.blobs.pop(export.parts[2])
    kept = dict(rig.cache.blobs)
    with pytest.raises(BaseExceptionGroup) as caught:
        await receive(rig, export)
    assert caught.group_contains(RigError, match="is not there")
    assert rig.cache.blobs == kept

    rig.cache.blobs[export.parts[2]] = gone[:-9] + b"damaged!!"
    with pytest.raises(BaseExceptionGroup) as caught:
        await receive(rig, export)
    assert caught.group_contains(RigError, match="00000000000000000003.hrl.zst: ")

    rig.cache.blobs.clear()
    unfinished = Export(rig, tmp_path / "b", finished=False)
    with pytest.raises(BaseExceptionGroup) as caught:
        await receive(rig, unfinished)
    assert caught.group_contains(RigError, match="parts of disk 'os' do not end with a sync-end tag")
    assert list(rig.cache.blobs) == unfinished.parts
