"""Layers of a disk: a raw file, extents of other files over it, a writable top over either.

Fault contract
--------------
``RawLayer`` and ``ExtentLayer`` have no state but the bytes of their files.  ``TopLayer`` has a bitmap of the
blocks that its file holds; data reaches the file before its bit is set, so a kill between the two leaves the
block as it was before, and the disk's change log (which precedes both) writes it again.  After a power loss the two
may disagree: the change log's boot id tells, and the disk is not taken for clean.
"""

from __future__ import annotations

import errno
import mmap
import os
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from blockfs.errors import RigError
from cext.kernel import punch_hole

BLOCK_BYTES = 4096
ZEROS = -1
"""As a source of an extent: it reads as zeros."""


class Layer(Protocol):
    """Something that reads as a disk."""

    @property
    def size_bytes(self) -> int:
        """The disk's size."""
        ...

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes; the caller keeps within the disk."""
        ...

    def data_ranges(self) -> list[tuple[int, int]]:
        """(offset, length) of all that may be other than zero, in order, without overlap."""
        ...

    def close(self) -> None:
        """Let go of the files."""
        ...


class WritableLayer(Layer, Protocol):
    """A layer that takes writes; not safe for use by several threads at once, but for :meth:`sync`."""

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, giving space back where possible."""
        ...

    def resize(self, size_bytes: int) -> None:
        """Grow the disk."""
        ...

    def sync(self) -> None:
        """Make everything written so far durable."""
        ...


def _pread_exactly(fd: int, offset: int, length: int) -> bytes:
    """Read from a file; what lies past its end is zeros."""
    data = os.pread(fd, length, offset)
    if len(data) == length:
        return data
    pieces = [data]
    got = len(data)
    while got < length:
        piece = os.pread(fd, length - got, offset + got)
        if not piece:
            pieces.append(bytes(length - got))
            break
        pieces.append(piece)
        got += len(piece)
    return b"".join(pieces)


def _pwrite_all(fd: int, offset: int, data: bytes | memoryview) -> None:
    done = os.pwrite(fd, data, offset)
    while done < len(data):
        done += os.pwrite(fd, memoryview(data)[done:], offset + done)


def _file_data_ranges(fd: int, size: int) -> Iterator[tuple[int, int]]:
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as exc:
            if exc.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < at:
            yield start, at - start


def merge_ranges(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort (offset, length) pairs and join those that touch or overlap."""
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if merged and offset <= merged[-1][0] + merged[-1][1]:
            start, old = merged[-1]
            merged[-1] = (start, max(old, offset + length - start))
        else:
            merged.append((offset, length))
    return merged


class RawLayer:
    """A raw (sparse) file."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path
        self._fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC)
        self._size = os.fstat(self._fd).st_size

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return self._size

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._fd

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""
        return _pread_exactly(self._fd, offset, length)

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        _pwrite_all(self._fd, offset, data)

    def zero(self, offset: int, length: int) -> None:
        """Punch a hole, or write zeros where the host's file system has none."""
        try:
            punch_hole(self._fd, offset, length)
        except OSError as exc:
            if exc.errno != errno.EOPNOTSUPP:
                raise
            step = 1 << 20
            for at in range(offset, offset + length, step):
                self.pwrite(at, bytes(min(step, offset + length - at)))

    def resize(self, size_bytes: int) -> None:
        """Grow the file."""
        os.ftruncate(self._fd, size_bytes)
        self._size = size_bytes

    def data_ranges(self) -> list[tuple[int, int]]:
        """What is not a hole."""
        return list(_file_data_ranges(self._fd, self._size))

    def sync(self) -> None:
        """fdatasync."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


class ExtentMap:
    """Disk ranges, each read from somewhere: sorted, without overlap; the last insert wins."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._extents: list[tuple[int, int, int, int]] = []  # (start, end, source, offset in source)

    def __len__(self) -> int:
        return len(self._extents)

    def insert(self, offset: int, length: int, source: int, source_offset: int) -> None:
        """The range now reads from ``source`` (an index, or ``ZEROS``) at ``source_offset``."""
        if length == 0:
            return
        end = offset + length
        first = bisect_right(self._starts, offset) - 1
        if first < 0 or self._extents[first][1] <= offset:
            first += 1
        last = first
        fresh: list[tuple[int, int, int, int]] = []
        while last < len(self._extents) and self._extents[last][0] < end:
            last += 1
        if first < last:
            start, _, src, at = self._extents[first]
            if start < offset:
                fresh.append((start, offset, src, at))
        fresh.append((offset, end, source, source_offset))
        if first < last:
            start, stop, src, at = self._extents[last - 1]
            if stop > end:
                fresh.append((end, stop, src, at + end - start))
        self._extents[first:last] = fresh
        self._starts[first:last] = [extent[0] for extent in fresh]

    def lookup(self, offset: int, length: int) -> list[tuple[int, int, int | None, int]]:
        """Pieces (offset, length, source, offset in source) that cover the range; source None: not in the map."""
        pieces: list[tuple[int, int, int | None, int]] = []
        end = offset + length
        at = offset
        i = max(bisect_right(self._starts, offset) - 1, 0)
        while at < end:
            if i < len(self._extents) and self._extents[i][1] <= at:
                i += 1
                continue
            if i == len(self._extents) or self._extents[i][0] >= end:
                pieces.append((at, end - at, None, 0))
                break
            start, stop, source, source_offset = self._extents[i]
            if start > at:
                pieces.append((at, start - at, None, 0))
                at = start
            piece = min(stop, end) - at
            pieces.append((at, piece, source, source_offset + at - start))
            at += piece
        return pieces

    def ranges(self) -> list[tuple[int, int, int]]:
        """All extents as (offset, length, source)."""
        return [(start, end - start, source) for start, end, source, _ in self._extents]


class ExtentLayer:
    """A read-only view: extents of other files over a base.  Owns the base and the descriptors."""

    def __init__(self, base: Layer, extents: ExtentMap, sources: list[int], size_bytes: int) -> None:
        self._base = base
        self._extents = extents
        self._sources = sources
        self._size = size_bytes

    @property
    def size_bytes(self) -> int:
        """The disk's size at this point; the base may be smaller or larger."""
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""
        pieces = [
            self._piece(at, size, source, source_offset)
            for at, size, source, source_offset in self._extents.lookup(offset, length)
        ]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, offset: int, length: int, source: int | None, source_offset: int) -> bytes:
        if source is None:
            return self._base.pread(offset, length)
        if source == ZEROS:
            return bytes(length)
        data = os.pread(self._sources[source], length, source_offset)
        if len(data) != length:  # the file was checked when it was applied: now it is shorter
            raise OSError(errno.EIO, f"extent source {source} ends before byte {source_offset + length}")
        return data

    def data_ranges(self) -> list[tuple[int, int]]:
        """Data of the base and of the extents (zeros in the map over data of the base count as data)."""
        mapped = [(offset, length) for offset, length, source in self._extents.ranges() if source != ZEROS]
        return [
            (offset, min(length, self._size - offset))
            for offset, length in merge_ranges(self._base.data_ranges() + mapped)
            if offset < self._size
        ]

    def close(self) -> None:
        """Close the base and all sources."""
        self._base.close()
        for fd in self._sources:
            os.close(fd)


class TopLayer:
    """A sparse file that takes the writes over a read-only lower layer, with a bitmap of the blocks it holds.

    ``path`` is the file, ``path`` + ``.present`` the bitmap: one bit a 4 KiB block.  Owns the lower layer.
    """

    def __init__(self, lower: Layer, path: Path) -> None:
        self._lower = lower
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        size = os.fstat(self._fd).st_size
        if size == 0:
            size = lower.size_bytes
            os.ftruncate(self._fd, size)
        if size < lower.size_bytes:
            os.close(self._fd)
            raise RigError("DiskCorrupt", f"{path}: top of {size} bytes over a disk of {lower.size_bytes}")
        self._size = size
        self._map_path = path.with_name(path.name + ".present")
        self._open_map()

    def _open_map(self) -> None:
        blocks = -(-self._size // BLOCK_BYTES)
        self._map_fd = os.open(self._map_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._map_fd, max(-(-blocks // 8), 1))
        self._map = mmap.mmap(self._map_fd, 0)

    @property
    def size_bytes(self) -> int:
        """The disk's size."""
        return self._size

    def pread(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes."""
        pieces = []
        for at, size, present in self._runs(offset, length):
            pieces.append(_pread_exactly(self._fd, at, size) if present else self._lower_bytes(at, size))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _lower_bytes(self, offset: int, length: int) -> bytes:
        inside = max(min(length, self._lower.size_bytes - offset), 0)
        data = self._lower.pread(offset, inside) if inside else b""
        return data + bytes(length - inside)

    def _runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, present) pieces of a range."""
        if length == 0:
            return
        end = offset + length
        first, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
        bits = int.from_bytes(self._map[first // 8 : last // 8 + 1], "little") >> (first % 8)
        at = offset
        run = bool(bits & 1)
        for block in range(first, last + 1):
            present = bool(bits & 1)
            bits >>= 1
            if present != run:
                edge = block * BLOCK_BYTES
                yield at, edge - at, run
                at, run = edge, present
        yield at, end - at, run

    def _mark(self, first: int, last: int) -> None:
        """Set the bits of blocks first..last."""
        low, high = first // 8, last // 8
        bits = int.from_bytes(self._map[low : high + 1], "little")
        bits |= ((1 << (last - first + 1)) - 1) << (first % 8)
        self._map[low : high + 1] = bits.to_bytes(high - low + 1, "little")

    def _fill_edges(self, offset: int, length: int) -> None:
        """Bring the blocks that a write covers only in part up from below."""
        end = offset + length
        for block in {offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES}:
            start = block * BLOCK_BYTES
            stop = min(start + BLOCK_BYTES, self._size)
            covered = offset <= start and stop <= end
            if not covered and not (self._map[block // 8] >> (block % 8)) & 1:
                _pwrite_all(self._fd, start, self._lower_bytes(start, stop - start))

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``; then the blocks are marked present."""
        if not len(data):
            return
        self._fill_edges(offset, len(data))
        _pwrite_all(self._fd, offset, data)
        self._mark(offset // BLOCK_BYTES, (offset + len(data) - 1) // BLOCK_BYTES)

    def zero(self, offset: int, length: int) -> None:
        """Punch a hole in the top and mark it present: present holes read as zeros."""
        if length == 0:
            return
        self._fill_edges(offset, length)
        punch_hole(self._fd, offset, length)
        self._mark(offset // BLOCK_BYTES, (offset + length - 1) // BLOCK_BYTES)

    def resize(self, size_bytes: int) -> None:
        """Grow the top; the new end reads as zeros."""
        os.ftruncate(self._fd, size_bytes)
        self._map.close()
        os.close(self._map_fd)
        self._size = size_bytes
        self._open_map()

    def data_ranges(self) -> list[tuple[int, int]]:
        """Data of the lower layer and of the top."""
        return merge_ranges(self._lower.data_ranges() + list(_file_data_ranges(self._fd, self._size)))

    def sync(self) -> None:
        """Data first, then the bitmap that says it is there."""
        os.fdatasync(self._fd)
        self._map.flush()

    def close(self) -> None:
        """Close the files and the lower layer."""
        self._map.close()
        os.close(self._map_fd)
        os.close(self._fd)
        self._lower.close()
