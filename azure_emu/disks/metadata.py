"""The small files of a managed disk (``disk.json``, ``progress``, pins): JSON with a format version and a checksum.

Fault contract: a file is replaced atomically and durably, so a kill or a power loss leaves the old one or the new
one.  Any changed byte is ``StoreCorrupt``, another format version ``StoreVersion``; both name the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError, model_validator

from siterig.azure_emu.disks.io_errors import is_media_error
from siterig.blockfs.core.boot import NIL
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.core.wire_model import UUID_PATTERN, Whole, WireModel
from siterig.blockfs.files.checked_document import (
    CheckedDocument,
    CorruptDocumentError,
    UnknownFormatError,
    validation_problem,
)
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.small_file import FileTooLongError, read_small_file

FORMAT_VERSION = 2
_DOCUMENT = CheckedDocument(FORMAT_VERSION)
DISK_META = "disk.json"
PROGRESS = "progress"


class DiskMeta(WireModel):
    """``disk.json``: written when the disk is made, and when an initial replication begins with a disk that has grown.

    ``size_bytes`` is the size of ``base.img``.
    """

    disk_id: str = Field(pattern=UUID_PATTERN)
    size_bytes: int = Field(gt=0, multiple_of=SECTOR_BYTES, lt=1 << 63)
    created_ns: Whole


class CompactionIntent(WireModel):
    """A fold that is under way: ``base.img`` is becoming the disk as it was after frame ``frame``, at ``position``."""

    frame: Whole
    position: Whole


class OpenRecord(WireModel):
    """The first opening for applying in a boot: every frame up to ``frame`` counts, and what was torn behind it is cut.

    So in ``boot`` a frame can have been torn by a kill, but not by a power loss.
    """

    boot: str = Field(pattern=UUID_PATTERN)
    frame: Whole


NOT_OPENED = OpenRecord(boot=NIL, frame=0)
"""Nothing is known of any frame."""


class Progress(WireModel):
    """``progress``: what ``base.img`` holds, which is everything up to the floor, and of what generation that is.

    While the initial replication goes on: ``sync_parts`` of the generation's sync stream.  ``position``, ``time_ns`` and
    ``first_seq`` (first sequence number of the log that is not in the snapshot) are 0 until ``complete``, which the
    stream's ``sync-end`` tag sets.  ``first_position`` is that of part 1: lower than ``position`` if the copy was cut
    and went on with another snapshot.  ``log_seq``, ``log_position`` and ``log_time_ns`` are of the last log record that was
    folded into the base.

    ``frame``: number of the last frame that was folded into the base.  ``floor``, ``floor_time_ns``: the oldest position
    that can be read.  ``size_bytes``: of the disk there.  The last three are 0 before ``complete``.  ``opened`` is of the
    process that wrote it.
    """

    generation: Whole
    sync_parts: Whole = 0
    first_position: Whole = 0
    complete: bool = False
    position: Whole = 0
    time_ns: Whole = 0
    first_seq: Whole = 0
    log_seq: Whole = 0
    log_position: Whole = 0
    log_time_ns: Whole = 0
    frame: Whole = 0
    floor: Whole = 0
    floor_time_ns: Whole = 0
    size_bytes: Whole = 0
    fold: CompactionIntent | None = None
    opened: OpenRecord = NOT_OPENED

    @model_validator(mode="after")
    def _is_of_a_copy_or_of_a_disk(self) -> Progress:
        before = {"generation", "sync_parts", "first_position", "opened"}
        if not self.complete and any(self.model_dump(exclude=before).values()):
            raise ValueError("tells of a state of the disk, but the initial replication is not complete")
        return self


M = TypeVar("M", bound=WireModel)


def write_meta(path: Path, model: WireModel) -> None:
    """Replace ``path`` durably by ``model``."""
    _DOCUMENT.save(path, model.model_dump())


def read_meta(path: Path, kind: type[M]) -> M:
    """Read what :func:`write_meta` wrote: ``StoreCorrupt`` or ``StoreVersion`` if it is anything else; ``StoreIo``."""
    try:
        _, fields = _DOCUMENT.decode(read_small_file(path))
    except OSError as exc:
        raise cannot_be_read(path, exc) from exc
    except (FileTooLongError, CorruptDocumentError) as exc:
        raise store_corrupt(path, str(exc)) from exc
    except UnknownFormatError as exc:
        raise RigError(Code.StoreVersion, f"{path}: managed disk {exc}") from exc
    if missing := kind.model_fields.keys() - fields.keys():
        raise store_corrupt(path, f"{min(missing)} is missing")
    try:
        return kind.model_validate(fields, strict=True)
    except ValidationError as exc:
        raise store_corrupt(path, validation_problem(exc)) from exc


def store_corrupt(path: Path, why: str) -> RigError:
    """The error for anything in a managed disk's folder that is not as it was written."""
    return RigError(Code.StoreCorrupt, f"{path}: managed disk is corrupt: {why}")


def cannot_be_read(path: Path, exc: OSError) -> RigError:
    """``StoreCorrupt``, or ``StoreIo`` (recoverable) if that says nothing of the file."""
    if is_media_error(exc):
        return store_corrupt(path, f"cannot be read: {reason(exc)}")
    return RigError(Code.StoreIo, f"{path}: cannot be read: {reason(exc, path)}", recoverable=True)
