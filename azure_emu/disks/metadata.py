"""The small files of a managed disk (``disk.json``, ``progress``, pins): JSON with a format version and a checksum.

Fault contract: a file is replaced atomically and durably; a kill or a power loss leaves the old file or the new one.  A
changed byte raises ``StoreCorrupt`` and another format version ``StoreVersion``; both name the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field, ValidationError, model_validator

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
from siterig.blockfs.files.os_errors import is_media_error, reason
from siterig.blockfs.files.small_file import FileTooLongError, read_small_file

FORMAT_VERSION = 2
ENCRYPTED_FORMAT_VERSION = 3
"""The version of ``disk.json`` of a managed disk whose data are encrypted."""
_DOCUMENT = CheckedDocument(FORMAT_VERSION)
_DISK_DOCUMENT = CheckedDocument(ENCRYPTED_FORMAT_VERSION, (FORMAT_VERSION,))
DISK_META = "disk.json"
PROGRESS = "progress"


class DiskMeta(WireModel):
    """The file ``disk.json``: the identity of the disk.

    It is written when the managed disk is created, and again when an initial replication begins after the source disk has
    grown.  ``size_bytes`` is the size of ``base.img`` then.  ``key_id`` names the key that encrypts the data; None: they are
    not encrypted, as in a managed disk of an older siterig.
    """

    disk_id: str = Field(pattern=UUID_PATTERN)
    size_bytes: int = Field(gt=0, multiple_of=SECTOR_BYTES, lt=1 << 63)
    created_ns: Whole
    key_id: str | None = Field(default=None, pattern=UUID_PATTERN)


class CompactionIntent(WireModel):
    """A compaction that is not complete: the base gets the content of the disk after frame ``frame``, at ``position``."""

    frame: Whole
    position: Whole


class OpenRecord(WireModel):
    """The first opening for applying in a boot: every frame up to ``frame`` counts, and torn bytes after it are truncated.

    Within ``boot`` a kill can tear a later frame, a power loss cannot.
    """

    boot: str = Field(pattern=UUID_PATTERN)
    frame: Whole


NOT_OPENED = OpenRecord(boot=NIL, frame=0)
"""The value of ``opened`` before the first opening: no frame is known to count."""


class Progress(WireModel):
    """The file ``progress``: the state that ``base.img`` holds, which is everything up to the oldest position.

    During the initial replication the base holds ``sync_parts`` parts of the generation's sync stream.  The stream's
    ``sync-end`` tag sets ``complete``.  ``position``, ``time_ns`` and ``first_seq`` are 0 before; ``first_seq`` is the first
    sequence number of the log that is not in the snapshot.  ``first_position`` is the position of part 1.  It is lower than
    ``position`` if the copy was interrupted and continued with another snapshot.  ``log_seq``, ``log_position`` and
    ``log_time_ns`` belong to the last log record in the base.

    ``frame`` is the number of the last frame in the base.  ``floor`` and ``floor_time_ns`` are the oldest position that can
    be read and its time.  ``size_bytes`` is the disk's size there.  ``fold`` is the compaction that is not complete.  All of
    these have their default before ``complete``.  ``opened`` is the record of the process that wrote the file.
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
    size_bytes: Whole = Field(default=0, multiple_of=SECTOR_BYTES)
    fold: CompactionIntent | None = None
    opened: OpenRecord = NOT_OPENED

    @model_validator(mode="after")
    def _has_no_state_before_it_is_complete(self) -> Progress:
        before = {"generation", "sync_parts", "first_position", "opened"}
        if not self.complete and any(self.model_dump(exclude=before).values()):
            raise ValueError("has a state of the disk, but the initial replication is not complete")
        return self


M = TypeVar("M", bound=WireModel)


def write_meta(path: Path, model: WireModel) -> None:
    """Replace the file ``path`` durably with ``model``."""
    if isinstance(model, DiskMeta):
        document = _DOCUMENT if model.key_id is None else _DISK_DOCUMENT
        document.save(path, model.model_dump(exclude_none=True))
    else:
        _DOCUMENT.save(path, model.model_dump())


def read_meta(path: Path, kind: type[M]) -> M:
    """Read a file that :func:`write_meta` wrote.

    Raises:
        RigError: ``StoreCorrupt``, ``StoreVersion``; ``StoreIo`` (recoverable).
    """
    try:
        document = _DISK_DOCUMENT if kind is DiskMeta else _DOCUMENT
        version, fields = document.decode(read_small_file(path))
    except OSError as exc:
        raise cannot_be_read(path, exc) from exc
    except (FileTooLongError, CorruptDocumentError) as exc:
        raise store_corrupt(path, str(exc)) from exc
    except UnknownFormatError as exc:
        raise RigError(Code.StoreVersion, f"{path}: managed disk {exc}") from exc
    if kind is DiskMeta and version == FORMAT_VERSION:
        if "key_id" in fields:
            raise store_corrupt(path, f"key_id is not allowed in format {FORMAT_VERSION}")
        fields["key_id"] = None
    elif kind is DiskMeta and fields.get("key_id") is None:
        raise store_corrupt(path, "key_id is missing")
    if missing := kind.model_fields.keys() - fields.keys():
        raise store_corrupt(path, f"{min(missing)} is missing")
    try:
        return kind.model_validate(fields, strict=True)
    except ValidationError as exc:
        raise store_corrupt(path, validation_problem(exc)) from exc


def store_corrupt(path: Path, why: str) -> RigError:
    """Return the error for a corrupt file in a managed disk's folder."""
    return RigError(Code.StoreCorrupt, f"{path}: managed disk is corrupt: {why}")


def cannot_be_read(path: Path, exc: OSError) -> RigError:
    """Return ``StoreCorrupt``, or ``StoreIo`` (recoverable) if the error says nothing about the file."""
    if is_media_error(exc):
        return store_corrupt(path, f"cannot be read: {reason(exc)}")
    return RigError(Code.StoreIo, f"{path}: cannot be read: {reason(exc, path)}", recoverable=True)
