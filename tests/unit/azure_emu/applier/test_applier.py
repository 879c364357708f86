"""The applier applies in order, reports, then deletes; troubles pass or are reported, and nothing is lost."""

from __future__ import annotations

import math
import random
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from siterig.azure_emu.applier import applier
from siterig.azure_emu.applier.applier import RETRY_REFUSED_S
from siterig.azure_emu.contracts.recovery_side import RecoverySide
from siterig.azure_emu.disks.pins import pin, unpin
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_view
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import Listing, PartName
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES
from tests.support.rigs.applier_rig import Rig

EXPORT_ID = "0b6f3a52-63f4-4c2f-8f0e-6f8b1c9d0e1f"


@pytest.fixture
def fast_clock() -> trio.testing.MockClock:
    """500 seconds a second.  An autojumping clock would spin while the disks' threads work, and starve them."""
    return trio.testing.MockClock(rate=500)


@pytest.fixture(autouse=True)
def repair_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no part be bad for long: on a slow machine the fast clock passes that limit, and the part is reported again."""
    monkeypatch.setattr(applier, "QUICK_FOR_S", math.inf)


@pytest.fixture
async def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    await made.service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES)
    made.disk.scribble(20)
    return made


async def test_parts_are_applied_reported_and_then_deleted(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    await nursery.start(rig.service.run)
    parts = rig.disk.sync()
    parts += [rig.log("one"), rig.log("two")]
    rig.cache.hold(parts[::-1])
    await rig.vault.wait_position(rig.disk.position)
    assert [tag.name for tag in rig.vault.tags] == ["one", "two"]
    assert rig.state(rig.disk.position) == rig.disk.data
    assert rig.vault.blobs_at_report[1:] == list(range(len(parts), 0, -1))  # a blob is there until its part is reported
    await rig.vault.wait_rounds(1)
    assert rig.cache.deleted == [part for part, _ in parts]
    assert rig.vault.failed == []


async def test_a_missing_part_is_waited_for(rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock) -> None:
    await nursery.start(rig.service.run)
    rig.cache.hold(rig.disk.sync())
    first, second = rig.log("one"), rig.log("two")
    rig.cache.hold([second])
    await rig.vault.wait_rounds(3)
    assert list(rig.cache.blobs) == [second[0]]
    rig.cache.hold([first])
    await rig.vault.wait_position(rig.disk.position)
    assert rig.vault.failed == []


async def test_a_listed_part_without_data_is_requested_and_then_applied(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    parts = [*rig.disk.sync(), rig.log("one")]
    rig.cache.hold(parts)
    rig.cache.forgotten.add(parts[1][0])
    await nursery.start(rig.service.run)
    await rig.vault.wait_asked()
    assert rig.vault.asked[0][1] == [part.blob() for part, _ in parts[1:]]
    assert rig.vault.asked_temporary == [False]
    await rig.vault.wait_failed()
    rig.cache.forgotten.clear()
    await rig.vault.wait_position(rig.disk.position)
    await rig.vault.wait_rounds(2)
    assert [code for code, _ in rig.vault.failed] == ["PartNotFound"]
    assert rig.waits.list() == []


async def test_an_unreachable_cache_is_ridden_out(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.cache.failure = RigError(Code.CacheUnreachable, "cache account: connection refused", recoverable=True)
    await nursery.start(rig.service.run)
    rig.cache.hold([*rig.disk.sync(), rig.log("one")])
    await rig.vault.wait_rounds(100)
    assert rig.vault.failed == []
    with pytest.raises(RigError, match="connection refused"):
        await rig.service.process_latest(disk_ids=[DISK_ID])
    rig.cache.failure = None
    await rig.vault.wait_position(rig.disk.position)


async def test_blobs_stay_until_the_vault_has_the_report(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.vault.failure = RigError(Code.of("PeerUnreachable"), "vault: connection refused", recoverable=True)
    await nursery.start(rig.service.run)
    parts = [*rig.disk.sync(), rig.log("one")]
    rig.cache.hold(parts)
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert mark.complete_position == rig.disk.position
    assert len(rig.cache.blobs) == len(parts)
    rig.vault.failure = None
    await rig.vault.wait_position(rig.disk.position)
    await rig.vault.wait_rounds(1)
    assert rig.cache.blobs == {}
    assert [tag.name for tag in rig.vault.tags] == ["one"]


async def test_a_corrupt_part_is_reported_once_and_left_until_it_is_replaced(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.cache.hold(rig.disk.sync())
    part, data = rig.log("one")
    bad = bytearray(data)
    bad[len(bad) // 2] ^= 1
    rig.cache.hold([(part, bytes(bad)), rig.log("two")])
    await nursery.start(rig.service.run)
    await rig.vault.wait_failed()
    while rig.cache.gets.count(part) < 3:  # tried again now and then
        await trio.sleep(RETRY_REFUSED_S)
        await rig.vault.wait_rounds(1)
    ((code, message),) = rig.vault.failed
    assert code == "PartCorrupt"
    assert part.blob() in message
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert mark.log_seq == 0
    assert len(rig.vault.failed) == 1
    assert part in rig.cache.blobs
    rig.cache.hold([(part, data)])
    await rig.vault.wait_position(rig.disk.position)
    assert rig.state(rig.disk.position) == rig.disk.data


async def test_a_part_that_overlaps_applied_parts_is_reported(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.cache.hold(rig.disk.sync())
    part, data = rig.log("one")
    rig.cache.hold([(part, data)])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    odd = PartName(DISK_ID, 1, "log", part.last, part.last + 3)
    rig.cache.hold([(odd, data)])
    await nursery.start(rig.service.run)
    await rig.vault.wait_failed()
    await rig.vault.wait_rounds(3)
    assert rig.vault.failed == [
        ("PartGap", f"part {odd.blob()}: log sequence number {part.last + 1} of generation 1 comes next")
    ]


async def test_a_restart_reports_everything_again_and_deletes_leftovers(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    parts = [*rig.disk.sync(), rig.log("one")]
    rig.cache.hold(parts)
    await rig.service.process_latest(disk_ids=[DISK_ID])
    rig.cache.hold(parts)  # as if killed before they were deleted
    rig.restart()
    (rig.disks / ".new-x").mkdir()
    await nursery.start(rig.service.run)
    await rig.vault.wait_position(rig.disk.position)
    assert [tag.name for tag in rig.vault.tags] == ["one"]
    await rig.vault.wait_rounds(1)
    assert rig.cache.blobs == {}
    assert not (rig.disks / ".new-x").exists()


async def test_an_old_generation_is_applied_until_the_next_ones_sync_begins(rig: Rig) -> None:
    rig.cache.hold([*rig.disk.sync(), rig.log("one")])
    late = rig.log("two")
    rig.cache.hold([late])
    rig.disk.new_generation()
    rig.cache.hold([rig.log("log of the new generation")])
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert (mark.generation, mark.log_seq) == (1, late[0].last)
    stale = PartName(DISK_ID, 1, "log", late[0].last + 1, late[0].last + 2)
    first, *rest = rig.disk.sync(against=rig.state(mark.complete_position))
    rig.cache.hold([(stale, b"never read"), *rest])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert rig.vault.failed == []
    rig.cache.hold([first])
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert (mark.generation, mark.sync_complete, mark.complete_position) == (2, True, rig.disk.position)
    assert rig.state(rig.disk.position) == rig.disk.data
    assert rig.cache.blobs == {}  # the stale part and the log before the snapshot are gone


async def test_a_disk_is_made_once_found_and_deleted_with_its_blobs(rig: Rig) -> None:
    side: RecoverySide = rig.service
    for asked in (SIZE_BYTES, SIZE_BYTES, SIZE_BYTES // 2):  # the last does not know that the disk has grown since
        await side.create_managed_disk(disk_id=DISK_ID, size_bytes=asked)
    with pytest.raises(RigError) as caught:
        await side.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES * 2)
    assert caught.value.message == f"managed disk {DISK_ID} exists with {SIZE_BYTES} bytes, not {SIZE_BYTES * 2}"
    rig.cache.hold(rig.disk.sync())
    for _ in range(2):
        await side.delete_managed_disk(disk_id=DISK_ID)
    assert rig.cache.blobs == {}
    with pytest.raises(RigError, match="is not a lower-case UUID"):
        await side.disk_state(disk_id="../../etc")


async def test_a_disk_that_is_created_again_has_one_writer(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    service, create, store_open = rig.service, ManagedDiskStore.create, ManagedDiskStore.open
    for disk_id in (DISK_ID, EXPORT_ID):
        await service.create_managed_disk(disk_id=disk_id, size_bytes=SIZE_BYTES)
    listing, made, go_on, opened = trio.Event(), threading.Event(), threading.Event(), threading.Event()

    async def slow_list(disk_id: str) -> Listing:
        if disk_id == EXPORT_ID:
            await listing.wait()
        return Listing({})

    def slow_create(folder: Path, **options: Any) -> ManagedDiskStore:
        store = create(folder, **options)
        opened.clear()  # it did that itself
        made.set()
        assert go_on.wait(30)
        return store

    def noted_open(folder: Path, **options: Any) -> ManagedDiskStore:
        opened.set()
        return store_open(folder, **options)

    monkeypatch.setattr(rig.cache, "list", slow_list)
    monkeypatch.setattr(ManagedDiskStore, "create", slow_create)
    monkeypatch.setattr(ManagedDiskStore, "open", noted_open)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: service.process_latest(disk_ids=[DISK_ID, EXPORT_ID]))
        await trio.testing.wait_all_tasks_blocked()  # the first is ready, the second waits
        await service.delete_managed_disk(disk_id=DISK_ID)
        nursery.start_soon(lambda: service.create_managed_disk(disk_id=DISK_ID, size_bytes=SIZE_BYTES))
        await trio.to_thread.run_sync(made.wait, 10)
        listing.set()
        await trio.to_thread.run_sync(opened.wait, 0.2)
        go_on.set()
    assert not opened.is_set()


async def test_a_damaged_store_is_reported_and_can_be_deleted(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    meta = rig.disks / DISK_ID / "disk.json"
    meta.write_text("{}")
    rig.restart()
    await nursery.start(rig.service.run)
    await rig.vault.wait_failed()
    await trio.sleep(RETRY_REFUSED_S * 3)
    await rig.vault.wait_rounds(1)
    ((code, message),) = rig.vault.failed
    assert code == "StoreCorrupt"
    assert str(meta) in message
    await rig.service.delete_managed_disk(disk_id=DISK_ID)
    assert not (rig.disks / DISK_ID).exists()


async def test_a_trouble_that_is_over_is_followed_by_a_report(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.cache.failure = RigError(Code.CacheForbidden, "cache account: the key was refused")
    await nursery.start(rig.service.run)
    await rig.vault.wait_failed()
    told = len(rig.vault.marks)
    rig.cache.failure = None
    while len(rig.vault.marks) == told:
        await rig.vault.changed.wait()
    assert rig.vault.failed == [("CacheForbidden", "cache account: the key was refused")]


async def import_export(rig: Rig, tmp_path: Path, count: int, size_bytes: int) -> bytes:
    """Bring an exported disk back as the site would: by applying its parts."""
    parts = (await rig.cache.list(EXPORT_ID)).parts
    assert len(parts) == count
    back = Rig(tmp_path / "back")
    back.cache.blobs = dict(rig.cache.blobs)
    await back.service.create_managed_disk(disk_id=EXPORT_ID, size_bytes=size_bytes)
    (mark,) = await back.service.process_latest(disk_ids=[EXPORT_ID])
    assert mark.sync_complete
    view = open_view(back.disks / EXPORT_ID, mark.complete_position)
    try:
        return view.pread(0, size_bytes)
    finally:
        view.close()


def source_file(tmp_path: Path) -> tuple[Path, bytes]:
    """19 MiB and a bit: data, 5 MiB of zeros, data."""
    rng = random.Random(5)
    data = rng.randbytes(9 << 20) + bytes(5 << 20) + rng.randbytes((5 << 20) + 512)
    path = tmp_path / "source.img"
    path.write_bytes(data)
    (tmp_path / "back").mkdir()
    return path, data


async def test_an_exported_disk_comes_back_the_same(rig: Rig, tmp_path: Path) -> None:
    path, data = source_file(tmp_path)
    count = await rig.service.export_disk(source=str(path), source_id=EXPORT_ID, size_bytes=len(data))
    assert count == 2
    assert sum(map(len, rig.cache.blobs.values())) < 15 << 20  # zeros were not sent
    assert await rig.service.export_progress(source_id=EXPORT_ID) == len(data)
    assert await import_export(rig, tmp_path, count, len(data)) == data
    assert not (rig.disks / ".export").exists()  # parts are made in memory


@pytest.mark.slow
async def test_an_interrupted_export_resumes_and_an_older_one_is_replaced(rig: Rig, tmp_path: Path) -> None:
    path, data = source_file(tmp_path)
    count = await rig.service.export_disk(source=str(path), source_id=EXPORT_ID, size_bytes=len(data))
    first = dict(rig.cache.blobs)
    rig.cache.failure = RigError(Code.CacheUnreachable, "cache account: connection refused", recoverable=True)
    with pytest.raises(RigError) as caught:
        await rig.service.export_disk(source=str(path), source_id=EXPORT_ID, size_bytes=len(data))
    assert caught.value.recoverable
    rig.cache.failure = None
    extra = PartName(EXPORT_ID, 1, "sync", count + 1, count + 1)
    rig.cache.blobs[extra] = b"of a longer export"
    changed = data[: 12 << 20] + b"written meanwhile" + data[(12 << 20) + 17 :]
    path.write_bytes(changed)
    assert await rig.service.export_disk(source=str(path), source_id=EXPORT_ID, size_bytes=len(data)) == count
    assert extra not in rig.cache.blobs
    same = PartName(EXPORT_ID, 1, "sync", 1, 1)
    assert rig.cache.blobs[same] is first[same]
    assert await import_export(rig, tmp_path, count, len(data)) == changed


async def test_a_source_that_cannot_be_exported_is_named(rig: Rig, tmp_path: Path) -> None:
    path, data = source_file(tmp_path)
    with pytest.raises(RigError) as caught:
        await rig.service.export_disk(source=str(path), source_id=EXPORT_ID, size_bytes=len(data) + 512)
    assert caught.value.message == f"{path}: has {len(data)} bytes; the disk to export has {len(data) + 512}"
    missing = tmp_path / "missing.img"
    with pytest.raises(RigError) as caught:
        await rig.service.export_disk(source=str(missing), source_id=EXPORT_ID, size_bytes=512)
    assert caught.value.message == f"{missing}: cannot be opened: No such file or directory"


async def test_positions_that_need_not_be_retained_are_compacted_in_the_background(
    rig: Rig, nursery: trio.Nursery, fast_clock: trio.testing.MockClock
) -> None:
    rig.cache.hold([*rig.disk.sync(), *(rig.log(str(number)) for number in range(8))])
    target = rig.disk.position
    later = rig.log("later")
    pinned = rig.disk.position
    rig.cache.hold([later])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    pin_id = pin(rig.disks / DISK_ID, pinned, "vm web01/os")
    await nursery.start(rig.service.run)
    await rig.service.retain(positions={DISK_ID: 1 << 62})
    while (state := await rig.service.disk_state(disk_id=DISK_ID)).floor < pinned:
        await rig.vault.wait_rounds(1)
    assert state.valid_ranges == [(pinned, pinned)]
    assert state.floor > target
    assert [each.holder for each in state.pins] == ["vm web01/os"]
    unpin(rig.disks / DISK_ID, pin_id)
    rig.cache.hold([rig.log("last")])
    while (await rig.service.disk_state(disk_id=DISK_ID)).floor < rig.disk.position:
        await rig.vault.wait_rounds(1)
    assert rig.state(rig.disk.position) == rig.disk.data
    assert await rig.service.scrub(disk_id=DISK_ID) == []


async def test_times_and_changes_can_be_asked_for(rig: Rig) -> None:
    rig.cache.hold(rig.disk.sync())
    snapshot = rig.disk.position
    rig.disk.write(4096, b"one")
    first = rig.disk.position
    rig.disk.zero(0, 512)
    second = rig.disk.position
    rig.disk.resize(SIZE_BYTES + 4096)
    third = rig.disk.position
    rig.cache.hold([rig.disk.close_log()])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    found = await rig.service.changes(disk_id=DISK_ID, after=snapshot, upto=third, limit=9)
    assert [(c.position, c.kind, c.offset, c.length) for c in found] == [
        (first, "WRITE", 4096, 3),
        (second, "ZERO", 0, 512),
        (third, "RESIZE", 0, SIZE_BYTES + 4096),
    ]
    assert await rig.service.changes(disk_id=DISK_ID, after=first, upto=third, limit=1) == found[1:2]
    with pytest.raises(RigError, match=f"has no state at position {third + 1}: valid positions are {snapshot} to {third}"):
        await rig.service.changes(disk_id=DISK_ID, after=first, upto=third + 1, limit=1)
    for time_ns, position in (
        (snapshot * 10, snapshot),
        (first * 10 - 1, snapshot),
        (first * 10, first),
        (second * 10 + 5, second),
        (1 << 62, third),
    ):
        assert await rig.service.position_at(disk_id=DISK_ID, time_ns=time_ns) == position
    with pytest.raises(RigError) as caught:
        await rig.service.position_at(disk_id=DISK_ID, time_ns=5)
    assert caught.value.message == (
        f"disk {DISK_ID} has no state of 5 ns since 1970 or before: the oldest is position {snapshot}, of {snapshot * 10} ns"
    )


async def test_a_store_that_is_broken_makes_room_for_a_resync(rig: Rig) -> None:
    rig.cache.hold([*rig.disk.sync(), rig.log("one"), rig.log("two")])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    (journal_file,) = (rig.disks / DISK_ID / "journal").iterdir()
    raw = bytearray(journal_file.read_bytes())
    for magic in (b"SRIGFRM", b"SRIGFRE"):
        raw[raw.index(magic)] ^= 1
    journal_file.write_bytes(raw)
    rig.restart()
    with pytest.raises(RigError) as caught:
        await rig.service.process_latest(disk_ids=[DISK_ID])
    assert caught.value.message == f"{journal_file}: managed disk is corrupt: byte 0: no frame begins here"
    (damage,) = await rig.service.scrub(disk_id=DISK_ID)
    assert (damage.path, damage.offset) == (str(journal_file), 0)
    rig.disk.new_generation()
    first, *rest = rig.disk.sync()
    rig.cache.hold([first])
    store = rig.disks / DISK_ID
    position = damage.first_position
    assert position is not None
    pin_id = pin(store, position - 1, "vm web01/os")
    with pytest.raises(RigError) as caught:
        await rig.service.process_latest(disk_ids=[DISK_ID])
    assert caught.value.message == (
        f"{store}: the managed disk is damaged and must be replicated again, but position {position - 1} of it is held by "
        "vm web01/os: remove that first"
    )
    unpin(store, pin_id)
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert (mark.generation, mark.sync_parts) == (2, 1)
    rig.cache.hold(rest)
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert rig.state(rig.disk.position) == rig.disk.data
    assert (rig.disks / f".damaged-{DISK_ID}").is_dir()
    await rig.service.delete_managed_disk(disk_id=DISK_ID)
    assert list(rig.disks.iterdir()) == []


def flip_in_header(journal_file: Path, magic: bytes) -> None:
    raw = bytearray(journal_file.read_bytes())
    raw[raw.index(magic) + 20] ^= 1
    journal_file.write_bytes(raw)


async def test_a_repair_rebuilds_metadata_and_applying_continues(rig: Rig, capfd: pytest.CaptureFixture[str]) -> None:
    rig.cache.hold([*rig.disk.sync(), rig.log("one")])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    (journal_file,) = (rig.disks / DISK_ID / "journal").iterdir()
    good = journal_file.read_bytes()
    flip_in_header(journal_file, b"SRIGFRM")
    assert len(await rig.service.scrub(disk_id=DISK_ID)) == 1
    for _ in range(2):  # again is no error
        await rig.service.repair(disk_id=DISK_ID)
        assert journal_file.read_bytes() == good
        assert await rig.service.scrub(disk_id=DISK_ID) == []
    rig.cache.hold([rig.log("two")])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    assert rig.state(rig.disk.position) == rig.disk.data


async def test_a_repair_that_would_not_help_leaves_the_store_unchanged(rig: Rig) -> None:
    rig.cache.hold([*rig.disk.sync(), rig.log("one")])
    await rig.service.process_latest(disk_ids=[DISK_ID])
    (journal_file,) = (rig.disks / DISK_ID / "journal").iterdir()
    for magic in (b"SRIGFRM", b"SRIGFRE"):
        flip_in_header(journal_file, magic)
    bad = journal_file.read_bytes()
    with pytest.raises(RigError, match="managed disk is corrupt: byte 0: frame header checksum does not match"):
        await rig.service.repair(disk_id=DISK_ID)
    assert journal_file.read_bytes() == bad
    rig.cache.hold([rig.log("two")])
    (mark,) = await rig.service.process_latest(disk_ids=[DISK_ID])
    assert mark.complete_position == rig.disk.position, "who has it open goes on"
