"""The expected bytes of a disk: its start state with its change log replayed onto it, by an independent reader.

The reader implements ``docs/reference/formats/hrl.md`` again, and shares only the checksum with the product.  Images are
sparse files and are never read into memory, so that a disk of many GiB can be compared byte by byte.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from siterig.cext.checksums import crc32c

WRITE, ZERO, DISCARD, FLUSH, TAG, RESIZE = range(1, 7)
KINDS = {WRITE: "WRITE", ZERO: "ZERO", DISCARD: "DISCARD", FLUSH: "FLUSH", TAG: "TAG", RESIZE: "RESIZE"}
CHUNK_BYTES = 1 << 20

_HEADER = struct.Struct("<8sHHB3x16sQQ16sQQ44xI")
_RECORD = struct.Struct("<IBBHQQQQQIIII")
_PUNCH_HOLE_KEEP_SIZE = 0x3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


@dataclass(frozen=True, slots=True)
class Logged:
    """A record; ``payload`` can be read until the next record is requested."""

    kind: int
    seq: int
    position: int
    offset: int
    length: int
    payload: memoryview


def records(path: Path) -> Iterator[Logged]:
    """Yield the records of one closed segment after checking their checksums; the file must end with the last record."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped, memoryview(mapped) as log:
        magic, version, header_bytes, _, _, _, seq, _, _, _, seed = _HEADER.unpack_from(log)
        assert (magic, version, header_bytes) == (b"SRIGHRL\0", 1, _HEADER.size), path
        assert crc32c(log[: _HEADER.size - 4]) == seed, path
        at = _HEADER.size
        while at < len(log):
            where = f"{path} at byte {at}"
            magic, kind, _, header_bytes, found, position, _, offset, length, size, _, _, crc = _RECORD.unpack_from(log, at)
            assert (magic, header_bytes, found) == (0x52435253, _RECORD.size, seq), where
            body = at + _RECORD.size
            with log[body : body + size] as payload:
                assert len(payload) == (length if kind == WRITE else size), where
                assert crc32c(payload, crc32c(log[at : body - 4], seed)) == crc, where
                yield Logged(kind, seq, position, offset, length, payload)
            at, seq = body + size, seq + 1


@dataclass
class Model:
    """A sparse file that starts as ``size_bytes`` zeros and follows a log.

    ``counts`` has the number of records by kind, ``written_bytes`` the bytes of all WRITEs, ``seq`` and ``position``
    those of the last record.
    """

    path: Path
    size_bytes: int
    counts: Counter[str] = field(default_factory=Counter)
    written_bytes: int = 0
    seq: int = 0
    position: int = 0

    def __post_init__(self) -> None:
        with self.path.open("xb") as file:
            file.truncate(self.size_bytes)

    def replay(self, segments: list[Path], *, upto: int | None = None) -> None:
        """Replay the next segments of the log, up to position ``upto``."""
        fd = os.open(self.path, os.O_RDWR)
        try:
            for path in segments:
                for record in records(path):
                    if upto is not None and record.position > upto:
                        return
                    assert (record.seq, record.position > self.position) == (self.seq + 1, True), f"{path}: {record}"
                    self.seq, self.position = record.seq, record.position
                    self.counts[KINDS[record.kind]] += 1
                    self._do(fd, record)
        finally:
            os.close(fd)

    def _do(self, fd: int, record: Logged) -> None:
        if record.kind in (WRITE, ZERO, DISCARD):
            assert record.offset + record.length <= self.size_bytes, record
        if record.kind == WRITE:
            assert os.pwrite(fd, record.payload, record.offset) == record.length
            self.written_bytes += record.length
        elif record.kind in (ZERO, DISCARD):
            if _libc.fallocate(fd, _PUNCH_HOLE_KEEP_SIZE, record.offset, record.length):
                raise OSError(ctypes.get_errno(), f"{self.path}: no hole can be made")
        elif record.kind == RESIZE:
            assert record.length >= self.size_bytes, record
            self.size_bytes = record.length
            os.ftruncate(fd, record.length)

    def check(self, disk: Path, *, mounted: Path | None = None) -> None:
        """Fail with the first byte at which the file ``disk`` differs from the model.

        Args:
            disk: the file of the disk.
            mounted: the same disk in the mount; its data is read instead, without the page cache.
        """
        face = mounted or disk
        assert face.stat().st_size == self.size_bytes
        mine, file = os.open(self.path, os.O_RDONLY), os.open(disk, os.O_RDONLY)
        read = os.open(face, os.O_RDONLY | (os.O_DIRECT if mounted else 0))
        try:
            with mmap.mmap(-1, CHUNK_BYTES) as buffer:  # aligned to pages for O_DIRECT
                for offset in sorted({*_chunks_with_data(mine), *_chunks_with_data(file)}):
                    found = os.preadv(read, [buffer], offset)
                    if (expected := os.pread(mine, CHUNK_BYTES, offset)) != buffer[:found]:
                        _explain(face, offset, expected, buffer[:found])
        finally:
            for fd in (mine, file, read):
                os.close(fd)


def _chunks_with_data(fd: int) -> Iterator[int]:
    for begin, end in data_ranges(fd):
        yield from range(begin // CHUNK_BYTES * CHUNK_BYTES, end, CHUNK_BYTES)


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) in bytes of each range that is not a hole."""
    end, size = 0, os.fstat(fd).st_size
    while end < size:
        try:
            begin = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:  # ENXIO: there is only a hole up to the end
            return
        end = os.lseek(fd, begin, os.SEEK_HOLE)
        yield begin, end


def _explain(disk: Path, offset: int, expected: bytes, found: bytes) -> None:
    assert len(found) == len(expected), f"{disk}: {len(found)} bytes at {offset}; the replay of its log has {len(expected)}"
    at = next(i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b)
    differing = sum(a != b for a, b in zip(expected, found, strict=True))
    raise AssertionError(
        f"{disk}: first differs from the replay of its log at byte {offset + at}: {found[at : at + 16].hex(' ')}, in the "
        f"replay {expected[at : at + 16].hex(' ')}; {differing} bytes of this MiB differ"
    )
