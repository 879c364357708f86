"""Searches files for random markers: at any byte, behind holes, compressed by zstd, and deleted but still open.

A marker has 64 random bytes and is searched for in pieces of 16, so a fragment of 31 bytes is found wherever it begins.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import zstandard

MARKER_BYTES, PIECE_BYTES = 64, 16
_ZSTD = b"\x28\xb5\x2f\xfd"
_READ_BYTES = 1 << 20
_FRAME_BYTES_MAX = 64 << 20


def new_marker(draws: random.Random) -> bytes:
    """Return a marker, which zstd cannot compress and no other file has."""
    return draws.randbytes(MARKER_BYTES)


def pieces_of(markers: Iterable[bytes]) -> list[bytes]:
    """Return what is searched for."""
    return [marker[at : at + PIECE_BYTES] for marker in markers for at in range(0, len(marker), PIECE_BYTES)]


def files_below(root: Path, but: Collection[Path]) -> Iterator[Path]:
    """Yield all regular files below a folder, hidden ones too, except those in some folders."""
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if Path(folder, name) not in but]
        for name in files:
            path = Path(folder, name)
            try:
                if stat.S_ISREG(path.lstat().st_mode):
                    yield path
            except FileNotFoundError:
                continue  # it was deleted meanwhile


def deleted_files(pids: Iterable[int]) -> Iterator[Path]:
    """Yield the deleted files that processes have open; none if this user may not see them.

    A file of memfd_create(2) is memory of its process, as all its buffers are.
    """
    for pid in pids:
        try:
            fds = list(Path(f"/proc/{pid}/fd").iterdir())
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        for fd in fds:
            try:
                name = str(fd.readlink())
                is_file = name.endswith(" (deleted)") and not name.startswith("/memfd:")
                if is_file and stat.S_ISREG(fd.stat().st_mode):
                    yield fd
            except OSError:
                continue  # it was closed meanwhile


def with_children(pids: Iterable[int]) -> set[int]:
    """Return processes with all their descendants."""
    parents: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found, new = set[int](), set(pids)
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new} - found
    return found


def has(path: Path, pieces: Collection[bytes]) -> bool:
    """Return True if a file has one of the pieces, as such or within a zstd frame; False for one that is gone."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return any(_chunk_has(fd, at, chunk, pieces) for at, chunk in _chunks(fd, max(map(len, pieces)) - 1))
    finally:
        os.close(fd)


def _chunks(fd: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """Yield the bytes between holes, each chunk with the end of the one before."""
    at = 0
    while True:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
            end = os.lseek(fd, at, os.SEEK_HOLE)
        except OSError:  # ENXIO: no data follow
            return
        kept = b""
        while at < end:
            chunk = os.pread(fd, min(_READ_BYTES, end - at), at)
            if not chunk:
                break  # it was truncated meanwhile
            yield at - len(kept), kept + chunk
            at += len(chunk)
            kept = (kept + chunk)[-overlap:]


def _chunk_has(fd: int, start: int, chunk: bytes, pieces: Collection[bytes]) -> bool:
    if any(piece in chunk for piece in pieces):
        return True
    at = chunk.find(_ZSTD)
    while at >= 0:
        frame = zstandard.ZstdDecompressor(max_window_size=128 << 20).decompressobj()
        try:
            content = frame.decompress(os.pread(fd, _FRAME_BYTES_MAX, start + at))
        except zstandard.ZstdError:
            content = b""
        if any(piece in content for piece in pieces):
            return True
        at = chunk.find(_ZSTD, at + 1)
    return False
