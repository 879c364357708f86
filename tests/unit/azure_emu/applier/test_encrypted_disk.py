"""An encrypted managed disk gives back every state, and has no byte of the disk in any of its files."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.azure_emu.disks.store import ManagedDiskStore, reset_disk
from siterig.azure_emu.disks.view import needed_key, open_disk, open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core import failpoint
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.transfer import encrypted_part
from siterig.blockfs.transfer.codec import pack
from siterig.blockfs.transfer.envelope import DataKey
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_part import SyncOrigin, pack_sync_part
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, SiteDisk
from tests.support.stores.killed_store import Killed
from tests.support.stores.managed_disk import apply, assert_same, site, whole

KEY = DataKey(uuid.UUID(int=9), bytes((7 * i + 3) % 256 for i in range(64)))
OTHER = DataKey(uuid.UUID(int=8), KEY.secret)
MARKER = b"plaintext of the guest, at any place"


def encrypted_store(tmp_path: Path) -> ManagedDiskStore:
    return ManagedDiskStore.create(tmp_path / DISK_ID, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1, key=KEY)


def files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


def assert_no_plaintext(folder: Path, disk: SiteDisk) -> None:
    """Check that no file has the marker, or a line of the disk that is not zeros."""
    lines = {bytes(disk.data[at : at + 16]) for at in range(0, len(disk.data), 16)} - {bytes(16)}
    for path in files(folder):
        data = path.read_bytes()
        assert MARKER not in data, path
        assert MARKER[:16] not in data, path
        found = [at for at in range(0, len(data) - 15, 8) if data[at : at + 16] in lines]
        assert not found, (path, found[:3])


@pytest.mark.parametrize("seed", range(3))
def test_every_position_of_a_random_history_reads_as_the_disk_was(tmp_path: Path, seed: int) -> None:
    """Records begin and end at any byte, so many of them are widened; the disk grows, is compacted and resynchronized."""
    print(f"replay with seed {seed}")
    disk, store = site(tmp_path, seed), encrypted_store(tmp_path)
    disk.scribble(30)
    disk.close_log()
    apply(store, disk.sync())
    snapshot = disk.position
    for number in range(5):
        disk.scribble(disk.rng.randrange(1, 25))
        if number == 2:
            disk.resize(SIZE_BYTES + 64 * 1024)
        middle = disk.tag(f"point {number}").position
        apply(store, [disk.close_log()])
        if number == 3:
            for position, state in disk.states.items():
                if position >= snapshot:
                    assert_same(whole(open_disk(store.folder, position, KEY)), state, f"seed {seed}, position {position}")
            store.compactor.compact(middle)
            snapshot = middle
        store.close()
        store = ManagedDiskStore.open(store.folder, key=KEY)
    disk.new_generation()
    disk.scribble(20)
    disk.close_log()
    apply(store, disk.sync(against=whole(store.latest_view())))
    disk.scribble(20)
    newest = disk.tag("new").position
    apply(store, [disk.close_log()])
    ends = [end for valid in store.valid_ranges() for end in valid if end in disk.states]
    for position in [*ends, newest]:
        assert_same(whole(store.view(position)), disk.states[position], f"seed {seed}, position {position}")
    assert_same(whole(store.latest_view()), bytes(disk.data), "latest")
    assert list(scrub(store.folder)) == []  # without the key
    assert_no_plaintext(store.folder, disk)
    store.close()


@pytest.mark.parametrize("step", ["store.base.noted", "store.base.copied", "store.compaction.mapped"])
def test_no_file_has_plaintext_after_a_kill_in_a_compaction(tmp_path: Path, step: str) -> None:
    disk, store = site(tmp_path), encrypted_store(tmp_path)
    for at in range(0, SIZE_BYTES, 8192):
        disk.write(at, MARKER * 20)
    disk.close_log()
    apply(store, disk.sync())
    assert_no_plaintext(store.folder, disk)
    for at in range(100, SIZE_BYTES, 30_000):
        disk.write(at, MARKER)
    disk.zero(9000, 5001)
    disk.tag("point")
    apply(store, [disk.close_log()])
    assert_no_plaintext(store.folder, disk)
    with failpoint.armed(step, failpoint.raises(Killed)), pytest.raises(Killed):
        store.compactor.compact(disk.position)
    assert_no_plaintext(store.folder, disk)
    store = ManagedDiskStore.open(store.folder, key=KEY)
    assert_same(whole(store.view(disk.position)), bytes(disk.data), "after the kill")
    assert store.oldest_position == disk.position
    assert_no_plaintext(store.folder, disk)


def test_another_key_or_none_is_refused_by_name(tmp_path: Path) -> None:
    disk, store = site(tmp_path), encrypted_store(tmp_path)
    disk.write(0, MARKER)
    disk.close_log()
    apply(store, disk.sync())
    store.close()
    assert needed_key(store.folder) == str(KEY.key_id)
    for key, text in ((OTHER, f"and the vault has {OTHER.key_id}"), (None, "and no key was given")):
        for opening in (
            lambda: ManagedDiskStore.open(store.folder, key=key),  # noqa: B023
            lambda: open_disk(store.folder, disk.position, key),  # noqa: B023
        ):
            with pytest.raises(RigError) as caught:
                opening()
            assert caught.value.code == "KeyMissing"
            assert f"{store.folder}: the managed disk is encrypted with key {KEY.key_id}, {text}" == caught.value.message
    assert whole(open_view(store.folder, disk.position))[: len(MARKER)] != MARKER
    assert whole(open_disk(store.folder, disk.position, KEY))[: len(MARKER)] == MARKER


def test_a_managed_disk_of_an_older_siterig_stays_as_it_is(tmp_path: Path) -> None:
    disk = site(tmp_path)
    store = ManagedDiskStore.create(tmp_path / DISK_ID, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1)
    disk.scribble(10)
    disk.close_log()
    apply(store, disk.sync())
    store.close()
    assert needed_key(store.folder) is None
    store = ManagedDiskStore.open(store.folder, key=KEY)
    disk.scribble(10)
    disk.tag("point")
    apply(store, [disk.close_log()])
    assert not store.is_encrypted
    assert_same(whole(open_disk(store.folder, disk.position, KEY)), bytes(disk.data), "with a key")
    assert_same(whole(open_view(store.folder, disk.position)), bytes(disk.data), "without")
    store.close()
    new = reset_disk(store.folder, created_ns=2, key=KEY)
    assert new.is_encrypted


def test_a_changed_byte_is_found_without_the_key_and_not_served(tmp_path: Path) -> None:
    disk, store = site(tmp_path), encrypted_store(tmp_path)
    disk.write(0, disk.rng.randbytes(SIZE_BYTES))
    disk.close_log()
    apply(store, disk.sync())
    with (store.folder / "base.img").open("r+b") as base:
        base.seek(5 * 4096 + 7)
        byte = base.read(1)
        base.seek(5 * 4096 + 7)
        base.write(bytes([byte[0] ^ 1]))
    assert [(Path(damage.path).name, damage.offset) for damage in scrub(store.folder)] == [("base.img", 5 * 4096)]
    view = open_disk(store.folder, disk.position, KEY)
    with pytest.raises(OSError, match="Input/output error"):
        view.pread(5 * 4096 + 2048, 16)
    assert view.pread(6 * 4096, 4096) == disk.data[6 * 4096 : 7 * 4096]
    assert view.faults.seen()[0] == 1
    view.close()


def test_a_range_of_zeros_that_cannot_be_widened_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encrypted_part, "PAYLOAD_BYTES_MAX", 20_000)
    disk, store = site(tmp_path), encrypted_store(tmp_path)
    disk.close_log()
    apply(store, disk.sync())
    before = store.watermark()
    disk.zero(7, 20_000)
    disk.tag("point")
    with pytest.raises(RigError, match="20000 bytes at byte 7 cannot be encrypted") as caught:
        apply(store, [disk.close_log()])
    assert caught.value.code == "PartRefused"
    assert store.watermark() == before
    assert_same(whole(store.latest_view()), bytes(SIZE_BYTES), "latest")


def test_a_long_discard_that_covers_lines_in_part_is_applied(tmp_path: Path) -> None:
    """A record of that length cannot carry data, so the disk logs the edges by themselves."""
    size_bytes, ends = 80 << 20, [(7, 70 << 20), (1 << 20, (72 << 20) + 9), (0, 66_000), (5, 65_536 + 11)]
    paths, positions = DiskPaths(tmp_path, "web01", "os"), PositionCounter(tmp_path / "position")
    make_raw(paths, size_bytes)
    disk = Disk.open(paths, DiskOptions(positions, policy=LogPolicy(kept_share_max=None)), None)
    disk.tracking.start(new_generation=False)
    disk_id = disk.state.disk_id
    store = ManagedDiskStore.create(tmp_path / disk_id, disk_id=disk_id, size_bytes=size_bytes, created_ns=1, key=KEY)
    origin = SyncOrigin(disk_id, disk.state.generation, size_bytes, positions.draw(), 1, 1)
    store.apply_part(origin.part(1), pack_sync_part(origin, 1, deque(), is_last=True))
    for number, (begin, end) in enumerate(ends):
        for at in (0, begin, end - 20, 72 << 20):
            disk.write(at, b"not zero, and not at the edge of a line")
        disk.zero(begin, end - begin, discard=number % 2 == 0)
        disk.tracking.tag(TagSeen(tag_id=str(uuid.UUID(int=number)), kind="CrashConsistent", name="point",
                                  position=positions.draw(), time_ns=number))  # fmt: skip
        disk.flush_now()
        disk.tracking.maintain()
        segment = disk.tracking.segments()[-1]
        part = PartName(disk_id, disk.state.generation, "log", segment.first_seq, segment.last_seq)
        store.apply_part(part, pack(Path(segment.path)))
        view = store.latest_view()
        for at in sorted({0, begin, end, 72 << 20}):
            first = max(0, at - 4096)
            assert view.pread(first, 8192) == disk.read(first, 8192), f"range {begin} to {end}, at byte {first}"
        view.close()
    store.close()
    disk.abandon()
    positions.close()
