"""Updates the base of a managed disk: a raw file, and a file with two checksums a block (cext/src/layers/base_update.c).

Fault contract
--------------
The file ``sums`` has two little-endian u32 for each block of 4 KiB: the CRC32C of the block, and the CRC32C of the contents
that it is about to get.  A block counts as whole: past the end of the file it has zeros.  An update is three steps,
:func:`prepare_checksums`, :func:`copy_blocks` and :func:`commit_checksums`; the caller syncs the written file after each.
At any moment, and after a kill, a block matches one of its two checksums.  Only a block that :func:`copy_blocks` was writing
during the kill can match neither, until that step is repeated.

Ranges are (offset, length) of whole blocks, sorted.  Each step can end with an ``OSError``: the disk is full, or the layer
cannot read a block (``EIO``; :func:`prepare_checksums` does not read every block).  The whole step is then repeated.  If
several errors occur, syncs included, one of them is raised.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, pairwise
from threading import Lock

from siterig.blockfs.files import host_calls
from siterig.blockfs.files.os_errors import raised_by_c
from siterig.blockfs.layers.extent_map import pack_ranges
from siterig.blockfs.layers.layer import Layer
from siterig.cext._core import ffi, lib

BLOCK_BYTES: int = lib.SR_BLOCK_BYTES
PAIR_BYTES = 8
PART_BYTES = 32 << 20
THREADS = 3
"""Number of threads that copy parts of ``PART_BYTES``; one of them syncs from time to time instead."""

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class BadBlock:
    """A block that has neither of its checksums."""

    offset: int
    right: int
    becomes: int
    found: int


def prepare_checksums(layer: Layer, sums_fd: int, ranges: Ranges) -> None:
    """Step 1: set the second checksum of each block to that of the new contents, which ``layer`` reads.

    A block that is one piece in the layer is not read: its checksum is known, and the copy is checked against it.
    """
    _check(lib.sr_base_prepare_checksums(layer.c, sums_fd, *_packed(ranges)))


def copy_blocks(layer: Layer, fd: int, ranges: Ranges) -> None:
    """Step 2: write the new contents of each block; a block of zeros becomes a hole.

    Nothing is written past the layer's end.  No other program may write to the file: one or two blocks between two ranges
    are written again with their old contents.  Several threads copy large updates, and write them to the medium meanwhile.
    """
    parts = _in_parts(ranges)
    syncing = Lock()

    def copy_part(part: Ranges) -> None:
        _check(lib.sr_base_copy_blocks(layer.c, fd, *_packed(part)))
        if len(parts) > 1 and syncing.acquire(blocking=False):
            try:
                host_calls.fdatasync(fd)
            finally:
                syncing.release()

    if len(parts) < 2:
        for part in parts:
            copy_part(part)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(copy_part, parts):
            pass  # raises the error of a part; then no further part begins


def _in_parts(ranges: Ranges) -> list[Ranges]:
    """Split the ranges into parts with about equally many bytes."""
    cut = [
        (start, min(PART_BYTES, offset + length - start))
        for offset, length in ranges
        for start in range(offset, offset + length, PART_BYTES)
    ]
    sums = list(accumulate((length for _, length in cut), initial=0))
    firsts = [bisect_left(sums, at) for at in range(0, sums[-1], PART_BYTES)]
    return [cut[first:end] for first, end in pairwise([*firsts, len(cut)]) if first < end]


def commit_checksums(sums_fd: int, ranges: Ranges) -> None:
    """Step 3: set the first checksum of each block to the second."""
    _check(lib.sr_base_commit_checksums(sums_fd, *_packed(ranges)))


def bad_blocks(fd: int, sums_fd: int, ranges: Ranges, most: int = 64) -> list[BadBlock]:
    """Return the first blocks, at most ``most``, that match neither checksum; a compaction may run meanwhile."""
    bad = ffi.new("struct sr_bad_block[]", most)
    count = lib.sr_base_check(fd, sums_fd, *_packed(ranges), bad, most)
    _check(count)
    return [BadBlock(b.offset, b.right, b.becomes, b.found) for b in ffi.unpack(bad, count)]


def _packed(ranges: Ranges) -> tuple[object, int]:
    return ffi.from_buffer("uint64_t[]", pack_ranges(ranges)), len(ranges)


def _check(result: int) -> None:
    if result < 0:
        raise raised_by_c(result)
