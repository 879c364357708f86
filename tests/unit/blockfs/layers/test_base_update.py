"""Updates of a managed disk's base are right with any number of threads, and read and write no more than necessary."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from siterig.blockfs.layers import base_update
from siterig.blockfs.layers.layer import RawLayer
from siterig.cext.checksums import crc32c
from tests.support.io_faults import PUNCH, READ, WRITE, failing, io_verdict
from tests.support.stores.views import affected, open_base, start_bytes, view_of
from tests.support.stores.volume import BLOCK_BYTES, DISK_BYTES, Change, Volume, blocks_of

BLOCKS = len(blocks_of(bytes(DISK_BYTES)))
WHOLE = [(0, BLOCKS * BLOCK_BYTES)]


@contextmanager
def noted(operation: int, suffix: str) -> Iterator[list[tuple[int, int]]]:
    """Yield a list that collects (offset, bytes) of each operation of one kind that the engine does on a file."""
    found: list[tuple[int, int]] = []

    def verdict(asked: int, path: str, offset: int, size: int) -> int:
        if asked == operation and path.endswith(suffix):
            found.append((offset, size))
        return 0

    with io_verdict(verdict):
        yield found


def pairs_of(folder: Path) -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<II", (folder / "base.sums").read_bytes()))


# --- announce and conclude --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "reads"),
    [
        ((True, 0, BLOCK_BYTES), 0),
        ((True, BLOCK_BYTES, 5 * BLOCK_BYTES), 0),
        ((True, 100, 3 * BLOCK_BYTES), 2),  # the two blocks in the middle are whole pieces
        ((True, 0, BLOCK_BYTES - 1), 1),
        ((True, 1, BLOCK_BYTES - 1), 1),
        ((True, (BLOCKS - 1) * BLOCK_BYTES, DISK_BYTES % BLOCK_BYTES), 1),  # the last block is short
        ((False, 0, 5 * BLOCK_BYTES), 0),
        ((False, 1, BLOCK_BYTES), 0),  # the rest of both blocks comes from the base
    ],
)
@pytest.mark.parametrize("has_base", [True, False])
def test_only_new_blocks_that_are_not_one_whole_piece_are_read(
    tmp_path: Path, change: Change, reads: int, has_base: bool
) -> None:
    base = b"b" * DISK_BYTES
    volume = Volume.of([(True, 7 * BLOCK_BYTES, 2 * BLOCK_BYTES), change], base if has_base else bytes(DISK_BYTES))
    layer = view_of(tmp_path, volume, base if has_base else None)
    if not has_base:
        (tmp_path / "base.sums").write_bytes(bytes(8 * BLOCKS))
    sums_fd = os.open(tmp_path / "base.sums", os.O_RDWR)
    right = [right for right, _ in pairs_of(tmp_path)]
    with noted(READ, "volume") as read:
        base_update.prepare_checksums(layer, sums_fd, affected(volume, 2))
    assert len(read) == reads
    became = [crc32c(block) for block in blocks_of(volume.states[-1])]
    touched = {
        at // BLOCK_BYTES for start, length in affected(volume, 2) for at in range(start, start + length, BLOCK_BYTES)
    }
    assert pairs_of(tmp_path) == [
        (right[i], became[i] if i in touched else right[i]) for i in range(BLOCKS)
    ]  # nothing else was changed
    os.close(sums_fd)
    layer.close()


def test_the_checksum_of_a_partly_covered_piece_is_not_the_blocks(tmp_path: Path) -> None:
    made = [(True, 0, 4 * BLOCK_BYTES), (True, 10, 20), (False, 2 * BLOCK_BYTES - 1, 1), (False, 3 * BLOCK_BYTES, 1)]
    volume = Volume.of(made)
    layer = view_of(tmp_path, volume)
    (tmp_path / "base.sums").write_bytes(bytes(8 * BLOCKS))
    sums_fd = os.open(tmp_path / "base.sums", os.O_RDWR)
    base_update.prepare_checksums(layer, sums_fd, WHOLE)
    assert [becomes for _, becomes in pairs_of(tmp_path)] == [crc32c(block) for block in blocks_of(volume.states[-1])]
    os.close(sums_fd)
    layer.close()


def test_blocks_of_the_base_are_read_as_either_checksum_may_match(tmp_path: Path) -> None:
    base = start_bytes(1)
    layer = view_of(tmp_path, Volume(), base)
    want = [crc32c(block) for block in blocks_of(base)]
    (tmp_path / "base.sums").write_bytes(b"".join(struct.pack("<II", 1, sum_) for sum_ in want))
    fd, sums_fd = open_base(tmp_path)
    base_update.prepare_checksums(layer, sums_fd, WHOLE)
    assert [becomes for _, becomes in pairs_of(tmp_path)] == want
    layer.close()
    os.close(fd)
    os.close(sums_fd)


def test_a_corrupt_piece_of_one_block_is_found_when_it_is_copied(tmp_path: Path) -> None:
    base = start_bytes(1)
    volume = Volume.of([(True, BLOCK_BYTES, 4 * BLOCK_BYTES)], base)
    layer = view_of(tmp_path, volume, base)
    raw = bytearray(volume.raw)
    raw[64 + 2 * BLOCK_BYTES] ^= 4
    (tmp_path / "volume").write_bytes(raw)
    fd, sums_fd = open_base(tmp_path)
    ranges = affected(volume, 1)
    base_update.prepare_checksums(layer, sums_fd, ranges)
    assert layer.faults.seen() == (0, [])
    with pytest.raises(OSError, match="Input/output error") as caught:
        base_update.copy_blocks(layer, fd, ranges)
    assert caught.value.errno == errno.EIO
    assert layer.faults.seen()[1][-1].offset == 3 * BLOCK_BYTES
    assert base_update.bad_blocks(fd, sums_fd, WHOLE) == []
    layer.close()
    os.close(fd)
    os.close(sums_fd)


@pytest.mark.parametrize("left", [0, 4])
def test_a_truncated_checksum_table_is_an_error_and_gives_no_checksum(tmp_path: Path, left: int) -> None:
    volume = Volume.of([(True, 0, 3 * BLOCK_BYTES)])
    if left:
        del volume.sums[1:]
    layer = view_of(tmp_path, volume)
    os.truncate(tmp_path / "sums", left)
    (tmp_path / "base.sums").write_bytes(bytes(8 * BLOCKS))
    sums_fd = os.open(tmp_path / "base.sums", os.O_RDWR)
    with pytest.raises(OSError, match="Input/output error"):
        base_update.prepare_checksums(layer, sums_fd, affected(volume, 1))
    os.close(sums_fd)
    layer.close()


@pytest.mark.parametrize("seed", range(4))
def test_only_the_checksums_of_the_changed_blocks_change(tmp_path: Path, seed: int) -> None:
    print(f"replay with seed {seed}")
    rng = random.Random(seed)
    blocks = 1700
    with (tmp_path / "new").open("wb") as new:
        for block in rng.sample(range(blocks), 400):
            new.seek(block * BLOCK_BYTES)
            new.write(rng.randbytes(BLOCK_BYTES))
        new.truncate(blocks * BLOCK_BYTES)
    content = blocks_of((tmp_path / "new").read_bytes())
    before = [(rng.getrandbits(32), rng.getrandbits(32)) for _ in range(blocks - 30)]  # the checksum file may be short
    (tmp_path / "base.sums").write_bytes(b"".join(struct.pack("<II", *pair) for pair in before))
    before += [(0, 0)] * 30
    ranges, at = [], rng.randrange(300)
    while at < blocks:
        length = min(rng.choice((1, 2, 600)), blocks - at)
        ranges.append((at * BLOCK_BYTES, length * BLOCK_BYTES))
        at += length + rng.choice((1, 3, 400))
    touched = {at // BLOCK_BYTES for start, length in ranges for at in range(start, start + length, BLOCK_BYTES)}
    layer = RawLayer(tmp_path / "new")
    sums_fd = os.open(tmp_path / "base.sums", os.O_RDWR)
    base_update.prepare_checksums(layer, sums_fd, ranges)
    last = max(*touched, blocks - 31) + 1
    want = [(right, crc32c(content[i]) if i in touched else becomes) for i, (right, becomes) in enumerate(before)]
    assert pairs_of(tmp_path) == want[:last]
    base_update.commit_checksums(sums_fd, ranges)
    assert pairs_of(tmp_path) == [(pair[1] if i in touched else pair[0], pair[1]) for i, pair in enumerate(want)][:last]
    os.close(sums_fd)
    layer.close()


# --- copy -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part_blocks", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_a_copy_by_several_threads_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_blocks: int, seed: int
) -> None:
    print(f"replay with seed {seed}")
    monkeypatch.setattr(base_update, "PART_BYTES", part_blocks * BLOCK_BYTES)
    rng = random.Random(seed)
    made = [(rng.random() < 0.7, rng.randrange(DISK_BYTES - 9000), rng.randrange(1, 9000)) for _ in range(6)]
    base = start_bytes(seed)
    volume = Volume.of(made, base)
    layer = view_of(tmp_path, volume, base)
    fd, sums_fd = open_base(tmp_path)
    ranges = affected(volume, len(made))
    base_update.prepare_checksums(layer, sums_fd, ranges)
    base_update.copy_blocks(layer, fd, ranges)
    base_update.commit_checksums(sums_fd, ranges)
    assert (tmp_path / "base").read_bytes() == volume.states[-1]
    assert base_update.bad_blocks(fd, sums_fd, WHOLE) == []
    layer.close()
    os.close(fd)
    os.close(sums_fd)


def copy_of_all(folder: Path) -> None:
    base = start_bytes(2)
    layer = view_of(folder, Volume.of([(True, 0, DISK_BYTES)], base), base)
    fd, sums_fd = open_base(folder)
    try:
        base_update.copy_blocks(layer, fd, WHOLE)
    finally:
        layer.close()
        os.close(fd)
        os.close(sums_fd)


@pytest.mark.parametrize("part_blocks", [3, BLOCKS])
def test_an_error_of_any_thread_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_blocks: int) -> None:
    monkeypatch.setattr(base_update, "PART_BYTES", part_blocks * BLOCK_BYTES)
    with failing(WRITE, "base", errno.ENOSPC), pytest.raises(OSError, match="No space left"):
        copy_of_all(tmp_path)


def test_an_error_of_a_sync_during_the_copy_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_update, "PART_BYTES", 4 * BLOCK_BYTES)

    def fdatasync(_fd: int) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr("os.fdatasync", fdatasync)
    with pytest.raises(OSError, match="quota"):
        copy_of_all(tmp_path)


def copied_around(folder: Path, gap: int, content: bytes, error: int = 0) -> list[tuple[int, int]]:
    """Copy the blocks around a gap, and return (block, blocks) of each write; reads of the base fail with ``error``."""
    base = bytearray(b"b" * DISK_BYTES)
    base[BLOCK_BYTES : (1 + gap) * BLOCK_BYTES] = content
    volume = Volume.of([(True, 0, BLOCK_BYTES), (True, (1 + gap) * BLOCK_BYTES, BLOCK_BYTES)], bytes(base))
    layer = view_of(folder, volume, bytes(base))
    fd, sums_fd = open_base(folder)
    written: list[tuple[int, int]] = []

    def verdict(asked: int, path: str, offset: int, size: int) -> int:
        if path.endswith("base") and asked in (WRITE, PUNCH):
            written.append((offset // BLOCK_BYTES, size // BLOCK_BYTES))
        return -error if path.endswith("base") and asked == READ else 0

    with io_verdict(verdict):
        base_update.copy_blocks(layer, fd, affected(volume, 2))
    assert (folder / "base").read_bytes() == volume.states[-1]
    layer.close()
    os.close(fd)
    os.close(sums_fd)
    return written


@pytest.mark.real_disk
@pytest.mark.parametrize(("gap", "is_written"), [(1, True), (2, True), (3, False)])
def test_one_or_two_blocks_between_copied_ones_are_rewritten_unchanged(tmp_path: Path, gap: int, is_written: bool) -> None:
    between = [(1, gap)] if is_written else []
    assert copied_around(tmp_path, gap, b"x" * gap * BLOCK_BYTES) == [(0, 1), *between, (1 + gap, 1)]


@pytest.mark.parametrize("zero", [0, 1])
def test_zeros_between_written_blocks_stay_a_hole(tmp_path: Path, zero: int) -> None:
    content = bytearray(b"x" * 2 * BLOCK_BYTES)
    content[zero * BLOCK_BYTES : (zero + 1) * BLOCK_BYTES] = bytes(BLOCK_BYTES)
    assert copied_around(tmp_path, 2, bytes(content)) == [(0, 1), (3, 1)]


def test_blocks_between_are_not_rewritten_if_reading_them_would_wait(tmp_path: Path) -> None:
    assert copied_around(tmp_path, 1, b"x" * BLOCK_BYTES, error=errno.EAGAIN) == [(0, 1), (2, 1)]


def test_a_corrupt_block_between_written_blocks_is_still_found(tmp_path: Path) -> None:
    base = b"b" * DISK_BYTES
    volume = Volume.of([(True, 0, BLOCK_BYTES), (True, 2 * BLOCK_BYTES, BLOCK_BYTES)], base)
    layer = view_of(tmp_path, volume, base)
    fd, sums_fd = open_base(tmp_path)
    os.pwrite(fd, b"?", BLOCK_BYTES + 5)
    ranges = affected(volume, 2)
    base_update.prepare_checksums(layer, sums_fd, ranges)
    base_update.copy_blocks(layer, fd, ranges)
    base_update.commit_checksums(sums_fd, ranges)
    assert [block.offset for block in base_update.bad_blocks(fd, sums_fd, WHOLE)] == [BLOCK_BYTES]
    layer.close()
    os.close(fd)
    os.close(sums_fd)
