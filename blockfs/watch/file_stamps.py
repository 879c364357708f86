"""Detects changes of a disk's files by other programs between two openings.

Fault contract
--------------
A change log has all changes of a disk only if no other program changes the disk's files.  Therefore a stamp of each file is
recorded when a disk is closed cleanly, after its bytes are durable.  The stamp is compared when the disk is opened again,
before a byte is changed.

* Size, time of the last write, time of the last change and inode are equal: the file is the same.
* The size differs: the file was changed.
* A time or the inode differs (a copy, ``chmod``, ``touch``, or a change): the digest of the bytes decides.  A file with more
  data than :data:`DIGEST_BYTES_MAX` has no digest.  Then only a copy that kept the time of the last write counts as the same
  file.

After a kill there is no stamp.  Then the file must not be younger than the last write to it or to its log by more than
:data:`KILL_GRACE_S`.  Two changes are not detected: a change within that time, and a changed copy that replaced a file
without a digest and kept its time of the last write.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from siterig.blockfs.core.wire_model import Whole, WireModel
from siterig.blockfs.files import safe_files
from siterig.cext.checksums import is_zero

DIGEST_BYTES_MAX = 256 << 20
"""The most data, without holes, that gets a digest.  Reading more would make the end of a rig slow."""
KILL_GRACE_S = 10.0
"""The longest delay between the log record of a write and the write to the disk, on a busy host disk."""

_CHUNK_BYTES = 64 << 10
_DIGEST_BYTES = 16
_INODE_MASK = (1 << 63) - 1  # some file systems use the highest bit; the state file's numbers have 63 bits


class FileStamp(WireModel):
    """One file of a disk, as it was at one moment.  Times are in nanoseconds since 1970.

    ``inode`` is None if it is not known (state files of format 1).  ``digest`` is the digest of the file's bytes, or None if
    the file has too much data.
    """

    file: str
    size_bytes: Whole
    mtime_ns: int = Field(ge=-(1 << 63), lt=1 << 63)
    ctime_ns: int = Field(ge=-(1 << 63), lt=1 << 63)
    inode: Whole | None
    digest: str | None = Field(default=None, pattern=r"^[0-9a-f]{32}$")


def inode_of(status: os.stat_result) -> int:
    """Return the inode number in the form that stamps use."""
    return status.st_ino & _INODE_MASK


@dataclass(slots=True)
class DigestBudget:
    """Bytes that may still be read for digests while several disks are closed."""

    left_bytes: int = 1 << 30


def durable_stamp(path: Path, known: FileStamp | None, budget: DigestBudget) -> FileStamp:
    """Sync a file and return its stamp; size and times will be the same after a power loss.

    Args:
        path: the file.
        known: an older stamp; its digest is reused if the file has not changed since.
        budget: reduced by the bytes that are read.
    """
    fd = safe_files.open_named(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        found = os.fstat(fd)
        stamp = FileStamp(
            file=path.name,
            size_bytes=found.st_size,
            mtime_ns=found.st_mtime_ns,
            ctime_ns=found.st_ctime_ns,
            inode=inode_of(found),
        )
        if known is not None and known.digest is not None and known.model_copy(update={"digest": None}) == stamp:
            return known
        digest, read_bytes = _digest(fd, min(budget.left_bytes, DIGEST_BYTES_MAX))
        budget.left_bytes -= read_bytes
        return stamp.model_copy(update={"digest": digest})
    finally:
        os.close(fd)


def why_changed(path: Path, known: FileStamp) -> str | None:
    """Return why the file differs from the stamp ``known``; None if it does not."""
    try:
        fd = safe_files.open_named(path, os.O_RDONLY)
    except FileNotFoundError:
        return f"{path} is missing"
    try:
        return _why(path, fd, known)
    finally:
        os.close(fd)


def _why(path: Path, fd: int, known: FileStamp) -> str | None:
    found = os.fstat(fd)
    if found.st_size != known.size_bytes:
        return f"{path} had {known.size_bytes} bytes, and has {found.st_size}"
    same_write, same_inode = found.st_mtime_ns == known.mtime_ns, known.inode in (None, inode_of(found))
    if same_write and same_inode and found.st_ctime_ns == known.ctime_ns:
        return None
    if known.digest is not None:
        same_write = same_bytes = _digest(fd, known.size_bytes)[0] == known.digest
    else:
        same_bytes = not same_inode  # a copy, if it kept the time of the last write
    if not same_write:
        return f"{path} was written to, or replaced, since it was last closed"
    if not same_bytes:
        return f"{path} was replaced, or its owner, rights or name were changed, since it was last closed"
    return None


def _digest(fd: int, bytes_max: int) -> tuple[str | None, int]:
    """Return the digest of all chunks that are not zero, and the number of bytes read.

    Holes and stored zeros have the same digest.  The digest is None if the file has more than ``bytes_max`` bytes of data.
    """
    total = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    at = read_bytes = 0
    size = os.fstat(fd).st_size
    while at < size and (start := _next_data(fd, at)) is not None:
        at = max(at, start // _CHUNK_BYTES * _CHUNK_BYTES)
        chunk = _read_whole(fd, min(_CHUNK_BYTES, size - at), at)
        read_bytes += len(chunk)
        if read_bytes > bytes_max:
            return None, read_bytes
        if not is_zero(chunk):
            total.update(at.to_bytes(8, "little") + len(chunk).to_bytes(8, "little"))
            total.update(chunk)
        at += _CHUNK_BYTES
    return total.hexdigest(), read_bytes


def _next_data(fd: int, at: int) -> int | None:
    try:
        return os.lseek(fd, at, os.SEEK_DATA)
    except OSError:  # ENXIO: only a hole follows
        return None


def _read_whole(fd: int, length: int, at: int) -> bytes:
    data = b""
    while len(data) < length and (piece := os.pread(fd, length - len(data), at + len(data))):
        data += piece
    return data
