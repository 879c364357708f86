"""The base of a managed disk: ``base.img``, the checksums of its blocks, the map of its data, and how it is changed.

``base.sums`` holds two CRC32C for each block of 4 KiB: one of the current content, one of the content that the block is
about to get.  ``base.map`` lists the ranges that hold data; everything else reads as zeros.  Layout:
docs/reference/formats/managed-disk.md.

Fault contract
--------------
:func:`merge_blocks` makes blocks of the base equal to the content of a view, in steps; each step is durable before the next
begins.  The steps are: the new checksums; the new content of blocks that change in part (``intent``); the blocks; the final
checksums.  After a kill at any point, the same call with the same view leads to the same result.  :func:`redo_intent` must
run before that call: it writes the blocks of ``intent``, because a kill may have torn them and the view reads them.

A block that the view cannot read gets checksums that match no content, so that it stays unreadable.  This may show only
while the block is written.  Damage is carried over; a new checksum never hides it.  Until those checksums are durable, the
block is as it was, and no reader uses it: the caller replaces ``progress`` afterwards.
"""

from __future__ import annotations

import errno
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import reduce
from operator import add, le, or_
from pathlib import Path

from siterig.azure_emu.disks.metadata import cannot_be_read, store_corrupt
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.failpoint import Failpoint
from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.files.durable_io import sync_folder, write_atomically
from siterig.blockfs.files.small_file import FileTooLongError, read_counted_file
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
"""The two checksums of a block in ``base.sums``: of its current content, and of its next one."""
REREADS, REREAD_DELAY_S = 2, 1.0
"""How often, and after how many seconds each time, an unreadable block is read again before it counts as bad."""
_PROBE_BLOCKS = 1024
_PROBE_BYTES = _PROBE_BLOCKS * BLOCK_BYTES
ZERO_SUM = crc32c(bytes(BLOCK_BYTES))
"""The checksum of a block of zeros."""

_MAP_MAGIC = b"SRIGMAP\0"
_INTENT_MAGIC = b"SRIGINT\0"
_HEADER = struct.Struct("<8sIIQQQQ")  # magic, version, CRC of the rest, count, three numbers of the owner
_VERSION = 2
_ROW = struct.Struct("<QQ")
_END_MAX = (1 << 63) - 1

RangeList = list[tuple[int, int]]
"""Ranges (offset, length) in bytes, in ascending order."""

_ANNOUNCED = Failpoint("store.base.announced")
_NOTED = Failpoint("store.base.noted")
_COPIED = Failpoint("store.base.copied")
_SYNCED = Failpoint("store.base.synced")
_CONCLUDED = Failpoint("store.base.concluded")


@dataclass(frozen=True, slots=True)
class MergeBlocks:
    """The blocks that a merge changes.

    ``touched``: ranges (offset, length), multiples of a block.  ``edges``: offsets of the blocks that change only in part.
    """

    touched: RangeList
    edges: list[int]


@dataclass(frozen=True, slots=True)
class IntentOwner:
    """The operation that changes the base.

    It is the compaction up to frame ``frame``, or part ``part`` of the initial replication of ``generation``.
    """

    frame: int = 0
    generation: int = 0
    part: int = 0


def create_base(folder: Path, size_bytes: int) -> None:
    """Create an empty base; its content is durable, the names of its files are not yet."""
    for name, size in ((BASE, size_bytes), (SUMS, sums_bytes(size_bytes))):
        fd = safe_files.create_file(folder / name)
        try:
            os.ftruncate(fd, size)
            host_calls.fsync(fd)
        finally:
            os.close(fd)
    write_map(folder, [])


def clear_base(folder: Path, size_bytes: int) -> None:
    """Fill the base with zeros and set its size, durably."""
    write_map(folder, [])
    forget_intent(folder)
    for name, size in ((BASE, size_bytes), (SUMS, sums_bytes(size_bytes))):
        fd = host_calls.open_path(folder / name, os.O_RDWR)
        try:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, size)
            host_calls.fsync(fd)
        finally:
            os.close(fd)


def grow_base(folder: Path, size_bytes: int) -> None:
    """Extend the base to this size, durably; a base that is large enough stays as it is."""
    for name, size in ((BASE, size_bytes), (SUMS, sums_bytes(size_bytes))):
        fd = host_calls.open_path(folder / name, os.O_RDWR)
        try:
            if os.fstat(fd).st_size < size:
                os.ftruncate(fd, size)
                host_calls.fsync(fd)
        finally:
            os.close(fd)


def check_size(folder: Path, size_bytes: int, part: PartName) -> None:
    """Check that the host's file system supports a base of this size.

    Raises:
        RigError: ``PartRefused``, which names ``part``, the part that grows the disk.
    """
    with tempfile.TemporaryFile(dir=folder, prefix=".size-") as probe:
        try:
            os.ftruncate(probe.fileno(), size_bytes)
        except OSError as exc:
            if exc.errno not in (errno.EFBIG, errno.EINVAL):
                raise
            raise RigError(
                Code.PartRefused,
                f"part {part.blob()} grows the disk to {size_bytes} bytes; the file system at {folder} does not support "
                "files that large",
            ) from exc


def sums_bytes(size_bytes: int) -> int:
    """Return the length of ``base.sums`` for a base of this size."""
    return -(-size_bytes // BLOCK_BYTES) * PAIR.size


# --- base.map ---------------------------------------------------------------------------------------------------


def write_map(folder: Path, ranges: RangeList) -> None:
    """Replace ``base.map`` durably."""
    rows = pack_ranges(ranges)
    head = _HEADER.pack(_MAP_MAGIC, _VERSION, crc32c(rows, len(ranges)), len(ranges), 0, 0, 0)
    write_atomically(folder / MAP, head + rows)


def read_map(folder: Path) -> bytes:
    """Return the ranges of the base that hold data, packed as (offset, length).

    Raises:
        RigError: ``StoreCorrupt``; ``StoreIo`` (recoverable).
    """
    path = folder / MAP
    try:
        raw = read_counted_file(path, _HEADER.size, lambda head: _size_by_header(head, _ROW.size))
    except OSError as exc:
        raise cannot_be_read(path, exc) from exc
    except FileTooLongError as exc:
        raise store_corrupt(path, str(exc)) from exc
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
    if not _are_valid(numbers := memoryview(rows).cast("Q").tolist()):
        raise store_corrupt(path, _bad_range(numbers))
    return rows


def _are_valid(numbers: list[int]) -> bool:
    """Validate a flat list offset, length, offset, ...  It is on the path of opening a view, hence without a loop."""
    offsets, lengths = numbers[::2], numbers[1::2]
    ends = list(map(add, offsets, lengths))
    ascending = all(map(le, ends, offsets[1:])) and all(lengths)
    return ascending and reduce(or_, numbers, 0) % BLOCK_BYTES == 0 and (not ends or ends[-1] <= _END_MAX)


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
    """Rebuild ``base.map`` from the blocks and their checksums.

    A block is in the map if its content is not zeros or a checksum is not that of zeros.  If only one of the two holds, the
    block is unreadable.  Any other block is left out and reads as zeros.
    """
    ranges: RangeList = []
    with opened_base(folder) as (base_fd, sums_fd):
        blocks = sums_bytes(os.fstat(base_fd).st_size) // PAIR.size
        for first in range(0, blocks, _PROBE_BLOCKS):
            count = min(_PROBE_BLOCKS, blocks - first)
            sums = host_calls.pread(sums_fd, count * PAIR.size, first * PAIR.size).ljust(count * PAIR.size, b"\0")
            data = host_calls.pread(base_fd, count * BLOCK_BYTES, first * BLOCK_BYTES)
            if is_zero(sums) and is_zero(data):
                continue
            for i, (current, following) in enumerate(PAIR.iter_unpack(sums)):
                block = data[i * BLOCK_BYTES : (i + 1) * BLOCK_BYTES]
                if not {current, following} <= {0, ZERO_SUM} or not is_zero(block):
                    ranges.append(((first + i) * BLOCK_BYTES, BLOCK_BYTES))
    write_map(folder, merge_ranges(ranges))


def unpack_map(rows: bytes) -> RangeList:
    """Return the packed ranges as pairs (offset, length)."""
    return list(_ROW.iter_unpack(rows))


# --- changing ---------------------------------------------------------------------------------------------------


def merge_blocks(folder: Path, view: Layer, blocks: MergeBlocks, owner: IntentOwner, clock: Clock) -> None:
    """Make blocks of the base equal to the content of ``view``.

    The map of the base and the intent stay as they are.  The caller calls :func:`forget_intent` when the merge cannot have
    to be repeated any more.

    Args:
        folder: the managed disk's folder.
        view: the new content.
        blocks: the blocks that change.
        owner: the operation that the intent is written for.
        clock: delays the next attempt to read a block that cannot be read.
    """
    with opened_base(folder) as (base_fd, sums_fd):
        readable, bad = _without_unreadable(lambda ranges: prepare_checksums(view, sums_fd, ranges), view, blocks, clock)
        host_calls.fdatasync(sums_fd)
        _ANNOUNCED.reach()
        write_atomically(folder / INTENT, _encode_intent({offset: _block(view, offset) for offset in readable.edges}, owner))
        _NOTED.reach()
        readable, also_bad = _without_unreadable(lambda ranges: copy_blocks(view, base_fd, ranges), view, readable, clock)
        _COPIED.reach()
        host_calls.fdatasync(base_fd)
        _SYNCED.reach()
        commit_checksums(sums_fd, readable.touched)
        for offset in bad | also_bad:
            poison_block(base_fd, sums_fd, offset)
        host_calls.fdatasync(sums_fd)
        _CONCLUDED.reach()


def _without_unreadable(
    act: Callable[[RangeList], None], view: Layer, blocks: MergeBlocks, clock: Clock
) -> tuple[MergeBlocks, set[int]]:
    """Call ``act`` on all blocks, and again without the unreadable ones if ``view`` cannot read some.

    Returns:
        The blocks that ``act`` succeeded for, and the offsets of the unreadable blocks.
    """
    try:
        act(blocks.touched)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
        bad = unreadable_blocks(view, blocks.touched, clock)
        blocks = MergeBlocks(_subtract(blocks.touched, bad), [offset for offset in blocks.edges if offset not in bad])
        act(blocks.touched)
        return blocks, bad
    return blocks, set()


def redo_intent(folder: Path, owner: IntentOwner) -> None:
    """Write the blocks of the intent, which a kill may have torn; call it before :func:`merge_blocks` is repeated.

    An intent of another owner is ignored: that operation has ended.
    """
    try:
        raw = _read_intent(folder / INTENT)
    except FileNotFoundError:
        return
    blocks = _decode_intent(folder / INTENT, raw, owner)
    if not blocks:
        return
    with opened_base(folder) as (base_fd, sums_fd):
        end = os.fstat(base_fd).st_size
        if max(blocks) >= end:
            raise store_corrupt(folder / INTENT, f"has the block at byte {max(blocks)}; the base has {end} bytes")
        for offset, data in blocks.items():
            at = offset // BLOCK_BYTES * PAIR.size
            current, _ = PAIR.unpack(host_calls.pread(sums_fd, PAIR.size, at).ljust(PAIR.size, b"\0"))
            host_calls.pwrite(sums_fd, PAIR.pack(current, crc32c(data)), at)
        host_calls.fsync(sums_fd)
        for offset, data in blocks.items():
            host_calls.pwrite(base_fd, data[: end - offset], offset)
        host_calls.fsync(base_fd)


def check_intent(folder: Path) -> None:
    """Check the intent, if there is one.

    Raises:
        RigError: ``StoreCorrupt``.
    """
    with suppress(FileNotFoundError):
        _decode_intent(folder / INTENT, _read_intent(folder / INTENT), IntentOwner())


def forget_intent(folder: Path) -> None:
    """Delete the intent; its operation is complete."""
    with suppress(FileNotFoundError):
        (folder / INTENT).unlink()
        sync_folder(folder)


@contextmanager
def opened_base(folder: Path) -> Iterator[tuple[int, int]]:
    """Open the base and its checksums during the block."""
    base_fd = host_calls.open_path(folder / BASE, os.O_RDWR)
    try:
        sums_fd = host_calls.open_path(folder / SUMS, os.O_RDWR)
        try:
            yield base_fd, sums_fd
        finally:
            os.close(sums_fd)
    finally:
        os.close(base_fd)


def _block(view: Layer, offset: int) -> bytes:
    return view.pread(offset, min(BLOCK_BYTES, view.size_bytes - offset)).ljust(BLOCK_BYTES, b"\0")


def unreadable_blocks(view: Layer, touched: RangeList, clock: Clock) -> set[int]:
    """Return the blocks that cannot be read repeatedly; their source is deleted after the compaction."""
    bad = _unreadable_now(view, touched)
    for _ in range(REREADS):
        if bad:
            clock.real.sleep_thread(REREAD_DELAY_S)
            bad &= _unreadable_now(view, [(block, BLOCK_BYTES) for block in sorted(bad)])
    return bad


def _unreadable_now(view: Layer, touched: RangeList) -> set[int]:
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


def _subtract(touched: RangeList, bad: set[int]) -> RangeList:
    """Return the ranges without the bad blocks."""
    left: RangeList = []
    for offset, length in touched:
        start = offset
        for block in sorted(block for block in bad if offset <= block < offset + length):
            if block > start:
                left.append((start, block - start))
            start = block + BLOCK_BYTES
        if start < offset + length:
            left.append((start, offset + length - start))
    return left


def poison_block(base_fd: int, sums_fd: int, offset: int) -> None:
    """Give a block checksums that do not match its content."""
    wrong = crc32c(host_calls.pread(base_fd, BLOCK_BYTES, offset).ljust(BLOCK_BYTES, b"\0")) ^ 0xFFFFFFFF
    host_calls.pwrite(sums_fd, PAIR.pack(wrong, wrong), offset // BLOCK_BYTES * PAIR.size)


def _encode_intent(blocks: dict[int, bytes], owner: IntentOwner) -> bytes:
    rows = b"".join(offset.to_bytes(8, "little") + data for offset, data in blocks.items())
    name = struct.pack("<QQQ", owner.frame, owner.generation, owner.part)
    head = _HEADER.pack(
        _INTENT_MAGIC, _VERSION, crc32c(rows, crc32c(name)), len(blocks), owner.frame, owner.generation, owner.part
    )
    return head + rows


def _size_by_header(head: bytes, row_bytes: int) -> int:
    return _HEADER.size + int(_HEADER.unpack(head)[3]) * row_bytes


def _read_intent(path: Path) -> bytes:
    try:
        return read_counted_file(path, _HEADER.size, lambda head: _size_by_header(head, 8 + BLOCK_BYTES))
    except FileTooLongError as exc:
        raise store_corrupt(path, str(exc)) from exc


def _decode_intent(path: Path, raw: bytes, owner: IntentOwner) -> dict[int, bytes]:
    """Return the blocks of the intent by offset; an empty dict if it has another owner, whose operation has ended."""
    if len(raw) < _HEADER.size:
        raise store_corrupt(path, f"has {len(raw)} bytes; its header has {_HEADER.size}")
    magic, version, crc, count, *name = _HEADER.unpack_from(raw)
    rows = raw[_HEADER.size :]
    row_bytes = 8 + BLOCK_BYTES
    sound = (magic, version, len(rows)) == (_INTENT_MAGIC, _VERSION, count * row_bytes)
    if not sound or crc32c(rows, crc32c(struct.pack("<QQQ", *name))) != crc:
        raise store_corrupt(path, "checksum does not match")
    blocks = {
        int.from_bytes(rows[at : at + 8], "little"): rows[at + 8 : at + row_bytes] for at in range(0, len(rows), row_bytes)
    }
    if len(blocks) < count or any(offset % BLOCK_BYTES for offset in blocks):
        raise store_corrupt(path, "has invalid blocks: two have the same offset, or an offset is not a multiple of a block")
    return blocks if IntentOwner(*name) == owner else {}
