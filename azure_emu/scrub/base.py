"""Scrubbing the base of a managed disk: its blocks, their checksums, and what no data lies in.

Fault contract: it changes nothing, and a fold may run beside it.  What the host's disk cannot read (EIO) is damage like
any other, and what is behind it is read on.
"""

from __future__ import annotations

import errno
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from siterig.azure_emu.contracts.ports import Damage
from siterig.azure_emu.disks.base_image import BASE, PAIR, SUMS, Ranges, read_map, sums_bytes, unpack_map
from siterig.azure_emu.disks.damage_map import ClassifiedDamage
from siterig.azure_emu.disks.metadata import PROGRESS, Progress, read_meta
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.base_update import BLOCK_BYTES, bad_blocks
from siterig.cext.checksums import crc32c, is_zero

_STEP_BYTES = 4096 * BLOCK_BYTES
_ZERO_SUM = crc32c(bytes(BLOCK_BYTES))


class _Bad(NamedTuple):
    """Blocks that cannot be read, for one reason: ``unreadable`` names the file of which the host's disk says so."""

    start: int
    stop: int
    unreadable: str
    right: int
    found: int


class BaseFiles(NamedTuple):
    """The base of a store in ``folder``, its files open for reading."""

    folder: Path
    base_fd: int
    sums_fd: int


@contextmanager
def open_base(folder: Path) -> Iterator[BaseFiles]:
    """The files, until the end of the block."""
    with (folder / BASE).open("rb") as base, (folder / SUMS).open("rb") as sums:
        yield BaseFiles(folder, base.fileno(), sums.fileno())


def bad_ranges(
    files: BaseFiles, offset: int, length: int, advance: Callable[[int], None]
) -> Iterator[tuple[int, int, str, Damage]]:
    """Blocks of the base that have neither checksum, or cannot be read: start, stop, kind, damage without positions."""
    last: _Bad | None = None
    for bad in _bad_blocks(files, offset, length, advance):
        if last is not None and (last.stop, last.unreadable) == (bad.start, bad.unreadable):
            last = last._replace(stop=bad.stop)
            continue
        if last is not None:
            yield _told(files.folder, last)
        last = bad
    if last is not None:
        yield _told(files.folder, last)


def _bad_blocks(files: BaseFiles, offset: int, length: int, advance: Callable[[int], None]) -> Iterator[_Bad]:
    for start in range(offset, offset + length, _STEP_BYTES):
        step = min(_STEP_BYTES, offset + length - start)
        yield from _bad_in(files, start, step)
        advance(step)


def _bad_in(files: BaseFiles, offset: int, length: int) -> Iterator[_Bad]:
    try:
        found = bad_blocks(files.base_fd, files.sums_fd, [(offset, length)], most=length // BLOCK_BYTES)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
        if length == BLOCK_BYTES:
            yield _Bad(offset, offset + length, _unreadable(files.base_fd, offset), 0, 0)
            return
        step = max(length // BLOCK_BYTES // 16, 1) * BLOCK_BYTES  # few reads of what fails: a dying disk takes seconds
        for start in range(offset, offset + length, step):
            yield from _bad_in(files, start, min(step, offset + length - start))
        return
    for bad in found:
        yield _Bad(bad.offset, bad.offset + BLOCK_BYTES, "", bad.right, bad.found)


def _unreadable(base_fd: int, offset: int) -> str:
    try:
        os.pread(base_fd, BLOCK_BYTES, offset)
    except OSError:
        return BASE
    return SUMS


def _told(folder: Path, bad: _Bad) -> tuple[int, int, str, Damage]:
    count, file, offset = (bad.stop - bad.start) // BLOCK_BYTES, bad.unreadable or BASE, bad.start
    if bad.unreadable == SUMS:
        offset = bad.start // BLOCK_BYTES * PAIR.size
        what = f"cannot read the checksums of {count} blocks of the base: {os.strerror(errno.EIO)}"
    elif bad.unreadable:
        what = f"cannot read {count} blocks of {BLOCK_BYTES} bytes: {os.strerror(errno.EIO)}"
    elif count == 1:
        what = f"block of {BLOCK_BYTES} bytes has checksum {bad.found:08x}; it must be {bad.right:08x}"
    else:
        what = f"{count} blocks of {BLOCK_BYTES} bytes have wrong checksums; the first has {bad.found:08x}; it must be "
        what += f"{bad.right:08x}"
    damage = Damage(path=str(folder / file), offset=offset, what=what, first_position=0)
    return bad.start, bad.stop, f"block {file}", damage


# --- at rest ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Rest:
    """The base while nothing is being folded: what is seen of it is right if ``progress`` is the same afterwards."""

    folder: Path
    progress: Progress
    ranges: Ranges

    @classmethod
    def of(cls, folder: Path) -> _Rest | None:
        if not (folder / PROGRESS).exists():
            return None
        progress = read_meta(folder / PROGRESS, Progress)
        if not progress.complete or progress.fold is not None:
            return None
        with suppress(RigError):  # told of where the blocks are looked at
            return cls(folder, progress, unpack_map(read_map(folder)))
        return None

    def lasts(self) -> bool:
        return read_meta(self.folder / PROGRESS, Progress) == self.progress

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int, bool]]:
        """Start, stop, and whether data lies there."""
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


def at_rest(folder: Path) -> Iterator[ClassifiedDamage]:
    """While nothing is being folded, both sums of a block are one, and what the map leaves out is zeros in both files.

    No position needs any of it.  A fold that comes between is no damage: what was found before it is looked at again.
    """
    with open_base(folder) as files:
        rest: _Rest | None = None
        for start in range(0, os.fstat(files.base_fd).st_size, _STEP_BYTES):
            while True:
                rest = rest or _Rest.of(folder)
                found = [] if rest is None else list(_of_step(rest, files, start))
                if rest is None or not found:
                    break
                if rest.lasts():
                    yield from found
                    break
                rest = None


def _of_step(rest: _Rest, files: BaseFiles, start: int) -> Iterator[ClassifiedDamage]:
    size, found = os.fstat(files.base_fd).st_size, os.fstat(files.sums_fd).st_size
    if start == 0 and found != sums_bytes(size):
        what = f"has {found} bytes; a base of {size} bytes needs {sums_bytes(size)}"
        yield _harmless("length", rest.folder / SUMS, min(found, sums_bytes(size)), what)
    for first, stop, is_data in rest.parts(start, min(start + _STEP_BYTES, size)):
        yield from _sums_at_rest(rest.folder / SUMS, files.sums_fd, first, stop, is_data=is_data)
        if not is_data:
            yield from _not_zero(rest.folder / BASE, files.base_fd, first, stop)


def _sums_at_rest(path: Path, fd: int, start: int, stop: int, *, is_data: bool) -> Iterator[ClassifiedDamage]:
    at = start // BLOCK_BYTES * PAIR.size
    try:
        raw = os.pread(fd, sums_bytes(stop) - at, at)
    except OSError as exc:
        if exc.errno != errno.EIO:
            raise
        if not is_data:  # else its blocks cannot be read
            yield _harmless("sums", path, at, f"cannot read checksums of blocks that hold no data: {reason(exc)}")
        return
    if not is_data and is_zero(raw):
        return
    for i, (right, becomes) in enumerate(PAIR.iter_unpack(raw[: len(raw) // PAIR.size * PAIR.size])):
        if right != becomes or not (is_data or right in (0, _ZERO_SUM)):
            block = start // BLOCK_BYTES + i
            what = f"checksums {right:08x} and {becomes:08x} of block {block} differ"
            if right == becomes:
                what = f"checksum {right:08x} of block {block}, which holds no data"
            yield _harmless("sums", path, at + i * PAIR.size, what)


def _not_zero(path: Path, fd: int, start: int, stop: int) -> Iterator[ClassifiedDamage]:
    """The first byte that is not."""
    at = start
    while at < stop:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            data = os.pread(fd, min(stop - at, 1 << 20), at) if at < stop else b""
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
