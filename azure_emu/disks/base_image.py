"""The base of a managed disk: ``base.img``, the checksums of its blocks, which of it is data, and how it is changed.

``base.sums`` has two CRC32C for each block of 4 KiB, of what the block is and of what it becomes; ``base.map`` the ranges
that hold data, for the rest reads as zeros.  Layout: docs/reference/formats/managed-disk.md.

Fault contract
--------------
:func:`merge_blocks` makes blocks of the base what a view reads there, in steps that each are durable before the next: the
sums of what blocks become; what those become of which only a part changes (``intent``); the blocks; the sums of what they
are.  Killed anywhere, it is done again with the same view, to the same end; :func:`redo_intent` writes the noted blocks,
for such a block may be torn, and the view reads of it.  A block that the view cannot read, which may show only when it is
to be written, gets sums that fit nothing, so that it stays unreadable: damage is carried over, never made good by a new
checksum.  Until those are durable it is as it was, and nobody is sent to it: that is for ``progress`` to do, afterwards.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from operator import add, le, or_
from pathlib import Path

from siterig.azure_emu.disks.metadata import cannot_be_read, store_corrupt
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder, write_atomically
from siterig.blockfs.layers.base_update import BLOCK_BYTES, commit_checksums, copy_blocks, prepare_checksums
from siterig.blockfs.layers.extent_map import pack_ranges
from siterig.blockfs.layers.layer import Layer, merge_ranges
from siterig.blockfs.transfer.part_name import PartName
from siterig.cext.checksums import crc32c, is_zero

BASE = "base.img"
SUMS = "base.sums"
MAP = "base.map"
INTENT = "intent"
PAIR = struct.Struct("<II")
BAD_LOOKS, BAD_LOOK_S = 2, 1.0
"""How often, and how far apart, a block is read again before it is given up."""
_PROBE_BLOCKS = 1024
_PROBE_BYTES = _PROBE_BLOCKS * BLOCK_BYTES
_ZERO_SUM = crc32c(bytes(BLOCK_BYTES))

_MAP_MAGIC = b"SRIGMAP\0"
_INTENT_MAGIC = b"SRIGINT\0"
_HEADER = struct.Struct("<8sIIQQQQ")  # magic, version, crc of the rest, count, three numbers of whose it is
_VERSION = 2
_ROW = struct.Struct("<QQ")
_END_MAX = (1 << 63) - 1

Step = Callable[[str], None]
Ranges = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Blocks:
    """What changes (offset, length, multiples of a block), and the blocks of which only a part does."""

    touched: Ranges
    edges: list[int]


@dataclass(frozen=True, slots=True)
class Owner:
    """On whose behalf the base is changed: a fold up to a frame, or part ``part`` of the seed of a generation."""

    frame: int = 0
    generation: int = 0
    part: int = 0


def create_base(folder: Path, size_bytes: int) -> None:
    """An empty base, durable but for its names."""
    for name, size in ((BASE, size_bytes), (SUMS, sums_bytes(size_bytes))):
        fd = safe_files.create_file(folder / name)
        try:
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)
    write_map(folder, [])


def clear_base(folder: Path, size_bytes: int) -> None:
    """Make everything zeros, whatever was there; durable when it returns."""
    write_map(folder, [])
    forget_intent(folder)
    for name, size in ((BASE, size_bytes), (SUMS, sums_bytes(size_bytes))):
        fd = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
            os.fsync(fd)
        finally:
            os.close(fd)


def grow_base(folder: Path, size_bytes: int) -> None:
    """Make the base as large as that, if it is not; durable when it returns."""
    for name, size in ((BASE, size_bytes), (SUMS, sums_bytes(size_bytes))):
        fd = os.open(folder / name, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
                os.fsync(fd)
        finally:
            os.close(fd)


def check_size(folder: Path, size_bytes: int, part: PartName) -> None:
    """``PartRefused`` if the host's file system does not take a base that large, as it is to become by ``part``."""
    with tempfile.TemporaryFile(dir=folder, prefix=".size-") as probe:
        try:
            os.ftruncate(probe.fileno(), size_bytes)
        except OSError as exc:
            if exc.errno not in (errno.EFBIG, errno.EINVAL):
                raise
            raise RigError(
                Code.PartRefused,
                f"part {part.blob()} grows the disk to {size_bytes} bytes; "
                f"the file system at {folder} does not support files that large",
            ) from exc


def sums_bytes(size_bytes: int) -> int:
    """Length of ``base.sums`` for a base of that size."""
    return -(-size_bytes // BLOCK_BYTES) * PAIR.size


# --- base.map ---------------------------------------------------------------------------------------------------


def write_map(folder: Path, ranges: Ranges) -> None:
    """Replace ``base.map`` durably."""
    rows = pack_ranges(ranges)
    head = _HEADER.pack(_MAP_MAGIC, _VERSION, crc32c(rows, len(ranges)), len(ranges), 0, 0, 0)
    write_atomically(folder / MAP, head + rows)


def read_map(folder: Path) -> bytes:
    """Ranges of the base that hold data, packed as (offset, length); ``StoreCorrupt``."""
    path = folder / MAP
    try:
        raw = path.read_bytes()
    except OSError as exc:
        raise cannot_be_read(path, exc) from exc
    if len(raw) < _HEADER.size:
        raise store_corrupt(path, f"has {len(raw)} bytes; its header has {_HEADER.size}")
    magic, version, crc, count, *reserved = _HEADER.unpack_from(raw)
    rows = raw[_HEADER.size :]
    if (magic, version, any(reserved)) != (_MAP_MAGIC, _VERSION, False):
        raise store_corrupt(path, f"magic is {magic!r}, version {version}; allowed: {_MAP_MAGIC!r}, {_VERSION}, then zeros")
    if len(rows) != count * _ROW.size:
        raise store_corrupt(path, f"has {len(raw)} bytes; {count} ranges need {_HEADER.size + count * _ROW.size}")
    if crc32c(rows, count) != crc:
        raise store_corrupt(path, "checksum does not match")
    if not _can_be(numbers := memoryview(rows).cast("Q").tolist()):
        raise store_corrupt(path, _bad_range(numbers))
    return rows


def _can_be(numbers: list[int]) -> bool:
    """Of offsets and lengths in turn.  A view waits for this, and there may be very many."""
    offsets, lengths = numbers[::2], numbers[1::2]
    ends = list(map(add, offsets, lengths))
    in_order = all(map(le, ends, offsets[1:])) and all(lengths)
    return in_order and reduce(or_, numbers, 0) % BLOCK_BYTES == 0 and (not ends or ends[-1] <= _END_MAX)


def _bad_range(numbers: list[int]) -> str:
    """Describe the first range of a flat [offset, length, ...] list that is invalid."""
    end_before = 0
    for row, (offset, length) in enumerate(zip(numbers[::2], numbers[1::2], strict=True)):
        if offset % BLOCK_BYTES or length % BLOCK_BYTES or not length:
            return f"range {row} is invalid: {length} bytes at {offset}; allowed: one or more blocks of {BLOCK_BYTES} bytes"
        if offset < end_before:
            return f"range {row} is invalid: {length} bytes at {offset}; allowed: from byte {end_before}"
        end_before = offset + length
    return f"range {len(numbers) // 2 - 1} is invalid: it ends at byte {end_before}; allowed: up to {_END_MAX}"


def rebuild_map(folder: Path) -> None:
    """Make ``base.map`` anew: data is where a block is not zeros, or has sums that are not of zeros.

    What is neither is left out, so that it reads as zeros; what only one of them says cannot be read.
    """
    ranges: Ranges = []
    with _opened(folder) as (base_fd, sums_fd):
        blocks = sums_bytes(os.fstat(base_fd).st_size) // PAIR.size
        for first in range(0, blocks, _PROBE_BLOCKS):
            count = min(_PROBE_BLOCKS, blocks - first)
            sums = os.pread(sums_fd, count * PAIR.size, first * PAIR.size).ljust(count * PAIR.size, b"\0")
            data = os.pread(base_fd, count * BLOCK_BYTES, first * BLOCK_BYTES)
            if is_zero(sums) and is_zero(data):
                continue
            for i, (right, becomes) in enumerate(PAIR.iter_unpack(sums)):
                block = data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
                if not {right, becomes} <= {0, _ZERO_SUM} or not is_zero(block):
                    ranges.append(((first + i) * BLOCK_BYTES, BLOCK_BYTES))
    write_map(folder, merge_ranges(ranges))


def unpack_map(rows: bytes) -> Ranges:
    """As pairs."""
    return list(_ROW.iter_unpack(rows))


# --- changing ---------------------------------------------------------------------------------------------------


def merge_blocks(folder: Path, view: Layer, blocks: Blocks, owner: Owner, step: Step) -> None:
    """Make blocks of the base what ``view`` reads there.

    The map of the base is left as it is, and so is the intent: the
    caller calls :func:`forget_intent` when nothing needs to be done again any more.
    """
    with _opened(folder) as (base_fd, sums_fd):
        left, bad = _as_far_as_readable(lambda ranges: prepare_checksums(view, sums_fd, ranges), view, blocks)
        os.fdatasync(sums_fd)
        step("base.announced")
        write_atomically(folder / INTENT, _encode_intent({offset: _block(view, offset) for offset in left.edges}, owner))
        step("base.noted")
        left, worse = _as_far_as_readable(lambda ranges: copy_blocks(view, base_fd, ranges), view, left)
        step("base.copied")
        os.fdatasync(base_fd)
        step("base.synced")
        commit_checksums(sums_fd, left.touched)
        for offset in bad | worse:
            _poison_block(base_fd, sums_fd, offset)
        os.fdatasync(sums_fd)
        step("base.concluded")


def _as_far_as_readable(act: Callable[[Ranges], None], view: Layer, blocks: Blocks) -> tuple[Blocks, set[int]]:
    """Do it to all blocks; or, if ``view`` cannot read some, anew to the others.  Those it was done to, and the bad ones."""
    try:
        act(blocks.touched)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
        bad = _unreadable(view, blocks.touched)
        blocks = Blocks(_without(blocks.touched, bad), [offset for offset in blocks.edges if offset not in bad])
        act(blocks.touched)
        return blocks, bad
    return blocks, set()


def redo_intent(folder: Path, owner: Owner) -> None:
    """Before :func:`merge_blocks` is done again: blocks that a kill may have torn get what they were to become."""
    try:
        raw = (folder / INTENT).read_bytes()
    except FileNotFoundError:
        return
    blocks = _decode_intent(folder / INTENT, raw, owner)
    if not blocks:
        return
    with _opened(folder) as (base_fd, sums_fd):
        end = os.fstat(base_fd).st_size
        if max(blocks) >= end:
            raise store_corrupt(folder / INTENT, f"has the block at byte {max(blocks)}; the base has {end} bytes")
        for offset, data in blocks.items():
            at = offset // BLOCK_BYTES * PAIR.size
            right, _ = PAIR.unpack(os.pread(sums_fd, PAIR.size, at).ljust(PAIR.size, b"\0"))
            os.pwrite(sums_fd, PAIR.pack(right, crc32c(data)), at)
        os.fsync(sums_fd)
        for offset, data in blocks.items():
            os.pwrite(base_fd, data[: end - offset], offset)
        os.fsync(base_fd)


def check_intent(folder: Path) -> None:
    """``StoreCorrupt`` if what was noted is not as it was written."""
    with suppress(FileNotFoundError):
        _decode_intent(folder / INTENT, (folder / INTENT).read_bytes(), Owner())


def forget_intent(folder: Path) -> None:
    """What was noted is done."""
    with suppress(FileNotFoundError):
        (folder / INTENT).unlink()
        sync_folder(folder)


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[int, int]]:
    base_fd = os.open(folder / BASE, os.O_RDWR | os.O_CLOEXEC)
    try:
        sums_fd = os.open(folder / SUMS, os.O_RDWR | os.O_CLOEXEC)
        try:
            yield base_fd, sums_fd
        finally:
            os.close(sums_fd)
    finally:
        os.close(base_fd)


def _block(view: Layer, offset: int) -> bytes:
    return view.pread(offset, min(BLOCK_BYTES, view.size_bytes - offset)).ljust(BLOCK_BYTES, b"\0")


def _unreadable(view: Layer, touched: Ranges) -> set[int]:
    """Blocks that cannot be read, however often: what holds them is deleted after the fold."""
    bad = _unreadable_now(view, touched)
    for _ in range(BAD_LOOKS):
        if bad:
            time.sleep(BAD_LOOK_S)
            bad &= _unreadable_now(view, [(block, BLOCK_BYTES) for block in sorted(bad)])
    return bad


def _unreadable_now(view: Layer, touched: Ranges) -> set[int]:
    bad: set[int] = set()
    for offset, length in touched:
        for start in range(offset, offset + length, _PROBE_BYTES):
            stop = min(start + _PROBE_BYTES, offset + length, view.size_bytes)
            try:
                view.pread(start, stop - start)
            except OSError:
                for block in range(start, stop, BLOCK_BYTES):
                    try:
                        _block(view, block)
                    except OSError as exc:
                        if exc.errno != errno.EIO:
                            raise
                        bad.add(block)
    return bad


def _without(touched: Ranges, bad: set[int]) -> Ranges:
    left: Ranges = []
    for offset, length in touched:
        start = offset
        for block in sorted(block for block in bad if offset <= block < offset + length):
            if block > start:
                left.append((start, block - start))
            start = block + BLOCK_BYTES
        if start < offset + length:
            left.append((start, offset + length - start))
    return left


def _poison_block(base_fd: int, sums_fd: int, offset: int) -> None:
    """Give a block sums that it does not have."""
    wrong = crc32c(os.pread(base_fd, BLOCK_BYTES, offset).ljust(BLOCK_BYTES, b"\0")) ^ 0xFFFFFFFF
    os.pwrite(sums_fd, PAIR.pack(wrong, wrong), offset // BLOCK_BYTES * PAIR.size)


def _encode_intent(blocks: dict[int, bytes], owner: Owner) -> bytes:
    rows = b"".join(offset.to_bytes(8, "little") + data for offset, data in blocks.items())
    mine = struct.pack("<QQQ", owner.frame, owner.generation, owner.part)
    head = _HEADER.pack(
        _INTENT_MAGIC, _VERSION, crc32c(rows, crc32c(mine)), len(blocks), owner.frame, owner.generation, owner.part
    )
    return head + rows


def _decode_intent(path: Path, raw: bytes, owner: Owner) -> dict[int, bytes]:
    """What is noted; nothing if it is of another owner: that one came to its end."""
    if len(raw) < _HEADER.size:
        raise store_corrupt(path, f"has {len(raw)} bytes; its header has {_HEADER.size}")
    magic, version, crc, count, *whose = _HEADER.unpack_from(raw)
    rows = raw[_HEADER.size :]
    row_bytes = 8 + BLOCK_BYTES
    sound = (magic, version, len(rows)) == (_INTENT_MAGIC, _VERSION, count * row_bytes)
    if not sound or crc32c(rows, crc32c(struct.pack("<QQQ", *whose))) != crc:
        raise store_corrupt(path, "checksum does not match")
    blocks = {
        int.from_bytes(rows[at : at + 8], "little"): rows[at + 8 : at + row_bytes] for at in range(0, len(rows), row_bytes)
    }
    if len(blocks) < count or any(offset % BLOCK_BYTES for offset in blocks):
        raise store_corrupt(path, "has invalid blocks: two have the same offset, or an offset is not a multiple of a block")
    return blocks if Owner(*whose) == owner else {}
