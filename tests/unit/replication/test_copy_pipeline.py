"""The parts of a copy: the order of their durable steps, their content after kills and losses, and their memory."""

from __future__ import annotations

import errno
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
import zstandard
from trio.testing import MockClock

from siterig.blockfs.contracts.upload_limits import PER_VM
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.transfer.part_name import PartName
from siterig.replication.engine import disk_copy, snapshots
from siterig.replication.engine.relationship import RelationshipBook
from siterig.replication.hyperv import agent
from siterig.replication.parts.byte_budget import ByteBudget
from siterig.replication.parts.spool import spooled
from tests.support.rigs.agent_rig import VM, MemoryCache, Rig
from tests.support.threads import without_threads

KIB = 1 << 10


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)
    monkeypatch.setattr(snapshots, "CHUNK_BYTES", 16 * KIB)
    monkeypatch.setattr(disk_copy, "PART_BYTES_MAX", 24 * KIB)


class WatchedCache(MemoryCache):
    """A cache account that calls ``at_put`` before each put, and keeps every content that each part was put with."""

    def __init__(self) -> None:
        super().__init__()
        self.at_put: Callable[[PartName], None] = lambda _part: None
        self.contents: dict[PartName, set[bytes]] = {}
        self.in_flight = self.in_flight_max = 0
        self.put_s = 0.0

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        self.at_put(part)
        self.contents.setdefault(part, set()).add(data)
        self.in_flight += 1
        self.in_flight_max = max(self.in_flight, self.in_flight_max)
        try:
            await trio.sleep(self.put_s)
            return await super().put(part, data, replace=replace)
        finally:
            self.in_flight -= 1


class WatchedRig(Rig):
    """A rig with full disks and a watched account."""

    cache: WatchedCache

    @classmethod
    async def make(cls, folder: Path, os_bytes: int = 256 * KIB) -> WatchedRig:
        rig = cls(folder, sizes={"os": os_bytes, "data": os_bytes // 2})
        rig.cache = WatchedCache()
        rig.recovery._cache = rig.cache  # noqa: SLF001 (the rig has no other place for it)
        await rig.make_vm()
        for name, size in rig.sizes.items():
            for offset in range(0, size, 16 * KIB):
                piece = rig.random.randbytes(16 * KIB)
                rig.host.disk(VM, name).write(offset, piece)
                rig.history.append((rig.host.positions.value, name, offset, piece))
        return rig

    def recorded(self, part: PartName) -> int:
        """Return how many parts of the disk the relationship has on the disk of the host."""
        book = json.loads((self.folder / "agent" / "relationships.json").read_bytes())
        return next(
            int(disk["parts"])
            for item in book["relationships"]
            for disk in item["disks"]
            if (disk["disk_id"], disk["generation"]) == (part.disk_id, part.generation)
        )

    def spooled_file(self, part: PartName) -> Path | None:
        """Return the complete file of a part in the spool."""
        found = [item.path for item in spooled(self.folder / "agent" / "spool" / part.disk_id) if item.number == part.first]
        return found[0] if found else None


@pytest.fixture
async def rig(tmp_path: Path) -> WatchedRig:
    return await WatchedRig.make(tmp_path)


async def test_a_part_is_in_the_spool_and_recorded_before_it_is_put(
    rig: WatchedRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.recovery.running = False
    seen = []
    release = rig.host.release_snapshot

    async def release_slowly(**arguments: Any) -> None:  # the next parts are ready before they are recorded
        await trio.sleep(1)
        await release(**arguments)

    monkeypatch.setattr(rig.host, "release_snapshot", release_slowly)

    def check(part: PartName) -> None:
        if part.stream == "sync":
            assert rig.recorded(part) >= part.first, "put before its bounds are durable"
            assert rig.spooled_file(part) is not None, "put before its bytes are in the spool"
            seen.append(part)

    rig.cache.at_put = check
    async with rig.agent() as running:
        await rig.protect(running)
    assert len(seen) == len(set(seen)) > 12


@pytest.mark.parametrize("failing", [range(6, 10), range(9, 12)])
async def test_a_part_whose_record_fails_is_not_put(
    rig: WatchedRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, failing: range
) -> None:
    """The host's disk is full for some time."""
    rig.recovery.running = False
    writes = 0

    def write(path: Path, data: bytes) -> None:
        nonlocal writes
        writes += 1
        if writes in failing:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write_atomically(path, data)

    def check(part: PartName) -> None:
        if part.stream == "sync":
            assert rig.recorded(part) >= part.first, "put before its bounds are durable"

    monkeypatch.setattr("siterig.replication.engine.relationship.write_atomically", write)
    rig.cache.at_put = check
    async with rig.agent() as running:
        await rig.protect(running)
    assert writes > failing.stop
    assert rig.vault.resyncs == []


async def test_a_record_that_cannot_be_written_is_not_made(rig: WatchedRig, autojump_clock: MockClock) -> None:
    async with rig.agent() as running:
        await rig.protect(running)
    folder = rig.folder / "agent"
    book = RelationshipBook(folder)
    (before,) = book.all()
    disk = before.disks[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("siterig.replication.engine.relationship.write_atomically", no_room)
        with pytest.raises(OSError, match="No space left"):
            await book.record_progress(VM, disk.disk_id, parts=disk.parts + 1, next_offset=1, done=False)
        with pytest.raises(OSError, match="No space left"):
            book.update_disk(VM, disk.disk_id, opening="another")
        with pytest.raises(OSError, match="No space left"):
            book.remove(VM)
        assert book.all() == [before]
    await book.record_progress(VM, disk.disk_id, parts=disk.parts + 1, next_offset=1, done=False)
    assert RelationshipBook(folder).all() == book.all() != [before]


async def test_a_thread_never_replaces_a_newer_record(
    rig: WatchedRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.agent() as running:
        await rig.protect(running)
    folder = rig.folder / "agent"
    book = RelationshipBook(folder)
    disk = book.get(VM).disks[0]

    async def late(work: Callable[..., None], *arguments: object) -> None:
        book.update(VM, phase="suspended")  # another task, before the thread begins
        work(*arguments)

    monkeypatch.setattr("siterig.replication.engine.relationship.trio.to_thread.run_sync", late)
    await book.record_progress(VM, disk.disk_id, parts=disk.parts + 1, next_offset=1, done=False)
    (known,) = RelationshipBook(folder).all()
    assert known == book.get(VM)
    assert (known.phase, known.disks[0].parts) == ("suspended", disk.parts + 1)


def no_room(path: Path, _data: bytes) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


async def test_a_part_never_gets_another_content_whatever_is_killed_and_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    dice = random.Random(seed := random.randrange(1 << 32))
    print(f"seed {seed}")
    for life in range(6):
        rig = await WatchedRig.make(tmp_path / str(life))
        rig.interceptor.kill_at, rig.interceptor.after = dice.randrange(8, 60), bool(dice.randrange(2))
        rig.recovery.running = bool(dice.randrange(2))
        async with rig.agent() as running:
            await rig.protect(running)
        rig.interceptor.kill_at = None
        for part in [part for part in rig.cache.blobs if dice.randrange(2)]:
            del rig.cache.blobs[part]
        rig.write(10)  # a new snapshot has other bytes where the first one was copied
        if dice.randrange(2):
            rig.kill_host()
        rig.recovery.running = True
        async with rig.agent() as running:
            await rig.protect(running)
            cut = await rig.cycle(running)
        rig.check_point(cut.position)
        assert rig.vault.resyncs == []
        assert {part: len(contents) for part, contents in rig.cache.contents.items() if len(contents) > 1} == {}
        rig.host.close()


async def test_as_many_parts_are_in_flight_as_the_setting_allows(rig: WatchedRig, autojump_clock: MockClock) -> None:
    rig.cache.put_s = 1.0
    begun = trio.current_time()
    async with rig.agent() as running:
        await rig.protect(running)
    assert rig.cache.in_flight_max == PER_VM
    parts = len(rig.cache.contents)
    assert trio.current_time() - begun < 0.5 * parts, "the parts were put one after the other"


async def test_a_part_that_the_account_refuses_for_a_while_is_put_later(rig: WatchedRig, autojump_clock: MockClock) -> None:
    rig.recovery.running = False
    failures = 0

    def fail(part: PartName) -> None:
        nonlocal failures
        if part.first == 3 and failures < 2:
            failures += 1
            raise RigError(Code.CacheUnreachable, "for the test", recoverable=True)

    rig.cache.at_put = fail
    async with rig.agent() as running:
        await rig.protect(running)
        cut = await rig.cycle(running)
    assert failures == 2
    rig.recovery.running = True
    rig.check_point(cut.position)


async def test_a_torn_file_in_the_spool_is_not_put_and_marks_the_vm_for_a_resync(
    rig: WatchedRig, autojump_clock: MockClock
) -> None:
    rig.recovery.running = False
    async with rig.agent() as running:
        await rig.protect(running)
    part = min(rig.cache.blobs)
    file = rig.spooled_file(part)
    assert file is not None
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])  # a power loss can do this
    del rig.cache.blobs[part]
    async with rig.agent():
        await trio.sleep(60)
    assert rig.cache.contents[part] == {whole}
    assert rig.vault.resyncs == ["SyncPartLost"]


async def test_a_part_that_an_older_version_has_spooled_is_sent(rig: WatchedRig, autojump_clock: MockClock) -> None:
    rig.recovery.running = False
    async with rig.agent() as running:
        await rig.protect(running)
    part = min(rig.cache.blobs)
    file = rig.spooled_file(part)
    assert file is not None
    file.with_suffix("").write_bytes(zstandard.ZstdDecompressor().decompress(file.read_bytes()))
    file.unlink()
    del rig.cache.blobs[part]
    rig.recovery.running = True
    async with rig.agent() as running:
        cut = await rig.cycle(running)
    rig.check_point(cut.position)
    assert rig.vault.resyncs == []


async def test_a_longer_backlog_of_segments_needs_no_more_memory(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await WatchedRig.make(tmp_path, os_bytes=2 << 20)
    rig.cache.put_s = 1.0
    used: list[int] = []
    async with rig.agent() as running:
        await rig.protect(running)
        memory = running._context.memory  # noqa: SLF001
        rig.cache.at_put = lambda part: used.append(memory.used_bytes) if part.stream == "log" else None
        peaks = []
        for cuts in (4, 40):
            used.clear()
            with rig.cache_down():
                for number in range(cuts):
                    for name in rig.sizes:
                        piece = rig.random.randbytes(8 * KIB)
                        rig.host.disk(VM, name).write(number * len(piece), piece)
                    await rig.host.cut(vm=VM, kind="CrashConsistent", name="backlog")
            await rig.cycle(running)
            assert len(used) >= 2 * cuts
            peaks.append(max(used))
        assert peaks[1] <= 1.1 * peaks[0]
        assert memory.used_bytes == 0


async def test_the_memory_is_shared_in_the_order_of_the_requests() -> None:
    budget = ByteBudget(100)
    served: list[str] = []

    async def ask(name: str, count: int) -> None:
        await budget.reserve(count)
        served.append(name)

    first = await budget.reserve(80)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "large", 90)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "small", 20)  # it would fit, and waits behind the large one
        await trio.testing.wait_all_tasks_blocked()
        assert served == []
        first.release()
        first.release()
        await trio.testing.wait_all_tasks_blocked()
        assert served == ["large"]
        budget.give_back(90)
    assert served == ["large", "small"]
    assert budget.used_bytes == 20


async def test_a_resync_with_little_memory_ends_its_parts_early(
    rig: WatchedRig, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "MEMORY_BYTES", 3 * 64 * KIB)  # one fine chunk of a resync, read and compressed, and a half
    async with rig.agent() as running:
        await rig.protect(running)
        rig.write(4)
        await running.resync(vm=VM)
        cut = await rig.cycle(running)
    rig.check_point(cut.position)


async def test_a_cancelled_request_takes_no_memory_and_holds_up_no_other() -> None:
    budget = ByteBudget(100)
    first = await budget.reserve(1000)
    assert budget.used_bytes == 100
    with trio.move_on_after(0):
        await budget.reserve(50)
    first.reduce(40)
    second = await budget.reserve(60)
    second.release()
    first.release()
    assert budget.used_bytes == 0


async def test_a_copy_reports_its_parts_and_a_cycle_only_its_point(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await WatchedRig.make(tmp_path)
    rig.cache.put_s = 0.3
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        assert {disk_id for news in rig.vault.put_news for disk_id in news} == set(rig.recovery.disks)
        rig.vault.put_news.clear()
        rig.write()
        points = len(rig.vault.points)
        await rig.cycle(agent)
        await trio.sleep(1)
        assert len(rig.vault.points) == points + 1
        assert rig.vault.put_news == []
    rig.host.close()
