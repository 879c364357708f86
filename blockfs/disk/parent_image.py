"""The image under a thin disk: it is used in place, read-only, and must stay as it was when the disk was created.

Fault contract: the parent is never written to.  Its size, the time of its last write and a digest of samples of its bytes
are noted when the disk is created, and compared whenever the disk is opened; size and time also while it is open.  If the
parent is missing or differs, the disk is ``BrokenVhdChain``, because its bytes would be wrong.  One change is not noticed:
bytes that are in no sample, changed by a program that then resets the time of the last write.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from siterig.blockfs.contracts.control import BackingImage
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.disk.disk_state import DiskState, ParentNote
from siterig.blockfs.files import user_files
from siterig.blockfs.images import image_file, vhd
from siterig.blockfs.images.image_bytes import ImageBytes
from siterig.blockfs.images.image_kind import WANTED
from siterig.blockfs.layers.layer import Layer, OverlayLayer, RawLayer

CODE = Code.BrokenVhdChain
_SAMPLES, _SAMPLE_BYTES = 64, 4096
_REMEDY = "put back the file as it was, or delete the disk"


def describe_parent(backing: BackingImage) -> ParentNote:
    """Return the note of an image that becomes a parent.

    Raises:
        RigError: ``ImageUnusable``, ``ImageBusy``, ``VhdCorrupt``, ``InvalidDiskSize``.
    """
    path = Path(backing.path)
    fd = _opened(path)
    try:
        found = os.fstat(fd)
        file = ImageBytes(path, fd, found.st_size)
        size_bytes = vhd.read_fixed(file) if backing.format == "vhd" else found.st_size
        if size_bytes == 0 or size_bytes % SECTOR_BYTES:
            raise RigError(Code.InvalidDiskSize, f"{path}: has {size_bytes} bytes; a parent has whole sectors of 512")
        return ParentNote(
            path=str(path),
            size_bytes=size_bytes,
            file_bytes=found.st_size,
            mtime_ns=found.st_mtime_ns,
            digest=_digest(fd, found.st_size),
        )
    finally:
        os.close(fd)


def open_parent(note: ParentNote) -> RawLayer:
    """Open the bytes of a parent; raise ``BrokenVhdChain`` if it is missing or changed."""
    path = Path(note.path)
    try:
        fd = _opened(path)
    except RigError as error:
        raise RigError(CODE, f"{error.message}; it is the parent of the disk: {_REMEDY}") from error
    try:
        _check(note, fd)
        return RawLayer(path, size_bytes=note.size_bytes, fd=fd)
    except BaseException:
        os.close(fd)
        raise


def _check(note: ParentNote, fd: int) -> None:
    why = why_broken(note, fd)
    if why is None and _digest(fd, note.file_bytes) != note.digest:
        why = f"{note.path}: was changed, though its size and the time of its last write are the same: {_REMEDY}"
    if why is not None:
        raise RigError(CODE, why)


def broken_chain(state: DiskState, layer: Layer) -> str | None:
    """Return the text of a ``BrokenVhdChain``: how the parent of an open thin disk changed; else None."""
    if state.parent is None or not isinstance(layer, OverlayLayer) or layer.lower_fd is None:
        return None
    return why_broken(state.parent, layer.lower_fd)


def why_broken(note: ParentNote, fd: int) -> str | None:
    """Return how an open parent changed; None if its size and the time of its last write are the same.

    The check uses the open file only, so it does not wait for the file system that has its name.
    """
    found = os.fstat(fd)
    if found.st_nlink == 0:
        return f"{note.path}: was deleted or replaced; it is the parent of the disk: {_REMEDY}"
    if (found.st_size, found.st_mtime_ns) == (note.file_bytes, note.mtime_ns):
        return None
    return (
        f"{note.path}: was changed since the disk was made over it (it had {note.file_bytes} bytes, last written at "
        f"{note.mtime_ns} ns; it has {found.st_size}, {found.st_mtime_ns}): {_REMEDY}"
    )


def _opened(path: Path) -> int:
    """Open an image read-only, locked against writers as long as it is open."""
    fd = user_files.open_file(path, os.O_RDONLY, code=Code.ImageUnusable, purpose=WANTED)
    try:
        locked = image_file.try_lock(path, fd, shared=True)
    except BaseException:
        os.close(fd)
        raise
    if not locked:
        os.close(fd)
        raise RigError(Code.ImageBusy, f"{path}: another program writes to it; a parent must not change")
    return fd


def _digest(fd: int, size_bytes: int) -> str:
    """Return the digest of samples at even distances, with the first and the last bytes among them."""
    found = hashlib.blake2b(digest_size=16)
    last = max(size_bytes - _SAMPLE_BYTES, 0)
    for number in range(_SAMPLES):
        found.update(os.pread(fd, _SAMPLE_BYTES, last * number // (_SAMPLES - 1)))
    return found.hexdigest()
