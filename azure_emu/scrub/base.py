"""Scrubbing the base of a managed disk: its blocks, their checksums, and the ranges without data.

Fault contract: the scrub changes nothing, and a compaction may run at the same time.  A sector that the host's disk cannot
read (EIO) is damage like any other, and reading continues after it.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.disks.base_image import BASE, PAIR, SUMS, ZERO_SUM, RangeList, read_map, sums_bytes, unpack_map
from siterig.azure_emu.disks.damage_map import ClassifiedDamage
from siterig.azure_emu.disks.metadata import PROGRESS, Progress, read_meta
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.failpoint import Failpoint
from siterig.blockfs.files import host_calls
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.base_update import BLOCK_BYTES, bad_blocks
from siterig.cext.checksums import is_zero

_SUMS = Failpoint("scrub.base.sums")  # the map of the idle base is read, the checksums are not
_READ_BYTES = 4096 * BLOCK_BYTES


class _BadBlocks(NamedTuple):
    """Bytes ``start`` to ``stop``: adjacent blocks that cannot be read for one reason.

    ``unreadable`` names the file that the host's disk cannot read; it is empty if checksums do not match.  ``expected`` and
    ``actual`` are the checksums of the first block then.
    """

    start: int
    stop: int
    unreadable: str
    expected: int
    actual: int


class BaseFiles(NamedTuple):
    """The base of the managed disk in ``folder``, with its files open for reading."""

    folder: Path
    base_fd: int
    sums_fd: int


@contextmanager
def open_base(folder: Path) -> Iterator[BaseFiles]:
    """Open the files of the base until the end of the block."""
    with _open_for_reading(folder / BASE) as base, _open_for_reading(folder / SUMS) as sums:
        yield BaseFiles(folder, base.fileno(), sums.fileno())


def _open_for_reading(path: Path) -> BinaryIO:
    return os.fdopen(host_calls.open_path(path, os.O_RDONLY), "rb")


def bad_ranges(
    files: BaseFiles, offset: int, length: int, advance: Callable[[int], None]
) -> Iterator[tuple[int, int, str, Damage]]:
    """Check blocks of the base; yield start, stop, kind and damage (without positions) of adjacent bad blocks.

    A block is bad if neither of its checksums matches or it cannot be read.

    Args:
        files: the base.
        offset: first byte, a multiple of a block.
        length: bytes, a multiple of a block.
        advance: called with the number of bytes that were read.
    """
    last: _BadBlocks | None = None
    for bad in _bad_blocks(files, offset, length, advance):
        if last is not None and (last.stop, last.unreadable) == (bad.start, bad.unreadable):
            last = last._replace(stop=bad.stop)
            continue
        if last is not None:
            yield _damage_of(files.folder, last)
        last = bad
    if last is not None:
        yield _damage_of(files.folder, last)


def _bad_blocks(files: BaseFiles, offset: int, length: int, advance: Callable[[int], None]) -> Iterator[_BadBlocks]:
    for start in range(offset, offset + length, _READ_BYTES):
        some = min(_READ_BYTES, offset + length - start)
        yield from _bad_in(files, start, some)
        advance(some)


def _bad_in(files: BaseFiles, offset: int, length: int) -> Iterator[_BadBlocks]:
    try:
        found = bad_blocks(files.base_fd, files.sums_fd, [(offset, length)], most=length // BLOCK_BYTES)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
        if length == BLOCK_BYTES:
            yield _BadBlocks(offset, offset + length, _unreadable(files.base_fd, offset), 0, 0)
            return
        # Each read that fails takes seconds on a dying disk, so the range is divided by 16.
        some = max(length // BLOCK_BYTES // 16, 1) * BLOCK_BYTES
        for start in range(offset, offset + length, some):
            yield from _bad_in(files, start, min(some, offset + length - start))
        return
    for bad in found:
        yield _BadBlocks(bad.offset, bad.offset + BLOCK_BYTES, "", bad.right, bad.found)


def _unreadable(base_fd: int, offset: int) -> str:
    try:
        host_calls.pread(base_fd, BLOCK_BYTES, offset)
    except OSError:
        return BASE
    return SUMS


def _damage_of(folder: Path, bad: _BadBlocks) -> tuple[int, int, str, Damage]:
    count, file, offset = (bad.stop - bad.start) // BLOCK_BYTES, bad.unreadable or BASE, bad.start
    if bad.unreadable == SUMS:
        offset = bad.start // BLOCK_BYTES * PAIR.size
        what = f"cannot read the checksums of {count} blocks of the base: {os.strerror(errno.EIO)}"
    elif bad.unreadable:
        what = f"cannot read {count} blocks of {BLOCK_BYTES} bytes: {os.strerror(errno.EIO)}"
    elif count == 1:
        what = f"block of {BLOCK_BYTES} bytes has checksum {bad.actual:08x}; it must be {bad.expected:08x}"
    else:
        what = f"{count} blocks of {BLOCK_BYTES} bytes have wrong checksums; the first has {bad.actual:08x}; it must be "
        what += f"{bad.expected:08x}"
    damage = Damage(path=str(folder / file), offset=offset, what=what, first_position=0)
    return bad.start, bad.stop, f"block {file}", damage


# --- idle base ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _IdleBase:
    """The base while no compaction runs: anything read from it is right if ``progress`` is the same afterwards."""

    folder: Path
    progress: Progress
    ranges: RangeList

    @classmethod
    def of(cls, folder: Path) -> _IdleBase | None:
        if not (folder / PROGRESS).exists():
            return None
        progress = read_meta(folder / PROGRESS, Progress)
        if not progress.complete or progress.fold is not None:
            return None
        with suppress(RigError):  # the check of the blocks reports a bad map
            return cls(folder, progress, unpack_map(read_map(folder)))
        return None

    def is_unchanged(self) -> bool:
        return read_meta(self.folder / PROGRESS, Progress) == self.progress

    def divide(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Divide a range of bytes; yield start, stop, and whether the map has data there."""
        at = start
        for i in range(bisect_right(self.ranges, start, key=sum), len(self.ranges)):
            offset, length = self.ranges[i]
            if offset >= stop:
                break
            if offset > at:
                yield at, offset, False
            at = max(at, offset)
            yield at, min(offset + length, stop), True
            at = min(offset + length, stop)
        if at < stop:
            yield at, stop, False


def check_idle_base(folder: Path) -> Iterator[ClassifiedDamage]:
    """Check the parts of the base that no position needs.

    While no compaction runs, both checksums of a block are equal, and ranges that the map leaves out are zeros in both
    files.  If a compaction comes between, the range is checked again.
    """
    with open_base(folder) as files:
        idle: _IdleBase | None = None
        for start in range(0, os.fstat(files.base_fd).st_size, _READ_BYTES):
            while True:
                idle = idle or _IdleBase.of(folder)
                found = [] if idle is None else list(_check_range(idle, files, start))
                if idle is None or not found:
                    break
                if idle.is_unchanged():
                    yield from found
                    break
                idle = None


def _check_range(idle: _IdleBase, files: BaseFiles, start: int) -> Iterator[ClassifiedDamage]:
    size, found = os.fstat(files.base_fd).st_size, os.fstat(files.sums_fd).st_size
    if start == 0 and found != sums_bytes(size):
        what = f"has {found} bytes; a base of {size} bytes needs {sums_bytes(size)}"
        yield _harmless("length", idle.folder / SUMS, min(found, sums_bytes(size)), what)
    for first, stop, is_data in idle.divide(start, min(start + _READ_BYTES, size)):
        _SUMS.reach()
        yield from _check_sums(idle.folder / SUMS, files.sums_fd, first, stop, is_data=is_data)
        if not is_data:
            yield from _check_zeros(idle.folder / BASE, files.base_fd, first, stop)


def _check_sums(path: Path, fd: int, start: int, stop: int, *, is_data: bool) -> Iterator[ClassifiedDamage]:
    at = start // BLOCK_BYTES * PAIR.size
    try:
        raw = host_calls.pread(fd, sums_bytes(stop) - at, at)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
        if not is_data:  # otherwise the check of the blocks reports it
            yield _harmless("sums", path, at, f"cannot read checksums of blocks that hold no data: {reason(exc)}")
        return
    if not is_data and is_zero(raw):
        return
    for i, (current, following) in enumerate(PAIR.iter_unpack(raw[: len(raw) // PAIR.size * PAIR.size])):
        if current != following or not (is_data or current in (0, ZERO_SUM)):
            block = start // BLOCK_BYTES + i
            what = f"checksums {current:08x} and {following:08x} of block {block} differ"
            if current == following:
                what = f"checksum {current:08x} of block {block}, which holds no data"
            yield _harmless("sums", path, at + i * PAIR.size, what)


def _check_zeros(path: Path, fd: int, start: int, stop: int) -> Iterator[ClassifiedDamage]:
    """Yield the first byte that is not zero."""
    at = start
    while at < stop:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            data = host_calls.pread(fd, min(stop - at, 1 << 20), at) if at < stop else b""
        except OSError as exc:
            if exc.errno == errno.EIO:
                yield _harmless("zeros", path, at, f"cannot be read, though no data lies there: {reason(exc)}")
            elif exc.errno != errno.ENXIO:  # no more data
                raise
            return
        if not data:
            return
        if not is_zero(data):
            byte = at + len(data) - len(data.lstrip(b"\0"))
            yield _harmless("zeros", path, byte, "is not zero, though no data lies there")
            return
        at += len(data)


def _harmless(kind: str, path: Path, offset: int, what: str) -> ClassifiedDamage:
    return f"{kind} {path.name}", Damage(path=str(path), offset=offset, what=what, first_position=None)
