"""The small file that describes a disk (``NAME.disk``).  Layout: docs/reference/formats/disk.md.

Fault contract: replaced atomically and durably; carries its own checksum, so that a bad byte is an error and never
another disk.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from siterig.blockfs.changelog.disk_log import LogExtent
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_BYTES, SectorBytes
from siterig.blockfs.core.wire_model import UUID_PATTERN, Whole, WireModel
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.checked_document import (
    CheckedDocument,
    CorruptDocumentError,
    UnknownFormatError,
    validation_problem,
)
from siterig.blockfs.files.small_file import FileTooLongError, bounded
from siterig.blockfs.watch.file_stamps import FileStamp

FORMAT_VERSION = 4
_OLD_VERSIONS = (1, 2, 3)
_DOCUMENT = CheckedDocument(FORMAT_VERSION, _OLD_VERSIONS, body_key="disk", ends_with_newline=False)


MANAGED_DISK_PATTERN = r"^[0-9A-Za-z][0-9A-Za-z._-]*$"
"""Id of a managed disk, which is also the name of its folder: a UUID, but older records may have another name."""


class _OldKeyError(Exception):
    """A state file of an older format has a wrong key or value."""


class ClosedNote(WireModel):
    """Files and log of a tracked disk when it was closed cleanly; ``log`` is None if it comes from a file of format 1."""

    files: list[FileStamp]
    log: LogExtent | None


class ParentNote(WireModel):
    """The image under a thin disk (:mod:`siterig.blockfs.disk.parent_image`), as it was when the disk was created.

    Attributes:
        size_bytes: the size of the disk in the image.
        file_bytes: the size of the image file.
        mtime_ns: the time of its last write.
        digest: a digest of samples of its bytes.
    """

    path: str
    size_bytes: int = Field(gt=0, multiple_of=SECTOR_BYTES, lt=1 << 63)
    file_bytes: Whole
    mtime_ns: int = Field(ge=-(1 << 63), lt=1 << 63)
    digest: str = Field(pattern=r"^[0-9a-f]{32}$")


class KeyNote(WireModel):
    """The key that encrypts the files of a disk: that of a managed disk, which may be deleted since.

    Attributes:
        managed_disk: id of the managed disk that the key was made for.
        key_id: id of the key, a UUID.
    """

    managed_disk: str = Field(pattern=MANAGED_DISK_PATTERN)
    key_id: str = Field(pattern=UUID_PATTERN)


class OpenedNote(WireModel):
    """Inode numbers of a tracked disk's own file and of its dirty file, since the disk was opened.

    Attributes:
        mtime_ns: time of the last change of the disk's own file that is not in the log (hydration), or 0.
    """

    inode: Whole
    dirty_inode: Whole
    mtime_ns: int = Field(default=0, ge=-(1 << 63), lt=1 << 63)


class TouchedTimes(WireModel):
    """Times that a program has set (``touch``), in nanoseconds since 1970.

    They are valid until the disk changes, that is, while its file on the host was last written at ``file_mtime_ns``.
    """

    atime_ns: int = Field(ge=-(1 << 63), lt=1 << 63)
    mtime_ns: int = Field(ge=-(1 << 63), lt=1 << 63)
    file_mtime_ns: int = Field(ge=-(1 << 63), lt=1 << 63)


class ShownAttributes(WireModel):
    """Attributes of a disk's file in the mount that programs have set; None for an attribute that no program has set.

    Attributes:
        mode: the nine permission bits.
    """

    mode: int | None = Field(default=None, ge=0, le=0o777)
    uid: int | None = Field(default=None, ge=0, lt=1 << 32)
    gid: int | None = Field(default=None, ge=0, lt=1 << 32)
    touched: TouchedTimes | None = None


class DiskState(WireModel):
    """The description of a disk that is needed before its bytes are used.

    Attributes:
        disk_id: the id of the disk, a UUID.
        size_bytes: its size.
        kind: ``raw`` (``NAME.img``), or ``top``: an overlay ``NAME.top`` over ``managed_disk`` at ``position`` or over
            ``parent``.
        generation: the generation of its change log; 0 before the first.
        tracked: True if writes are logged.
        needs_resync: None, or why the logs are not contiguous.
        promoting: True for an overlay that is being hydrated (:mod:`siterig.blockfs.disk.hydration`).
        first_segment: number of the segment with which the generation begins.
        managed_disk: id of the managed disk under the overlay.
        position: its position.
        image: name of the image file; only for a stand-alone disk (:mod:`siterig.blockfs.host.standalone`).
        closed: note of the last clean close; None while the disk is open, and after a kill.
        opened: note of the last opening; None if the disk was not tracked then.
        shown: attributes set by ``chmod``, ``chown`` and ``touch`` (:mod:`siterig.blockfs.disk.file_attributes`).
        sector_bytes: the logical sector size that the disk declares.
        parent: the image under a thin disk.
        fenced: True if every write is refused.
        key: the key that encrypts the disk's files; None if they are not encrypted.
    """

    disk_id: str = Field(pattern=UUID_PATTERN)
    size_bytes: int = Field(gt=0, multiple_of=SECTOR_BYTES, lt=1 << 63)
    kind: Literal["raw", "top"]
    generation: int = Field(ge=0, lt=1 << 63)
    tracked: bool
    needs_resync: str | None
    promoting: bool = False
    first_segment: int = Field(default=1, ge=1, lt=1 << 63)
    managed_disk: str | None = Field(default=None, pattern=MANAGED_DISK_PATTERN)
    position: int | None = Field(default=None, ge=0, lt=1 << 63)
    image: str | None = None
    closed: ClosedNote | None = None
    opened: OpenedNote | None = None
    shown: ShownAttributes = ShownAttributes()
    sector_bytes: SectorBytes = 512
    parent: ParentNote | None = None
    fenced: bool = False
    key: KeyNote | None = None

    @property
    def lasts(self) -> bool:
        """True if the state, and with it the id of the disk, outlives this process."""
        return True

    @model_validator(mode="after")
    def _lies_over_something(self) -> DiskState:
        over_managed_disk = self.kind == "top" and self.parent is None
        if (self.managed_disk is not None, self.position is not None) != (over_managed_disk, over_managed_disk):
            raise ValueError("managed_disk and position are of a disk of kind top without a parent, and only of that")
        if self.parent is not None and self.kind != "top":
            raise ValueError("only a disk of kind top has a parent")
        if self.key is not None and self.managed_disk not in (None, self.key.managed_disk):
            raise ValueError("the key of a disk over a managed disk is that of the managed disk")
        if self.promoting and not over_managed_disk:
            raise ValueError("only a disk over a managed disk is hydrated")
        return self

    def save(self, path: Path) -> None:
        """Write the file atomically and durably."""
        _DOCUMENT.save(path, self.model_dump())

    @classmethod
    def load(cls, path: Path) -> DiskState:
        """Read the file.

        Raises:
            RigError: ``DiskStateCorrupt``, ``StateVersion``; the message names the file.
        """
        with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
            try:
                data = bounded(file)
            except FileTooLongError as exc:
                raise RigError(Code.DiskStateCorrupt, f"{path}: {exc}") from exc
        try:
            version, body = _DOCUMENT.decode(data)
        except CorruptDocumentError as exc:
            raise RigError(Code.DiskStateCorrupt, f"{path}: is not a disk state file: {exc}") from exc
        except UnknownFormatError as exc:
            raise RigError(Code.StateVersion, f"{path}: disk state {exc}") from exc
        try:
            if version == 1:
                if isinstance(body, dict) and not body.keys().isdisjoint({"closed", "opened"}):
                    raise RigError(Code.DiskStateCorrupt, f"{path}: has keys that format 1 has not")
                body = _from_format_1(body)
            if version in (1, 2):
                body = _from_format_2(body)
            if version in _OLD_VERSIONS:
                body = _from_format_3(body)
            return cls.model_validate(body, strict=True)
        except _OldKeyError as exc:
            raise RigError(Code.DiskStateCorrupt, f"{path}: {exc}") from exc
        except ValidationError as exc:
            raise RigError(Code.DiskStateCorrupt, f"{path}: {validation_problem(exc)}") from exc


class _OldStamp(WireModel):
    size_bytes: int
    mtime_ns: int
    ctime_ns: int


class _OldImage(WireModel):
    file: str
    closed: _OldStamp | None


def _from_format_1(body: object) -> object:
    """Convert a body of format 1, in which only a stand-alone image had a note of its clean close, to format 2."""
    if not isinstance(body, dict) or body.get("image") is None:
        return body
    image = _OldImage.model_validate(body["image"], strict=True)
    if image.closed is None:
        return body | {"image": image.file}
    stamp = {"file": image.file, "inode": None, **image.closed.model_dump()}
    return body | {"image": image.file, "closed": {"files": [stamp], "log": None}}


def _from_format_2(body: object) -> object:
    """Convert a body of format 2, with the path of the managed disk's folder (``store``), to format 3, with its id."""
    if not isinstance(body, dict):
        return body
    if "managed_disk" in body:
        raise _OldKeyError("'managed_disk': format 2 does not have this key")
    store = body.pop("store", None)
    if store is None:
        return body
    if not isinstance(store, str):
        raise _OldKeyError("'store': Input should be a valid string")
    return body | {"managed_disk": Path(store).name}


def _from_format_3(body: object) -> object:
    """Convert a body of format 3, in which no disk is encrypted, to format 4."""
    if isinstance(body, dict) and "key" in body:
        raise _OldKeyError("'key': formats before 4 do not have this key")
    return body
