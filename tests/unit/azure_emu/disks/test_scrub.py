"""A scrub reports all damage and nothing else, whatever happens at the same time, and however much damage there is."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.disks import checkpoints, damage_map
from siterig.azure_emu.disks.base_image import PAIR
from siterig.azure_emu.disks.frames import ENTRY, Frame
from siterig.azure_emu.disks.pins import pin
from siterig.azure_emu.disks.store import ManagedDiskStore, delete_disk, reset_disk
from siterig.azure_emu.scrub import journal
from siterig.azure_emu.scrub import scrubber as scrub_module
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from tests.support import io_faults
from tests.support.disks.disk_history import SIZE_BYTES, SiteDisk
from tests.support.stores.killed_store import Killed
from tests.support.stores.managed_disk import apply, new_store, seeded, site

BLOCK = 4096


@pytest.fixture(autouse=True)
def small_journal_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 20_000)
    monkeypatch.setattr(journal, "TORN_WAIT_S", 0.0)
    monkeypatch.setattr(checkpoints, "RECORDS_MIN", 10)


def found_in(folder: Path, advance: Callable[[int], None] = lambda _bytes: None) -> list[Damage]:
    return list(scrub(folder, advance))


def flip(path: Path, *places: int) -> None:
    raw = bytearray(path.read_bytes())
    for at in places:
        raw[at] ^= 1
    path.write_bytes(raw)


def filled(tmp_path: Path, parts: int = 0) -> tuple[SiteDisk, ManagedDiskStore]:
    """A base that is all data, and so many log parts behind it."""
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.write(0, disk.rng.randbytes(SIZE_BYTES))
    disk.close_log()
    apply(store, disk.sync())
    for _ in range(parts):
        disk.scribble(10)
        apply(store, [disk.close_log()])
    return disk, store


def journal_file_of(store: ManagedDiskStore, frame: Frame) -> Path:
    return store.folder / f"journal/{frame.journal_file:012d}.journal"


def test_a_foreign_file_in_the_journal_stops_nothing_and_is_named(tmp_path: Path) -> None:
    disk, store = filled(tmp_path, parts=2)
    store.close()
    foreign = [store.folder / "journal" / name for name in ("notes.txt", "000000000001.journal.bak", "1.journal")]
    for path in foreign:
        path.write_bytes(b"somebody's")
    again = ManagedDiskStore.open(store.folder)
    disk.scribble(3)
    apply(again, [disk.close_log()])
    assert again.watermark().complete_position == disk.position
    found = found_in(store.folder)
    assert [damage.path for damage in found] == sorted(str(path) for path in foreign)
    assert {(damage.what, damage.first_position) for damage in found} == {("is not a journal file", None)}
    again.close()


# --- much damage ------------------------------------------------------------------------------------------------


def test_adjacent_bad_blocks_are_one_damage_until_all_are_overwritten(tmp_path: Path) -> None:
    disk, store = filled(tmp_path)
    flip(store.folder / "base.img", *range(8 * BLOCK, 20 * BLOCK, BLOCK))
    [damage] = found_in(store.folder)
    assert (damage.path, damage.offset) == (str(store.folder / "base.img"), 8 * BLOCK)
    assert damage.what.startswith(f"12 blocks of {BLOCK} bytes have wrong checksums; the first has ")
    assert (damage.first_position, damage.last_position) == (store.oldest_position, None)
    disk.write(8 * BLOCK, bytes(11 * BLOCK))
    apply(store, [disk.close_log()])
    assert [damage.last_position for damage in found_in(store.folder)] == [None]
    disk.write(19 * BLOCK, bytes(BLOCK))
    apply(store, [disk.close_log()])
    assert [damage.last_position for damage in found_in(store.folder)] == [disk.position - 1]


def test_lost_checksums_are_one_or_two_rows(tmp_path: Path) -> None:
    _, store = filled(tmp_path)
    os.truncate(store.folder / "base.sums", 0)
    blocks, length = found_in(store.folder)
    assert blocks.what.startswith(f"{SIZE_BYTES // BLOCK} blocks of {BLOCK} bytes have wrong checksums")
    assert blocks.first_position == store.oldest_position
    assert (length.path, length.first_position) == (str(store.folder / "base.sums"), None)


def test_very_many_ranges_are_aggregated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(damage_map, "REPORTED_MAX", 5)
    disk, store = filled(tmp_path)
    bad = range(0, SIZE_BYTES, 2 * BLOCK)
    flip(store.folder / "base.img", *bad)
    damages = found_in(store.folder)
    assert [damage.offset for damage in damages] == list(bad[:6])
    assert damages[-1].what.startswith(f"and {len(bad) - 5} more ranges from here on, {(len(bad) - 5) * BLOCK} bytes in all")
    disk.write(0, bytes(SIZE_BYTES))
    apply(store, [disk.close_log()])
    assert {damage.last_position for damage in found_in(store.folder)} == {disk.position - 1}


def test_very_many_damaged_frames_are_aggregated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub_module, "REPORTED_MAX", 3)
    _, store = filled(tmp_path, parts=9)
    for frame in store.debug_state().frames:
        flip(journal_file_of(store, frame), frame.back_at + 9)
    damages = found_in(store.folder)
    assert [damage.what for damage in damages] == [
        *(f"wrong copy of the header of frame {number}" for number in (1, 2, 3)),
        "and 6 more from here on; the first: wrong copy of the header of frame 4",
    ]


def test_overwriting_a_partial_last_block_ends_its_damage(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.resize(SIZE_BYTES + 512)
    disk.write(SIZE_BYTES, b"x" * 512)
    disk.close_log()
    apply(store, disk.sync())
    flip(store.folder / "base.img", SIZE_BYTES + 5)
    assert [damage.last_position for damage in found_in(store.folder)] == [None]
    disk.write(SIZE_BYTES, b"y" * 512)
    apply(store, [disk.close_log()])
    assert [damage.last_position for damage in found_in(store.folder)] == [disk.position - 1]


def test_a_damaged_payload_that_no_position_shows_has_no_positions(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.write(0, b"a" * BLOCK)
    log = disk.close_log()
    apply(store, disk.sync(first_seq=1))
    disk.write(BLOCK, b"b" * BLOCK)
    apply(store, [log, disk.close_log()])
    [early, late] = store.debug_state().frames
    for frame in (early, late):
        raw = journal_file_of(store, frame).read_bytes()
        *_, payload_at, _, _ = ENTRY.unpack_from(raw, frame.entries_at)
        flip(journal_file_of(store, frame), frame.segment_at + payload_at)
    assert sorted(damage.first_position or 0 for damage in found_in(store.folder)) == [0, late.position]


# --- concurrent changes -----------------------------------------------------------------------------------------


def test_a_compaction_that_begins_during_the_check_of_checksums_is_no_damage(tmp_path: Path) -> None:
    disk, store = filled(tmp_path, parts=4)
    looked = 0

    def compact(_name: str) -> None:
        nonlocal looked
        looked += 1
        with failpoint.armed("store.base.announced", failpoint.raises(Killed)), pytest.raises(Killed):
            store.compactor.compact(disk.position)

    with failpoint.armed("scrub.base.sums", compact):
        assert found_in(store.folder) == []
    assert looked


def test_checksums_are_checked_again_after_a_compaction(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.write(0, b"a" * BLOCK)
    disk.close_log()
    apply(store, disk.sync())
    disk.write(0, b"b" * BLOCK)
    apply(store, [disk.close_log()])
    with (store.folder / "base.sums").open("r+b") as file:
        file.seek(30 * PAIR.size)
        file.write(PAIR.pack(5, 5))
    with failpoint.armed("scrub.base.sums", lambda _name: store.compactor.compact(disk.position)):
        found = found_in(store.folder)
    assert [damage.what for damage in found] == ["checksum 00000005 of block 30, which holds no data"]


@pytest.mark.parametrize("moment", range(7))
def test_a_damaged_payload_that_is_compacted_meanwhile_is_reported(tmp_path: Path, moment: int) -> None:
    disk, store = filled(tmp_path, parts=3)
    disk.write(BLOCK + 9, b"victim" * 100)
    apply(store, [disk.close_log()])
    disk.write(10 * BLOCK, disk.rng.randbytes(30_000))
    apply(store, [disk.close_log()])
    disk.write(20 * BLOCK, b"x")
    apply(store, [disk.close_log()])
    [path] = [path for path in (store.folder / "journal").iterdir() if b"victim" in path.read_bytes()]
    flip(path, path.read_bytes().index(b"victim"))
    calls = 0

    def fold(_bytes: int) -> None:
        nonlocal calls
        if calls == moment:
            store.compactor.compact(disk.position)
        calls += 1

    damages = found_in(store.folder, fold)
    assert [damage for damage in damages if damage.first_position is not None], damages
    assert calls > moment


def test_an_initial_replication_that_begins_again_meanwhile_is_no_damage(tmp_path: Path) -> None:
    disk, store = site(tmp_path), new_store(tmp_path)
    for at in (0, 64 * 1024, 192 * 1024):
        disk.write(at, disk.rng.randbytes(16 * 1024))
    disk.close_log()
    apply(store, disk.sync()[:-1])
    disk.new_generation()
    disk.zero(64 * 1024, SIZE_BYTES - 64 * 1024)
    parts = iter(disk.sync()[:1])

    def begin_anew(_bytes: int) -> None:
        apply(store, list(parts))

    assert found_in(store.folder, begin_anew) == []
    assert store.watermark().generation == 2


def test_a_base_that_grows_before_its_checksums_is_no_damage(tmp_path: Path) -> None:
    disk, store = filled(tmp_path)
    disk.resize(SIZE_BYTES + 64 * 1024)
    apply(store, [disk.close_log()])

    with failpoint.armed("store.compaction.announced", failpoint.raises(Killed)), pytest.raises(Killed):
        store.compactor.compact(disk.position)
    os.truncate(store.folder / "base.img", SIZE_BYTES + 64 * 1024)
    assert found_in(store.folder) == []


def test_a_frame_that_takes_long_to_be_written_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = seeded(tmp_path)
    frame = store.debug_state().frames[-1]
    path = journal_file_of(store, frame)
    good = path.read_bytes()
    path.write_bytes(good[: frame.entries_at])
    waited = 0.0

    def wait(seconds: float) -> None:
        nonlocal waited
        waited += seconds
        if waited > 1:
            path.write_bytes(good)

    monkeypatch.setattr(journal, "TORN_WAIT_S", 0.02)
    monkeypatch.setattr(SYSTEM_CLOCK, "sleep_thread", wait)
    assert found_in(store.folder) == []
    path.write_bytes(good[: frame.entries_at])
    waited = -1e9
    assert [damage.path for damage in found_in(store.folder)] == [str(path)]


def test_a_last_frame_that_has_no_header_yet_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, store = seeded(tmp_path)
    frame = store.debug_state().frames[-1]
    path = journal_file_of(store, frame)
    good = path.read_bytes()
    path.write_bytes(good[: frame.start] + bytes(frame.segment_at - frame.start) + good[frame.segment_at :])
    monkeypatch.setattr(SYSTEM_CLOCK, "sleep_thread", lambda _seconds: path.write_bytes(good))
    assert found_in(store.folder) == []
    path.write_bytes(good[: frame.start] + bytes(frame.segment_at - frame.start) + good[frame.segment_at :])
    monkeypatch.setattr(SYSTEM_CLOCK, "sleep_thread", lambda _seconds: None)
    assert [damage.offset for damage in found_in(store.folder)] == [frame.start]


@pytest.mark.parametrize("there", ["all", "header and segment"])
def test_a_frame_that_is_written_while_its_header_is_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str
) -> None:
    _, store = seeded(tmp_path)
    frame = store.debug_state().frames[-1]
    path = journal_file_of(store, frame)
    good = path.read_bytes()
    path.write_bytes(good if there == "all" else good[: frame.entries_at])
    pread, looks = os.pread, 0

    def beside(fd: int, size: int, at: int) -> bytes:
        nonlocal looks
        found = pread(fd, size, at)
        if at != frame.start or str(path) != str(Path(f"/proc/self/fd/{fd}").readlink()):
            return found
        looks += 1
        if looks == 2:
            path.write_bytes(good)
        return bytes(size) if looks == 1 else found

    monkeypatch.setattr(os, "pread", beside)
    assert found_in(store.folder) == []
    assert looks > 1


@pytest.mark.parametrize("how", ["deleted", "set aside"])
def test_a_disk_that_is_deleted_meanwhile_is_gone_and_not_damaged(tmp_path: Path, how: str) -> None:
    _, store = filled(tmp_path, parts=3)

    def gone(_bytes: int) -> None:
        if how == "deleted":
            delete_disk(store.folder)
        elif store.folder.stat().st_ino == folder_id:
            reset_disk(store.folder, created_ns=2)

    folder_id = store.folder.stat().st_ino
    with pytest.raises(RigError) as caught:
        found_in(store.folder, gone)
    assert caught.value.code == "DiskNotFound"
    assert str(store.folder) in caught.value.message


# --- files ------------------------------------------------------------------------------------------------------


def test_a_folder_or_lock_that_is_missing_is_named(tmp_path: Path) -> None:
    _, store = filled(tmp_path)
    (store.folder / "lock").unlink()
    (store.folder / "pins").rmdir()
    found = [(damage.path, damage.what, damage.first_position) for damage in found_in(store.folder)]
    assert found == [(str(store.folder / name), "is missing", None) for name in ("lock", "pins")]


def test_damage_names_the_file_in_any_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a: b"
    folder.mkdir()
    _, store = filled(folder)
    store.close()
    (store.folder / "disk.json").write_text("{")
    [damage] = found_in(store.folder)
    assert (damage.path, damage.what) == (str(store.folder / "disk.json"), "managed disk is corrupt: is not JSON")


# --- what the host's disk cannot read ---------------------------------------------------------------------------


@contextmanager
def rotten(monkeypatch: pytest.MonkeyPatch, path: Path, start: int, length: int) -> Iterator[None]:
    """These bytes cannot be read, neither from Python nor from the engine."""
    pread, open_ = os.pread, Path.open  # Path.read_bytes calls Path.open, too

    def hits(name: str, at: int, size: int) -> bool:
        return name == str(path) and at < start + length and at + size > start

    def bad_pread(fd: int, size: int, at: int) -> bytes:
        if hits(str(Path(f"/proc/self/fd/{fd}").readlink()), at, size):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, at)

    def bad_open(of: Path, *args: Any, **kwargs: Any) -> Any:
        if of == path and length > path.stat().st_size:  # then no byte of it can be read
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return open_(of, *args, **kwargs)

    def verdict(operation: int, name: str, at: int, size: int) -> int:
        return -errno.EIO if operation == io_faults.READ and hits(name, at, size) else 0

    with monkeypatch.context() as patch, io_faults.io_verdict(verdict):
        patch.setattr(os, "pread", bad_pread)
        patch.setattr(Path, "open", bad_open)
        yield


def test_an_unreadable_sector_of_a_frame_is_reported_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 1 << 30)
    disk, store = filled(tmp_path)
    disk.write(0, disk.rng.randbytes(6 * BLOCK))
    disk.tag("tag")
    apply(store, [disk.close_log()])
    [frame] = store.debug_state().frames
    path = journal_file_of(store, frame)
    flip(store.folder / "base.img", 20 * BLOCK)
    first = frame.segment_at - frame.segment_at % BLOCK
    cases = [
        (first + 2 * BLOCK, "bytes written to byte", frame.first_position),
        (frame.entries_at, "the index", None),
        (frame.tags_at, "the tags", None),
        (frame.back_at, "the copy of the header", None),
    ]
    for at, what, first_position in cases:
        with rotten(monkeypatch, path, at, 1):
            damages = found_in(store.folder)
        named = [damage for damage in damages if damage.path == str(path) and "cannot read" in damage.what]
        assert [damage for damage in named if what in damage.what], (what, damages)
        assert first_position in {damage.first_position for damage in named}, (what, damages)
        assert [damage for damage in damages if damage.path.endswith("base.img")], what
    with rotten(monkeypatch, path, cases[0][0], 1):
        [payload] = [damage for damage in found_in(store.folder) if "at position" in damage.what]
    assert payload.offset <= cases[0][0] < payload.offset + 2 * BLOCK


@pytest.mark.parametrize("name", ["base.img", "base.sums"])
def test_an_unreadable_sector_of_the_base_is_reported_and_the_rest_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    disk, store = filled(tmp_path)
    flip(store.folder / "base.img", 60 * BLOCK)
    path, blocks = store.folder / name, 3
    start, length = (8 * BLOCK, blocks * BLOCK) if name == "base.img" else (8 * PAIR.size, blocks * PAIR.size)
    with rotten(monkeypatch, path, start, length):
        unread, wrong = found_in(store.folder)
    assert (unread.path, unread.offset) == (str(path), start)
    assert unread.what.startswith("cannot read ")
    assert f" {blocks} blocks " in unread.what
    assert (unread.first_position, wrong.offset) == (store.oldest_position, 60 * BLOCK)
    disk.write(8 * BLOCK, bytes(blocks * BLOCK))
    apply(store, [disk.close_log()])
    with rotten(monkeypatch, path, start, length):
        assert [damage.last_position for damage in found_in(store.folder)] == [disk.position - 1, None]


def test_small_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk, store = filled(tmp_path, parts=4)
    assert store.compactor.checkpoint()
    pin(store.folder, disk.position, "vm web01/os")

    [made] = (store.folder / "checkpoints").iterdir()
    with failpoint.armed("store.base.noted", failpoint.raises(Killed)), pytest.raises(Killed):
        store.compactor.compact(store.debug_state().frames[0].position)
    [pinned] = (store.folder / "pins").iterdir()
    for path in (made, pinned, store.folder / "intent", store.folder / "base.map", store.folder / "disk.json"):
        with rotten(monkeypatch, path, 0, 1 << 40):
            damages = found_in(store.folder)
        assert [(damage.path, "cannot be read" in damage.what) for damage in damages] == [(str(path), True)]
