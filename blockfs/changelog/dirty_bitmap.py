"""The dirty file of a tracked disk (``NAME.dirty``): the state of its log, and the chunks that changed without a record.

Layout: docs/reference/formats/dirty.md.

Fault contract
--------------
The file is written through a memory map: the state word before the first write that is not logged, a chunk's bit before its
bytes.  So a kill at any moment loses nothing.  After a power loss the contents are not valid; the boot id, which is removed
only when the disk is closed cleanly, detects this (:attr:`DirtyFile.complete`).  A file that is no dirty file is
``DirtyCorrupt``.  In both cases every chunk may have changed.  If another program truncates the file while the disk is open,
or its medium fails, changes cannot be recorded: every change of the disk fails (``EIO``) until a new log begins.
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.files.durable_io import write_synced
from siterig.blockfs.files.os_errors import is_media_error, naming, reason
from siterig.cext._core import lib
from siterig.cext.checksums import crc32c

FORMAT_VERSION = 2
_OLD_VERSION = 1
"""The version without the newest segment and the time of the last change."""
CHUNK_BYTES: int = lib.SR_CHUNK_BYTES
HEADER_BYTES: int = lib.SR_DIRTY_HEADER_BYTES
REASONS: dict[int, str] = {
    lib.SR_LOG_OVERFLOW: Code.LogOverflow,
    lib.SR_LOG_FULL: Code.LogFull,
    lib.SR_SYNC_FAILED: Code.SyncFailed,
    lib.SR_WRITE_FAILED: Code.WriteFailed,
    lib.SR_IMAGE_CHANGED: Code.ImageChanged,
    lib.SR_LOG_LOST: Code.LogCorrupt,
}
"""Reasons for an abandoned log, by state word."""
NOTED = frozenset(REASONS.values()) - {Code.LogCorrupt}
"""Reasons after which the dirty file records all further changes.

It can be among the files that a lost log lacks, so that reason is not one of them.
"""

LACKING = frozenset({Code.LogOverflow, Code.LogFull})
"""Reasons after which the dirty file has all chunks that the recovery side can lack.

They are the chunks that changed since, and the chunks of all records that were kept because they were not applied.  After
the other reasons bytes of the disk itself are uncertain.
"""

_MAGIC = b"SRIGDRTY"
_HEADER = struct.Struct("<8sHHI16sQ16s4x")  # then CRC32C
_CRC = struct.Struct("<I")
_STATE = struct.Struct("<I4xQQ")  # then the newest segment's number, and when the disk's file was last changed


@dataclass(frozen=True, slots=True)
class DirtyFile:
    """The contents of a dirty file.

    ``reason`` is why the log was abandoned, None if it was not.  ``ranges`` are (offset, length) of changed chunks, merged.
    ``boot_id`` is the boot in which the file is written to, or ``boot.NIL`` if the disk was closed cleanly since.
    ``newest_segment`` is the number of the log's newest segment; ``mtime_ns`` is the time of the last change of the disk's
    file at the last sync.  Both are 0 if they were not recorded.
    """

    disk_id: str
    generation: int
    boot_id: str
    reason: str | None
    ranges: list[tuple[int, int]]
    newest_segment: int = 0
    mtime_ns: int = 0

    @property
    def complete(self) -> bool:
        """True if all recorded changes are in the file; False after a power loss."""
        return self.boot_id in (boot.NIL, boot.current_boot_id())


def file_bytes(disk_bytes: int) -> int:
    """Return the least length of the file for a disk of that size, after its log has begun."""
    return HEADER_BYTES + -(-disk_bytes // CHUNK_BYTES // 8)


def make(path: Path, *, disk_id: str, generation: int) -> None:
    """Create the dirty file for a new log, without dirty chunks; its bytes are durable, its name is not yet."""
    write_synced(path, _header(disk_id, generation, boot.current_boot_id()).ljust(HEADER_BYTES, b"\0"))


def _header(disk_id: str, generation: int, boot_id: str) -> bytes:
    disk, booted = uuid.UUID(disk_id).bytes, uuid.UUID(boot_id).bytes
    raw = _HEADER.pack(_MAGIC, FORMAT_VERSION, HEADER_BYTES, CHUNK_BYTES, disk, generation, booted)
    return raw + _CRC.pack(crc32c(raw))


def read(path: Path) -> DirtyFile:
    """Read a dirty file.

    Raises:
        RigError: ``DirtyCorrupt`` (also for a missing file) or ``DirtyVersion``; both name the file.
        OSError: the error says nothing about the file: too many open files, for example.
    """
    try:
        with open_to_read(path) as file:
            return read_open(file, path)
    except OSError as exc:
        if not is_media_error(exc):
            raise
        raise RigError(Code.DirtyCorrupt, f"{path}: cannot be read: {reason(exc, path)}") from exc


def open_to_read(path: Path) -> BinaryIO:
    """Open a dirty file, which can be replaced by that of a new log before it is read."""
    return os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb")


def read_open(file: BinaryIO, path: Path) -> DirtyFile:
    """Read an open dirty file, as :func:`read` does; ``path`` is for messages."""
    data = host_calls.read_open(file)
    if len(data) < HEADER_BYTES:
        raise RigError(Code.DirtyCorrupt, f"{path}: has {len(data)} bytes; its header has {HEADER_BYTES}")
    magic, version, header_bytes, chunk_bytes, disk, generation, booted = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        raise RigError(Code.DirtyCorrupt, f"{path}: magic is {magic!r}; a dirty file begins with {_MAGIC!r}")
    if version not in (_OLD_VERSION, FORMAT_VERSION):
        raise RigError(
            Code.DirtyVersion, f"{path}: dirty file format {version}; this siterig reads {_OLD_VERSION} and {FORMAT_VERSION}"
        )
    if crc32c(data[: _HEADER.size]) != _CRC.unpack_from(data, _HEADER.size)[0]:
        raise RigError(Code.DirtyCorrupt, f"{path}: header checksum does not match")
    state, newest_segment, mtime_ns = _STATE.unpack_from(data, _HEADER.size + _CRC.size)
    if header_bytes != HEADER_BYTES:
        raise RigError(Code.DirtyCorrupt, f"{path}: header size is {header_bytes} bytes; allowed: {HEADER_BYTES}")
    if chunk_bytes != CHUNK_BYTES:
        raise RigError(Code.DirtyCorrupt, f"{path}: chunk size is {chunk_bytes} bytes; allowed: {CHUNK_BYTES}")
    if state != lib.SR_LOGGED and state not in REASONS:
        allowed = ", ".join(map(str, sorted({lib.SR_LOGGED, *REASONS})))
        raise RigError(Code.DirtyCorrupt, f"{path}: state is {state}; allowed: {allowed}")
    if generation >= 1 << 63:
        raise RigError(Code.DirtyCorrupt, f"{path}: generation is {generation}; allowed: less than 2 ** 63")
    for begin, end in ((56, 60), (68, 72), (72 if version == _OLD_VERSION else 88, HEADER_BYTES)):
        if any(data[begin:end]):
            raise RigError(Code.DirtyCorrupt, f"{path}: bytes {begin} to {end - 1} are not zero")
    return DirtyFile(
        disk_id=str(uuid.UUID(bytes=disk)),
        generation=generation,
        boot_id=str(uuid.UUID(bytes=booted)),
        reason=REASONS.get(state),
        ranges=_ranges(data[HEADER_BYTES:]),
        newest_segment=newest_segment,
        mtime_ns=mtime_ns,
    )


def _ranges(bits: bytes) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for index, byte in enumerate(bits):
        if not byte:
            continue
        for bit in range(8):
            if byte >> bit & 1:
                at = (index * 8 + bit) * CHUNK_BYTES
                if ranges and sum(ranges[-1]) == at:
                    ranges[-1] = (ranges[-1][0], ranges[-1][1] + CHUNK_BYTES)
                else:
                    ranges.append((at, CHUNK_BYTES))
    return ranges


def open_for_writer(path: Path) -> int:
    """Return a descriptor for the writer in C, which maps the file."""
    return safe_files.open_file(path, os.O_RDWR)


def mark_open(path: Path) -> None:
    """Record the current boot, before a complete file is written to again."""
    _set_boot(path, boot.current_boot_id())


def mark_clean(path: Path) -> None:
    """Record that the disk was closed cleanly and its bytes are durable, so the recorded changes are final."""
    _set_boot(path, boot.NIL)


def _set_boot(path: Path, boot_id: str) -> None:
    """Change the boot id durably, after all earlier changes of the file."""
    found = read(path)
    fd = open_for_writer(path)
    try:
        with naming(path):
            host_calls.fsync(fd)
            host_calls.pwrite(fd, _header(found.disk_id, found.generation, boot_id), 0)
            host_calls.fsync(fd)
    finally:
        os.close(fd)
