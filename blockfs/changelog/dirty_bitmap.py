"""The dirty file of a tracked disk (``NAME.dirty``): whether its log was given up, and which chunks changed since.

Layout: docs/reference/formats/dirty.md.

Fault contract: written through a memory map, the word before the first write that is not logged, a chunk's bit before its
bytes; so a kill at any moment loses nothing.  After a power loss it is worth nothing: its boot id, which is taken out only
when the disk was closed in order, tells (:attr:`DirtyFile.complete`).  A file that cannot be read as one is ``DirtyCorrupt``.
In both cases every chunk may have changed.  If another program cuts the file, or its medium fails, while the disk is open,
nothing can be noted: no change of the disk succeeds (``EIO``) until a new log begins.
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_synced
from siterig.blockfs.files.os_errors import naming, reason
from siterig.cext._core import lib
from siterig.cext.checksums import crc32c

FORMAT_VERSION = 2
_OLD_VERSION = 1
"""Without the newest segment and the time of the last change."""
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
"""Why a log was given up, by the state word."""
NOTED = frozenset(REASONS.values()) - {Code.LogCorrupt}
"""Reasons after which the dirty file has what changes from then on; it may be among the files that a lost log lacks."""

_MAGIC = b"SRIGDRTY"
_HEADER = struct.Struct("<8sHHI16sQ16s4x")  # then CRC32C
_CRC = struct.Struct("<I")
_STATE = struct.Struct("<I4xQQ")  # then the newest segment's number, and when the disk's file was last changed


@dataclass(frozen=True, slots=True)
class DirtyFile:
    """``reason``: why the log was given up, None if it was not.  ``ranges``: (offset, length) of changed chunks, merged.

    ``boot_id``: of the boot in which it is written to; ``boot.NIL`` if the disk was closed in order since.
    ``newest_segment``: number of the log's newest segment; ``mtime_ns``: when the disk's file was last changed, as of the
    last sync; both 0 if that was not noted.
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
        """Whether all that was noted is there; not so after a power loss."""
        return self.boot_id in (boot.NIL, boot.current_boot_id())


def file_bytes(disk_bytes: int) -> int:
    """How long the file of a disk is at least, once its log has begun."""
    return HEADER_BYTES + -(-disk_bytes // CHUNK_BYTES // 8)


def make(path: Path, *, disk_id: str, generation: int) -> None:
    """A dirty file of a log that is to begin: nothing is dirty.  Durable, but for its name."""
    write_synced(path, _header(disk_id, generation, boot.current_boot_id()).ljust(HEADER_BYTES, b"\0"))


def _header(disk_id: str, generation: int, boot_id: str) -> bytes:
    disk, booted = uuid.UUID(disk_id).bytes, uuid.UUID(boot_id).bytes
    raw = _HEADER.pack(_MAGIC, FORMAT_VERSION, HEADER_BYTES, CHUNK_BYTES, disk, generation, booted)
    return raw + _CRC.pack(crc32c(raw))


def read(path: Path) -> DirtyFile:
    """Read one; ``DirtyCorrupt`` (a missing file too) or ``DirtyVersion`` names it."""
    try:
        with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
            data = file.read()
    except OSError as exc:
        raise RigError(Code.DirtyCorrupt, f"{path}: cannot be read: {reason(exc, path)}") from exc
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
    """A descriptor for the writer in C, which maps the file."""
    return safe_files.open_file(path, os.O_RDWR)


def mark_open(path: Path) -> None:
    """Before a file that is whole is written to again."""
    _set_boot(path, boot.current_boot_id())


def mark_clean(path: Path) -> None:
    """The disk was closed in order, and its bytes are durable: what is noted stands."""
    _set_boot(path, boot.NIL)


def _set_boot(path: Path, boot_id: str) -> None:
    """Durably, and after all else that was noted."""
    found = read(path)
    fd = open_for_writer(path)
    try:
        with naming(path):
            os.fsync(fd)
            os.pwrite(fd, _header(found.disk_id, found.generation, boot_id), 0)
            os.fsync(fd)
    finally:
        os.close(fd)
