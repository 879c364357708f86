"""The next part is downloaded while one is applied, within a limit; and a disk with many parts is no delay for others."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from siterig.azure_emu.applier import applier
from siterig.azure_emu.applier.disk_record import AppliedDisk
from siterig.azure_emu.applier.read_ahead import AHEAD_BYTES_MAX, follows, reading_ahead
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName, Watermark
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES
from tests.support.rigs.applier_rig import FakeCache, Rig

PARTS = [PartName(DISK_ID, 1, "log", number * 10 + 1, number * 10 + 10) for number in range(4)]


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    await made.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    made.disk.scribble(20)
    return made


@pytest.fixture
def cache() -> FakeCache:
    cache = FakeCache()
    cache.hold([(part, part.blob().encode()) for part in PARTS])
    return cache


async def test_the_next_part_is_downloaded_while_one_is_applied(
    rig: Rig, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [*rig.disk.sync(), *(rig.log(f"point {number}") for number in range(4))]
    logs = [part for part, _ in parts if part.stream == "log"]
    rig.cache.hold(parts)
    changed = threading.Condition()
    get, apply_part = rig.cache.get, ManagedDiskStore.apply_part
    late = []

    async def counted_get(part: PartName) -> bytes:
        data = await get(part)
        with changed:
            changed.notify_all()
        return data

    def slow_apply(store: ManagedDiskStore, part: PartName, data: bytes) -> Watermark:
        if part in logs[:-1]:
            following = logs[logs.index(part) + 1]
            with changed:
                if not changed.wait_for(lambda: following in rig.cache.gets, timeout=10):
                    late.append(following)
        return apply_part(store, part, data)

    monkeypatch.setattr(rig.cache, "get", counted_get)
    monkeypatch.setattr(ManagedDiskStore, "apply_part", slow_apply)
    await nursery.start(rig.service.run)
    await rig.vault.wait_position(rig.disk.position)
    assert late == []
    assert len(rig.cache.gets) == len(set(rig.cache.gets)) == len(parts), "a part was downloaded twice"


async def test_a_disk_with_many_parts_is_continued_after_the_others(
    rig: Rig, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applier, "PARTS_PER_ROUND", 2)
    rig.cache.hold([*rig.disk.sync(), *(rig.log(f"point {number}") for number in range(7))])
    await nursery.start(lambda task_status: rig.service.run(poll_s=3600, task_status=task_status))
    await rig.vault.wait_position(rig.disk.position)
    assert rig.vault.rounds >= 4
    assert rig.vault.failed == []


@pytest.mark.parametrize("then", ["the disk does not replicate", "the vault does not answer"])
async def test_the_applier_waits_although_a_disk_has_more_parts(
    rig: Rig, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    monkeypatch.setattr(applier, "PARTS_PER_ROUND", 1)
    rounds, is_due = 0, rig.applier._is_compaction_due  # noqa: SLF001 (each round calls it)

    def counted(disk: AppliedDisk) -> bool:
        nonlocal rounds
        rounds += 1
        assert rounds < 1000, "the applier does not wait"
        return is_due(disk)

    monkeypatch.setattr(rig.applier, "_is_compaction_due", counted)
    process = rig.applier._process_disk  # noqa: SLF001

    async def processed(disk: AppliedDisk, *args: Any) -> None:
        await process(disk, *args)
        if then == "the disk does not replicate":
            rig.vault.disks = []
        else:
            rig.vault.away = RigError(Code.of("PeerUnreachable"), "vault: connection refused", recoverable=True)

    monkeypatch.setattr(rig.applier, "_process_disk", processed)
    rig.cache.hold([*rig.disk.sync(), *(rig.log(f"point {number}") for number in range(3))])
    net_s = 0 if then == "the vault does not answer" else 3600
    await nursery.start(lambda task_status: rig.service.run(poll_s=3600, net_s=net_s, task_status=task_status))
    while rig.vault.rounds < 2:
        await rig.vault.changed.wait()
    await trio.testing.wait_all_tasks_blocked()
    assert len(rig.cache.blobs) > 1
    assert rounds <= 3


async def test_an_order_applies_all_parts_in_one_round(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applier, "PARTS_PER_ROUND", 1)
    rig.cache.hold([*rig.disk.sync(), rig.log("one"), rig.log("two")])
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert mark.complete_position == rig.disk.position


async def test_a_download_that_failed_raises_when_its_part_is_asked_for(cache: FakeCache) -> None:
    cache.unreadable.add(PARTS[1])
    with pytest.raises(RigError) as caught:
        async with reading_ahead(cache, trio.Semaphore(1)) as downloads:
            downloads.begin({PARTS[1]: 10})
            await trio.testing.wait_all_tasks_blocked()
            assert await downloads.get(PARTS[0]) == cache.blobs[PARTS[0]]
            await downloads.get(PARTS[1])
    assert caught.value.code == Code.PartUnreadable


async def test_a_download_that_is_not_wanted_any_more_is_dropped(cache: FakeCache) -> None:
    places = trio.Semaphore(2)
    async with reading_ahead(cache, places) as downloads:
        downloads.begin({PARTS[0]: 10, PARTS[1]: 10, PARTS[2]: 10})  # for the third there is no place
        await trio.testing.wait_all_tasks_blocked()
        downloads.begin({PARTS[1]: 10, PARTS[3]: 10})
        await trio.testing.wait_all_tasks_blocked()
        assert set(cache.gets) == {PARTS[0], PARTS[1], PARTS[3]}
        assert await downloads.get(PARTS[1]) == cache.blobs[PARTS[1]]
        assert len(cache.gets) == 3, "a part was downloaded twice"
    assert places.value == 2


async def test_places_are_limited_and_become_free_again(cache: FakeCache) -> None:
    places = trio.Semaphore(1)
    async with reading_ahead(cache, places) as one, reading_ahead(cache, places) as other:
        one.begin({PARTS[0]: 10})
        other.begin({PARTS[1]: 10})  # no place
        await trio.testing.wait_all_tasks_blocked()
        assert cache.gets == [PARTS[0]]
        assert await other.get(PARTS[1]) == cache.blobs[PARTS[1]]
        assert await one.get(PARTS[0]) == cache.blobs[PARTS[0]]
        other.begin({PARTS[2]: AHEAD_BYTES_MAX + 1})  # too long
        other.begin({PARTS[3]: 10})
        await trio.testing.wait_all_tasks_blocked()
        assert cache.gets == [PARTS[0], PARTS[1], PARTS[3]]
    assert places.value == 1


def test_a_part_follows_another_of_its_stream_only() -> None:
    assert follows(PARTS[1], PARTS[0])
    assert not follows(PARTS[2], PARTS[0])
    assert not follows(PartName(DISK_ID, 2, "log", 11, 12), PARTS[0])
    assert not follows(PartName(DISK_ID, 1, "sync", 11, 11), PARTS[0])
