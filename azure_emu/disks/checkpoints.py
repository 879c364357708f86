"""Checkpoints: the map of a disk's extents at the end of a frame, so that a view need not read the whole journal.

``checkpoints/NUMBER.extents`` is named by the frame's number.  It holds a header, the numbers of the journal files, and the
extents without those of the base.  Layout: docs/reference/formats/managed-disk.md.

Fault contract: a checkpoint is a cache.  One that is truncated, has a wrong checksum or belongs to another frame than its
name says is ignored.  It is written under a name that begins with a dot, and renamed.
"""

from __future__ import annotations

import re
import struct
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from siterig.azure_emu.disks.frames import Frame, encode_header
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files import host_calls
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.small_file import FileTooLongError, read_counted_file
from siterig.blockfs.layers.extent_map import EXTENT_BYTES, GONE, ExtentMap
from siterig.cext.checksums import crc32c

CHECKPOINTS = "checkpoints"
RECORDS_MIN = 32768
"""A checkpoint is saved when more records than this, and than a quarter of the extents, were applied since the last one."""

_MAGIC = b"SRIGCKP\0"
_VERSION = 2
_HEADER = struct.Struct("<8sII16sQIIQQI")
_CRC = struct.Struct("<I")
_NAME = re.compile(r"(\d{12})\.extents")


class BadCheckpointError(Exception):
    """A checkpoint is corrupt or of another disk or frame; the message says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The map of the disk at the end of frame ``frame``: ``journal_files[i]`` is source i + 1."""

    frame: int
    size_bytes: int
    journal_files: list[int]
    extents: ExtentMap


def checkpoint_path(folder: Path, frame: int) -> Path:
    """Return the path of the checkpoint of frame ``frame``; ``folder`` is the managed disk's."""
    return folder / CHECKPOINTS / f"{frame:012d}.extents"


def list_checkpoints(folder: Path) -> list[int]:
    """Return the numbers of the frames that have a checkpoint, ascending; other files are ignored."""
    names = []
    with suppress(FileNotFoundError):
        names = [path.name for path in (folder / CHECKPOINTS).iterdir()]
    return sorted(int(m[1]) for m in map(_NAME.fullmatch, names) if m)


def extent_count(folder: Path, frame: int) -> int:
    """Return about how many extents the checkpoint of ``frame`` has; 0 if there is none."""
    try:
        return checkpoint_path(folder, frame).stat().st_size // EXTENT_BYTES
    except FileNotFoundError:
        return 0


def save(folder: Path, disk_id: str, frame: Frame, checkpoint: Checkpoint) -> None:
    """Write the checkpoint of ``frame`` durably; its extents must be finalized."""
    rows, journal_files = checkpoint.extents.dump(), checkpoint.journal_files
    table = struct.pack(f"<{len(journal_files)}Q", *journal_files)
    head = _HEADER.pack(
        _MAGIC,
        _VERSION,
        len(journal_files),
        uuid.UUID(disk_id).bytes,
        frame.number,
        crc32c(encode_header(frame)),
        0,
        checkpoint.size_bytes,
        len(rows),
        crc32c(rows, crc32c(table)),
    )
    path, data = checkpoint_path(folder, frame.number), b"".join((head, _CRC.pack(crc32c(head)), table, rows))
    with host_calls.operation("checkpoint", path, len(data)):
        write_atomically(path, data)


def load(folder: Path, disk_id: str, frame: Frame) -> Checkpoint:
    """Read the checkpoint at the end of ``frame``.

    Raises:
        BadCheckpointError: the file is not a checkpoint of this frame.
        FileNotFoundError: there is none.
    """
    begin = _HEADER.size + _CRC.size

    def size_of(head: bytes) -> int:
        _, _, file_count, *_, rows_bytes, _ = _HEADER.unpack_from(head)
        return begin + int(file_count) * 8 + int(rows_bytes)

    try:
        raw = memoryview(read_counted_file(checkpoint_path(folder, frame.number), begin, size_of))
    except FileTooLongError as exc:
        raise BadCheckpointError(str(exc)) from exc
    if len(raw) < begin:
        raise BadCheckpointError(f"has {len(raw)} bytes; its header has {begin}")
    magic, version, file_count, disk, number, frame_crc, reserved, size_bytes, rows_bytes, crc = _HEADER.unpack_from(raw)
    if crc32c(raw[: _HEADER.size]) != _CRC.unpack_from(raw, _HEADER.size)[0]:
        raise BadCheckpointError("header checksum does not match")
    if (magic, version, disk, reserved) != (_MAGIC, _VERSION, uuid.UUID(disk_id).bytes, 0):
        raise BadCheckpointError("is of another format, or another disk")
    if (number, frame_crc) != (frame.number, crc32c(encode_header(frame))):
        raise BadCheckpointError(f"is of another frame than frame {frame.number} of the journal")
    rows_at = begin + file_count * 8
    if len(raw) != rows_at + rows_bytes:
        raise BadCheckpointError(f"has {len(raw)} bytes; it was written with {rows_at + rows_bytes}")
    if crc32c(raw[begin:]) != crc:
        raise BadCheckpointError("checksum of its extents does not match")
    journal_files = list(struct.unpack_from(f"<{file_count}Q", raw, begin))
    if (
        size_bytes != frame.size_bytes_after
        or len({*journal_files}) < file_count
        or not all(0 < v <= frame.journal_file for v in journal_files)
    ):
        raise BadCheckpointError("is of a disk or of journal_files that cannot be those of its frame")
    try:
        extents = ExtentMap.load(raw[rows_at:], file_count + 1)
    except RigError as exc:
        raise BadCheckpointError(exc.message) from exc
    return Checkpoint(frame.number, size_bytes, journal_files, extents)


def retarget(checkpoint: Checkpoint, sources: dict[int, int], present: dict[int, int]) -> None:
    """Renumber the sources of the checkpoint's extents; extents of compacted frames show the base.

    Args:
        checkpoint: the checkpoint, which is changed.
        sources: source number by journal file; new files are added.
        present: the journal files that exist, each with its first byte that is not compacted.
    """
    becomes, least = [0], [0]
    for journal_file in checkpoint.journal_files:
        becomes.append(sources.setdefault(journal_file, len(sources) + 1) if journal_file in present else GONE)
        least.append(present.get(journal_file, 0))
    checkpoint.extents.retarget(becomes, least)
