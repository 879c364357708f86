"""Damage anywhere in a managed disk is found, named and never served; a resync repairs the disk."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.frames import ENTRY, HEADER_BYTES
from siterig.azure_emu.disks.journal import journal_file_path
from siterig.azure_emu.disks.pins import pin, unpin_holder
from siterig.azure_emu.disks.store import ManagedDiskStore, reset_disk
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.layers.chunk_tags import tag_chunks
from siterig.cext.checksums import TAG_BYTES, chunk_tag
from siterig.cext.packed_tags import unpack
from tests.support.disks.disk_history import CHUNK_BYTES
from tests.support.stores.killed_store import Life
from tests.support.stores.managed_disk import KEY, apply, assert_same, new_store, whole

BLOCK = 4096


@pytest.fixture(autouse=True)
def small_journal_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 100_000)
    monkeypatch.setattr("siterig.azure_emu.scrub.journal.TORN_WAIT_S", 0.0)
    monkeypatch.setattr("siterig.azure_emu.disks.base_image.REREAD_DELAY_S", 0.0)
    monkeypatch.setattr(checkpoints, "RECORDS_MIN", 10)


class Store:
    """A store with all kinds of files, closed, and what it holds."""

    def __init__(self, tmp_path: Path, seed: int) -> None:
        self.life = Life(tmp_path, seed)
        self.rng = self.life.disk.rng
        store = new_store(tmp_path)
        for number, part in enumerate(self.life.parts):
            store.apply_part(*part)
            if number in (len(self.life.parts) - 9, len(self.life.parts) - 2):
                store.compactor.checkpoint()
        store.compactor.compact(self.life.valid[30])
        self.folder = store.folder
        self.floor, self.last = store.oldest_position, store.watermark().complete_position
        pin(self.folder, self.last, "vm web01/os")
        valid = [position for position in sorted(set(self.life.valid)) if self.floor <= position <= self.last]
        self.positions = [valid[0], *sorted(self.rng.sample(valid[1:-1], 4)), valid[-1]]
        self.sums = [
            (journal_file_path(self.folder, frame.journal_file), frame.pieces_at, frame.tags_at)
            for frame in store.debug_state().frames
        ]
        store.close()
        assert [*scrub(self.folder)] == []

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size)

    def check(self, what: str, names: Path, byte: int | None = None) -> list[Damage]:
        """Check that the scrub names the file, and that each position reads right, or fails where the scrub reports it.

        If only ``byte`` is damaged, at most one block fails.
        """
        found = list(scrub(self.folder, lambda _bytes: None))
        assert any(str(names) in f"{damage.path}: {damage.what}" for damage in found), f"{what}: scrub found {found}"
        for position in self.positions:
            told = [d for d in found if d.first_position is not None and self._covers(d, position)]
            try:
                view = open_view(self.folder, position)
            except RigError as exc:
                assert exc.code in ("StoreCorrupt", "InvalidPosition"), what
                assert told or str(names) in exc.message, f"{what}: {exc.message}; scrub found {found}"
                continue
            state = self.life.disk.states[position]
            assert view.size_bytes == len(state), what
            failed = []
            for at in range(0, len(state), BLOCK):
                length = min(BLOCK, len(state) - at)
                try:
                    data = view.pread(at, length)
                except OSError as exc:
                    assert exc.errno == errno.EIO, what
                    assert told or self._is_sum(names, byte), f"{what}: byte {at} of {position}; scrub found {found}"
                    failed.append(at)
                else:
                    assert_same(data, state[at : at + length], f"{what}, position {position}, block at {at}")
            view.close()
            assert byte is None or len(failed) <= 1, f"{what}: blocks {failed} of {position}"
        return found

    @staticmethod
    def _covers(damage: Damage, position: int) -> bool:
        first, last = damage.first_position, damage.last_position
        return first is not None and first <= position and (last is None or position <= last)

    def _is_sum(self, path: Path, byte: int | None) -> bool:
        """Return whether the byte is in the checksum of a piece.

        For frames that a checkpoint contains, these checksums are used until the applier has repaired them.  They are no
        data, so no position is lost with them.
        """
        return byte is not None and any(
            path == journal_file and start <= byte < stop for journal_file, start, stop in self.sums
        )


Bad = tuple[str, int | None, bytes]
"""The kind of damage, the changed byte if there is only one, and the bytes of the file."""


def damaged(store: Store, change: Callable[[Path, bytes], Iterator[Bad]]) -> Iterator[tuple[str, Path, int | None]]:
    for path in store.files():
        good = path.read_bytes()
        for what, byte, bad in change(path, good):
            if bad != good:
                path.write_bytes(bad)
                yield f"{path.name}: {what}", path, byte
                path.write_bytes(good)


def flips(rng: random.Random, count: int) -> Callable[[Path, bytes], Iterator[Bad]]:
    def change(path: Path, good: bytes) -> Iterator[Bad]:
        for at in sorted(rng.sample(range(len(good)), min(count, len(good)))):
            if path.suffix in (".json", "") and good[at : at + 1].isspace():
                continue  # between the words of JSON: says nothing
            bad = bytearray(good)
            bad[at] ^= 1 << rng.randrange(8)
            yield f"bit of byte {at} of {len(good)}", at, bytes(bad)

    return change


def cuts(rng: random.Random) -> Callable[[Path, bytes], Iterator[Bad]]:
    def change(_path: Path, good: bytes) -> Iterator[Bad]:
        for length in (0, 1, rng.randrange(len(good)), len(good) - 1 - (good[-1:] == b"\n")):
            yield f"cut to {length} of {len(good)} bytes", None, good[:length]

    return change


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_flipped_bit_of_any_file_is_found_and_never_served(tmp_path: Path, seed: int) -> None:
    print(f"replay with seed {seed}")
    store = Store(tmp_path, seed)
    for what, path, byte in damaged(store, flips(store.rng, 30)):
        store.check(what, path, byte)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_truncated_file_is_found_and_never_served(tmp_path: Path, seed: int) -> None:
    print(f"replay with seed {seed}")
    store = Store(tmp_path, seed)
    newest = sorted((store.folder / "journal").iterdir())[-1]
    for what, path, _ in damaged(store, cuts(store.rng)):
        if path == newest and path.stat().st_size == 0:
            continue  # the newest frames are gone: that shows as a watermark that went back
        store.check(what, path)


def test_a_file_that_is_missing_is_found(tmp_path: Path) -> None:
    store = Store(tmp_path, 3)
    journal_files = sorted((store.folder / "journal").iterdir())
    for path in store.files():
        good = path.read_bytes()
        path.unlink()
        names = path
        if path.suffix == ".journal":
            if path == journal_files[-1]:
                path.write_bytes(good)
                continue  # a watermark that went back
            names = journal_files[journal_files.index(path) + 1]
        if path.parent.name not in ("pins", "checkpoints"):
            store.check(f"{path.name} is missing", names)
        path.write_bytes(good)


def spoil(made: Store) -> None:
    """Bits in every file that holds data."""
    for path in [made.folder / "base.img", *sorted((made.folder / "journal").iterdir())]:
        raw = bytearray(path.read_bytes())
        for _ in range(3):
            raw[made.rng.randrange(len(raw))] ^= 0x20
        path.write_bytes(raw)


def break_chain(made: Store) -> None:
    """A header and its copy."""
    store = ManagedDiskStore.open(made.folder)
    frame = made.rng.choice(store.debug_state().frames[:-1])
    store.close()
    path = journal_file_path(made.folder, frame.journal_file)
    raw = bytearray(path.read_bytes())
    for at in (frame.start, frame.back_at):
        raw[at + made.rng.randrange(HEADER_BYTES)] ^= 0x20
    path.write_bytes(raw)


def opened_or_reset(made: Store) -> ManagedDiskStore:
    """Open the disk; set it aside if nothing can be applied to it, as the applier does at the first part of a resync."""
    try:
        return ManagedDiskStore.open(made.folder)
    except RigError as exc:
        assert exc.code == "StoreCorrupt"
    with pytest.raises(RigError, match=f"position {made.last} of it is held by vm web01/os: remove that first"):
        reset_disk(made.folder, created_ns=2)
    unpin_holder(made.folder, "vm web01/os")
    store = reset_disk(made.folder, created_ns=2)
    assert made.folder.with_name(f".damaged-{made.folder.name}").is_dir()
    return store


@pytest.mark.parametrize("harm", [spoil, break_chain])
@pytest.mark.parametrize("seed", range(6))
def test_a_resync_repairs_a_damaged_disk(tmp_path: Path, seed: int, harm: Callable[[Store], None]) -> None:
    print(f"replay with seed {seed}")
    made = Store(tmp_path, seed)
    disk = made.life.disk
    harm(made)
    store = opened_or_reset(made)  # three bits in one frame can break the chain, too
    size = len(disk.data)
    disk.new_generation()
    disk.scribble(2)
    disk.close_log()
    chunks = -(-size // CHUNK_BYTES)
    packed = b""  # zeros, before the initial replication is complete
    if store.initial_sync_complete:
        view = store.latest_view()
        packed = tag_chunks(view, KEY, CHUNK_BYTES, [(0, chunks)], tags_max=chunks, unreadable_differs=True).packed
        view.close()
    tags = [unpack(packed).get(chunk, bytes(TAG_BYTES)) for chunk in range(chunks)]
    ours = [bytes(disk.data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]).ljust(CHUNK_BYTES, b"\0") for i in range(chunks)]
    against = bytearray(disk.data)
    for i, (tag, chunk) in enumerate(zip(tags, ours, strict=True)):
        if tag != chunk_tag(KEY, i, chunk):
            against[i * CHUNK_BYTES] ^= 0xFF
    apply(store, disk.sync(against=bytes(against)))
    assert_same(whole(store.view(disk.position)), bytes(disk.data), "after the resync")
    disk.scribble(5)
    point = disk.tag("later").position
    apply(store, [disk.close_log()])
    for damage in scrub(store.folder):
        assert damage.first_position is None or damage.last_position is not None, damage
    unpin_holder(made.folder, "vm web01/os")
    store.compactor.compact(disk.position)
    assert_same(whole(store.view(point)), disk.states[point], "folded")
    assert {damage.first_position for damage in scrub(store.folder)} <= {None}


def unreadable_blocks(store: ManagedDiskStore, position: int, state: bytes) -> list[int]:
    """Offsets of the blocks that cannot be read at a position; the bytes of all others are right."""
    failed = []
    view = store.view(position)
    try:
        assert view.size_bytes == len(state)
        for at in range(0, view.size_bytes, BLOCK):
            length = min(BLOCK, view.size_bytes - at)
            try:
                data = view.pread(at, length)
            except OSError:
                failed.append(at)
            else:
                assert_same(data, state[at : at + length], f"block at {at}")
    finally:
        view.close()
    return failed


def test_compaction_carries_damage_into_the_base_and_never_repairs_it(tmp_path: Path) -> None:
    made = Store(tmp_path, 2)
    (first, *_) = sorted((made.folder / "journal").iterdir())
    store = ManagedDiskStore.open(made.folder)
    frame = next(frame for frame in store.debug_state().frames if frame.entries)
    raw = bytearray(first.read_bytes())
    for at in range(0, frame.entries * ENTRY.size, ENTRY.size):
        _, _, _, length, payload_at, _, kind = ENTRY.unpack_from(raw, frame.entries_at + at)
        if kind == 1:
            raw[frame.segment_at + payload_at + length // 2] ^= 1
    first.write_bytes(raw)
    before = {damage.first_position for damage in scrub(store.folder)}
    assert before
    failed_before = unreadable_blocks(store, frame.position, made.life.disk.states[frame.position])
    assert failed_before
    store.compactor.compact(frame.position)
    assert store.oldest_position == frame.position
    assert unreadable_blocks(store, frame.position, made.life.disk.states[frame.position]) == failed_before
    assert {d.path for d in scrub(store.folder) if d.first_position is not None} == {str(made.folder / "base.img")}


@pytest.mark.slow
def test_opening_a_store_repairs_damage_from_which_a_frame_can_be_rebuilt(tmp_path: Path) -> None:
    made = Store(tmp_path, 1)
    repaired = 0
    for path in sorted((made.folder / "journal").iterdir()):
        good = path.read_bytes()
        store = ManagedDiskStore.open(made.folder)
        frames = [f for f in store.debug_state().frames if journal_file_path(made.folder, f.journal_file) == path]
        store.close()
        for frame in [frame for frame in frames if frame.entries and frame.tags_bytes][:2]:
            for at in (frame.start + 3, frame.entries_at + 5, frame.tags_at + 2, frame.back_at + 7):
                raw = bytearray(good)
                raw[at] ^= 0x40
                path.write_bytes(raw)
                assert made.check(f"byte {at}", path, at)
                again = ManagedDiskStore.open(made.folder)
                again.close()
                if at < frame.back_at:
                    assert path.read_bytes() == good
                    repaired += 1
                path.write_bytes(good)
    assert repaired >= 6, "too few frames have entries and tags"


def test_a_lost_map_of_the_base_is_rebuilt(tmp_path: Path) -> None:
    made = Store(tmp_path, 1)
    path = made.folder / "base.map"
    good = path.read_bytes()
    for bad in (good[:-1], good[:20], b"", good[:-3] + b"abc"):
        path.write_bytes(bad)
        made.check("the map", path)
        ManagedDiskStore.open(made.folder).close()
        for position in made.positions:
            assert_same(whole(open_view(made.folder, position)), made.life.disk.states[position], f"position {position}")
        assert [*scrub(made.folder, lambda _bytes: None)] == []
