"""The managed disk's store gives back exactly the bytes of every position, whatever the order of kills."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.disks.store import ManagedDiskStore, discard_leftovers
from siterig.azure_emu.disks.view import open_view
from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.errors import RigError
from tests.support.disks.disk_history import CHUNK_BYTES, DISK_ID, SIZE_BYTES, Packed, SiteDisk
from tests.support.stores.managed_disk import apply, assert_same, new_store, seeded, site, whole


@pytest.mark.parametrize("seed", range(6))
def test_every_position_of_a_random_history_reads_as_the_disk_was(tmp_path: Path, seed: int) -> None:
    print(f"replay with seed {seed}")
    disk, store = site(tmp_path, seed), new_store(tmp_path)
    disk.scribble(30)
    disk.close_log()  # before the snapshot: not needed
    apply(store, disk.sync())
    snapshot = disk.position
    tags = []
    for number in range(6):
        disk.scribble(disk.rng.randrange(1, 25))
        if number == 3:
            disk.resize(SIZE_BYTES + 64 * 1024)
        tags.append(disk.tag(f"point {number}"))
        apply(store, [disk.close_log()])
    assert store.tags() == tags
    assert store.tags(4) == tags[4:]
    assert store.watermark().complete_position == tags[-1].position
    for position, state in disk.states.items():
        if position >= snapshot:
            assert_same(whole(open_view(store.folder, position)), state, f"seed {seed}, position {position}")
    assert_same(whole(store.latest_view()), bytes(disk.data), "latest")


@pytest.mark.parametrize("seed", range(4))
def test_positions_before_and_after_a_resync_read_as_the_disk_was(tmp_path: Path, seed: int) -> None:
    print(f"replay with seed {seed}")
    disk, store = site(tmp_path, seed), new_store(tmp_path)
    disk.scribble(20)
    disk.close_log()
    apply(store, disk.sync())
    before = [disk.position]
    disk.scribble(20)
    before.append(disk.tag("old").position)
    apply(store, [disk.close_log()])
    disk.scribble(20)  # lost with the log
    disk.new_generation()
    disk.scribble(3)
    disk.close_log()
    *first, last = disk.sync(against=whole(store.latest_view()))
    resync = disk.position
    apply(store, first)
    mark = store.watermark()
    assert (mark.generation, mark.sync_parts, mark.sync_complete, mark.log_seq) == (2, len(first), False, 0)
    assert mark.complete_position == before[-1]
    apply(store, [last])
    assert store.watermark().complete_position == resync
    disk.scribble(20)
    after = [resync, disk.tag("new").position]
    apply(store, [disk.close_log()])
    for position in before + after:
        assert_same(whole(store.view(position)), disk.states[position], f"seed {seed}, position {position}")


def test_a_position_in_an_unfinished_resync_is_refused_with_valid_ranges(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    snapshot, old = store.debug_state().epochs[0].snapshot_position, disk.position
    disk.new_generation()
    disk.scribble(20)
    disk.close_log()
    parts = disk.sync(against=whole(store.latest_view()))
    apply(store, parts[:-1])
    for position in (snapshot - 1, old + 1, disk.position):
        with pytest.raises(RigError) as caught:
            open_view(store.folder, position)
        assert caught.value.code == "InvalidPosition"
        assert caught.value.message == (
            f"disk {DISK_ID} has no state at position {position}: valid positions are {snapshot} to {old}"
        )
    assert_same(whole(store.view(old)), disk.states[old], "the old generation's last position")


def test_a_second_resync_builds_on_an_interrupted_one(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    old = disk.position
    disk.new_generation()
    disk.scribble(20)
    disk.close_log()
    apply(store, disk.sync(against=whole(store.latest_view()))[:-1])
    disk.new_generation()
    disk.scribble(5)
    disk.close_log()
    apply(store, disk.sync(against=whole(store.latest_view())))
    assert_same(whole(store.view(disk.position)), bytes(disk.data), "after the second resync")
    assert_same(whole(store.view(old)), disk.states[old], "before both")


def test_an_initial_replication_that_begins_again_starts_from_zeros(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.write(0, b"x" * SIZE_BYTES)
    apply(store, disk.sync()[:-1])
    disk.new_generation()
    disk.zero(0, SIZE_BYTES)
    disk.write(40_000, b"only this")
    disk.close_log()
    late = disk.sync()
    assert not store.initial_sync_complete  # so a comparison finds zeros
    apply(store, late)
    assert_same(whole(store.view(disk.position)), bytes(disk.data), "the second seed")


def test_a_grown_disk_is_copied_whole_and_a_shrunk_one_is_refused(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.scribble(10)
    apply(store, disk.sync()[:1])  # the copy was cut, and the disk has grown: the next generation begins anew
    disk.new_generation()
    disk.resize(SIZE_BYTES + 8192)
    disk.write(SIZE_BYTES + 8000, b"the new end")
    disk.close_log()
    grown = disk.sync()
    apply(store, grown)
    assert store.created_size_bytes == SIZE_BYTES + 8192
    for view in (store.view(disk.position), open_view(store.folder, disk.position)):
        assert_same(whole(view), bytes(disk.data), "the seed")
    disk.scribble(5)
    disk.tag("after")
    apply(store, [disk.close_log()])
    assert_same(whole(ManagedDiskStore.open(store.folder).latest_view()), bytes(disk.data), "after the log")
    disk.new_generation()
    disk.data = disk.data[:SIZE_BYTES]
    with pytest.raises(RigError, match=f"the managed disk has {SIZE_BYTES + 8192} and cannot shrink"):
        apply(store, disk.sync())


def test_a_resync_of_a_disk_that_has_grown_keeps_the_older_positions_small(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    small = disk.position
    disk.new_generation()
    disk.resize(2 * SIZE_BYTES)
    disk.scribble(20)
    disk.close_log()
    apply(store, disk.sync(against=whole(store.latest_view())))
    assert_same(whole(store.view(disk.position)), bytes(disk.data), "after the resync")
    assert_same(whole(store.view(small)), disk.states[small], "before it")


def test_a_kill_while_the_base_is_cleared_counts_no_old_part(tmp_path: Path) -> None:
    disk = site(tmp_path)
    disk.scribble(20)
    store = new_store(tmp_path)
    apply(store, disk.sync()[:-1])
    disk.new_generation()

    killed = failpoint.armed("store.initial_sync.cleared", failpoint.raises(KilledError))
    with killed, pytest.raises(KilledError):
        apply(store, disk.sync())
    mark = ManagedDiskStore.open(store.folder).watermark()
    assert (mark.generation, mark.sync_parts) == (2, 0)


def test_a_disk_has_no_state_before_its_initial_sync_is_complete(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.scribble(20)
    apply(store, disk.sync()[:-1])
    assert store.watermark().complete_position == 0
    with pytest.raises(RigError) as caught:
        open_view(store.folder, disk.position)
    assert caught.value.message == (
        f"disk {DISK_ID} has no state at position {disk.position}: its initial replication is not complete"
    )
    with pytest.raises(RigError, match="its initial replication is not complete"):
        store.latest_view()


@pytest.mark.parametrize("seed", range(4))
def test_a_copy_over_two_snapshots_is_valid_when_the_log_has_passed_the_second(tmp_path: Path, seed: int) -> None:
    print(f"replay with seed {seed}")
    disk, store = site(tmp_path, seed), new_store(tmp_path)
    disk.write(0, disk.rng.randbytes(SIZE_BYTES))
    first_snapshot = disk.sync()
    first_seq = disk.seq + 1
    disk.scribble(10)
    disk.tag("between the snapshots")
    between = disk.close_log()
    disk.scribble(10)
    half = len(first_snapshot) // 2
    second_snapshot = disk.sync(start=half * 3 * CHUNK_BYTES, first_part=half + 1, first_seq=first_seq)
    snapshot = disk.position
    disk.scribble(10)
    disk.tag("after both")
    last = disk.close_log()

    apply(store, first_snapshot[:half] + second_snapshot)
    for log in (None, between):
        apply(store, [log] if log else [])
        mark = store.watermark()
        assert (mark.sync_complete, mark.complete_position) == (True, 0)
        with pytest.raises(RigError, match="its initial replication is not complete"):
            open_view(store.folder, snapshot)
    apply(store, [last])
    assert store.watermark().complete_position == disk.position
    assert [tag.name for tag in store.tags()] == ["after both"]
    for position, state in disk.states.items():
        if position >= snapshot:
            assert_same(whole(open_view(store.folder, position)), state, f"seed {seed}, position {position}")


def test_a_log_that_begins_before_the_only_snapshot_does_not_take_the_disk_back(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    first_seq = disk.seq + 1  # of a snapshot of which no part was ever written
    disk.write(0, b"old" * 1000)
    early = disk.close_log()
    disk.write(0, b"new" * 1000)
    parts = disk.sync(first_seq=first_seq)
    snapshot = disk.position
    apply(store, parts)
    for _ in range(2):
        assert store.watermark().complete_position == snapshot
        assert_same(whole(store.view(snapshot)), disk.states[snapshot], "the snapshot")
        apply(store, [early])
    apply(store, [disk.close_log()])
    assert_same(whole(store.view(snapshot)), disk.states[snapshot], "the snapshot, later")


def test_applying_everything_again_changes_nothing(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.scribble(20)
    parts = disk.sync()
    disk.scribble(5)
    disk.tag("point")
    parts.append(disk.close_log())
    for part in parts:
        apply(store, [part, part])
    mark, names = store.watermark(), sorted(p.name for p in (store.folder / "journal").iterdir())
    apply(store, parts)
    assert store.watermark() == mark
    assert sorted(p.name for p in (store.folder / "journal").iterdir()) == names
    assert len(store.tags()) == 1
    assert_same(whole(store.latest_view()), bytes(disk.data), "latest")


def test_parts_out_of_order_are_refused_and_name_the_next(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.scribble(30)
    disk.close_log()
    first, second, *rest = disk.sync()
    disk.scribble(3)
    log1 = disk.close_log()
    disk.scribble(3)
    log2 = disk.close_log()

    def refused(part: Packed) -> str:
        before = store.watermark()
        with pytest.raises(RigError) as caught:
            store.apply_part(*part)
        assert caught.value.code == "PartGap"
        assert store.watermark() == before
        return caught.value.message.partition(": ")[2]

    assert refused(second) == "sync part 1 comes next"
    apply(store, [first])
    assert refused(log1) == "sync part 2 of generation 1 comes next"
    apply(store, [second, *rest])
    assert refused(log2) == f"log sequence number {log1[0].first} of generation 1 comes next"
    apply(store, [log1, log2])
    assert store.watermark().log_seq == log2[0].last


def test_a_part_whose_positions_go_back_is_refused(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    reached = disk.position
    disk.position = 17
    disk.new_generation()
    (part, data), *_ = disk.sync(against=bytes(SIZE_BYTES))
    with pytest.raises(RigError) as caught:
        store.apply_part(part, data)
    assert caught.value.code == "PositionRegressed"
    assert caught.value.message == f"part {part.blob()}: begins at position 18; disk {DISK_ID} is at {reached} already"


def test_positions_do_not_go_back_from_one_sync_part_to_the_next(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    disk.new_generation()
    first, *_ = disk.sync(against=bytes(SIZE_BYTES))
    store.apply_part(*first)
    reached, disk.position = disk.position, disk.position - 2
    part, data = disk.sync(against=bytes(disk.data), first_part=2, first_seq=disk.seq + 1)[0]
    with pytest.raises(RigError) as caught:
        store.apply_part(part, data)
    assert caught.value.message == (
        f"part {part.blob()}: begins at position {reached - 1}; disk {DISK_ID} is at {reached} already"
    )


def test_a_record_beyond_the_disk_is_refused(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    disk.note(RecordType.ZERO, SIZE_BYTES - 512, 1024)
    part, data = disk.close_log()
    with pytest.raises(RigError) as caught:
        store.apply_part(part, data)
    assert caught.value.code == "PartRefused"
    assert caught.value.message == (
        f"part {part.blob()}: record {part.first} ends at byte {SIZE_BYTES + 512} of a disk of {SIZE_BYTES}"
    )


@pytest.mark.parametrize("at", [20, 200, -40])
def test_a_corrupt_part_is_refused_and_the_disk_stays_as_it_was(tmp_path: Path, at: int) -> None:
    disk, store = seeded(tmp_path)
    before = whole(store.latest_view())
    disk.write(0, disk.rng.randbytes(5000))
    part, data = disk.close_log()
    bad = bytearray(data)
    bad[at] ^= 0x10
    with pytest.raises(RigError) as caught:
        store.apply_part(part, bytes(bad))
    assert caught.value.code == "PartCorrupt"
    assert part.blob() in caught.value.message
    assert_same(whole(store.latest_view()), before, "latest")
    store.apply_part(part, data)
    assert_same(whole(store.latest_view()), bytes(disk.data), "latest")


class KilledError(Exception):
    """Stands for kill -9."""


def history(tmp_path: Path) -> tuple[SiteDisk, list[Packed]]:
    """A seed, a log, a resync begun anew, a log, of a disk that grows before either copy: every kind of step."""
    disk = site(tmp_path, 7)
    disk.resize(SIZE_BYTES + 40_960)
    disk.scribble(12)
    disk.close_log()
    parts = disk.sync()
    disk.scribble(8)
    disk.tag("one")
    parts.append(disk.close_log())
    old = bytes(disk.data)
    disk.new_generation()
    disk.resize(SIZE_BYTES + 81_920)
    disk.scribble(8)
    disk.close_log()
    parts += disk.sync(against=old)
    disk.scribble(8)
    disk.tag("two")
    parts.append(disk.close_log())
    return disk, parts


@pytest.mark.slow
def test_a_kill_at_any_failpoint_loses_nothing(tmp_path: Path) -> None:
    disk, parts = history(tmp_path)
    names: list[str] = []
    with failpoint.all_armed(names.append, "store."):
        store = new_store(tmp_path)
        apply(store, parts)
        store.delete()
    for kill_at in range(len(names)):
        left = kill_at

        def step(_name: str) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KilledError

        what = f"killed after step {kill_at} ({names[kill_at]})"
        todo, returned, deleting = list(parts), 0, False
        folder = tmp_path / DISK_ID
        try:
            with failpoint.all_armed(step, "store."):
                store = new_store(tmp_path)
                while todo:
                    store.apply_part(*todo[0])
                    todo.pop(0)
                    returned = store.watermark().complete_position
                deleting = True
                store.delete()
        except KilledError:
            pass
        discard_leftovers(tmp_path)
        if deleting:
            assert not folder.exists(), what
            continue
        store = ManagedDiskStore.open(folder) if folder.exists() else new_store(tmp_path)
        assert store.watermark().complete_position >= returned, what
        apply(store, parts)  # the agent sends again what was not reported
        assert [tag.name for tag in store.tags()] == ["one", "two"], what
        for tag in store.tags():
            assert_same(whole(store.view(tag.position)), disk.states[tag.position], f"{what}, {tag.name}")
        store.delete()


def test_the_kill_test_reaches_all_failpoints(tmp_path: Path) -> None:
    _, parts = history(tmp_path)
    names: list[str] = []
    with failpoint.all_armed(names.append, "store."):
        store = new_store(tmp_path)
        apply(store, parts)
        store.delete()
    assert set(names) == {
        "store.create.folder",
        "store.create.base",
        "store.create.meta",
        "store.create.renamed",
        "store.apply.unpacked",
        "store.journal_file.created",
        "store.journal_file.synced",
        "store.append.begun",
        "store.append.followed",
        "store.append.written",
        "store.append.synced",
        "store.initial_sync.restarted",
        "store.initial_sync.grown",
        "store.initial_sync.cleared",
        "store.initial_sync.mapped",
        "store.initial_sync.counted",
        "store.base.announced",
        "store.base.noted",
        "store.base.copied",
        "store.base.synced",
        "store.base.concluded",
        "store.delete.renamed",
    }


def test_an_apply_that_failed_can_be_done_again_in_the_same_process(tmp_path: Path) -> None:
    disk, parts = history(tmp_path)
    seen: set[tuple[str, str]] = set()
    current = ""

    def step(name: str) -> None:
        if (current, name) not in seen:
            seen.add((current, name))
            raise OSError(28, "No space left on device")

    store = ManagedDiskStore.create(tmp_path / DISK_ID, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1)
    for part, data in parts:
        current = part.blob()
        while True:
            try:
                with failpoint.all_armed(step, "store."):
                    store.apply_part(part, data)
            except RigError as exc:
                assert (exc.code, exc.recoverable) == ("DiskFull", True)
            else:
                break
    assert_same(whole(store.latest_view()), bytes(disk.data), "latest")
    assert len(seen) > len(parts)


def test_an_open_view_outlives_later_parts_and_the_disk(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    view, then = open_view(store.folder, disk.position), bytes(disk.data)
    disk.scribble(10)
    apply(store, [disk.close_log()])
    store.delete()
    assert not store.folder.exists()
    assert_same(whole(view), then, "view")
