"""The on-disk format of the Linux device mapper's ``log-writes`` target: reader and writer.

The layout is that of Linux ``drivers/md/dm-log-writes.c`` (``struct log_write_super``, ``struct log_write_entry``),
described in ``Documentation/admin-guide/device-mapper/log-writes.rst``.  QEMU's ``block/blklogwrites.c`` writes it too, and
``src/log-writes/replay-log.c`` of xfstests replays it.  Page: docs/reference/formats/dm-log-writes.md.

Fault contract
--------------
The format has no checksums: a flipped bit in data, a sector number or a length is detected only if the result is invalid.
An invalid entry raises ``RigError('DmLogCorrupt')`` with file, entry and reason.  A log that is written here gets its final
name only when it is complete and durable.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.files import block_device, safe_files
from siterig.blockfs.files.durable_io import rename_new, sync_folder
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.safe_files import temporary_name
from siterig.blockfs.files.user_files import open_file

MAGIC = 0x6A736677736872
VERSION = 1
SECTOR_BYTES_MAX = 1 << 23
ENTRY_BYTES = 32
MARK_BYTES_MAX = SECTOR_BYTES - ENTRY_BYTES - 1
"""The kernel's limit for the name of a mark, which it ends with a zero byte."""
DISCARD_BYTES_MAX = 128 << 20
"""Limit for one DISCARD: ``replay-log`` skips a longer one if the target is a file."""
OFFSET_MAX = 1 << 62

_SUPER = struct.Struct("<QQQI")
_ENTRY = struct.Struct("<QQQQ")


class EntryFlag(IntFlag):
    """The kind of an entry; no flag means a plain write.

    FLUSH happens before the entry's data is written; FUA applies to the data alone.
    """

    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8
    METADATA = 16


_KNOWN_FLAGS = int(EntryFlag.FLUSH | EntryFlag.FUA | EntryFlag.DISCARD | EntryFlag.MARK | EntryFlag.METADATA)


@dataclass(frozen=True, slots=True)
class DmLogEntry:
    """One entry; ``offset`` and ``length`` are bytes on the disk, ``data_offset`` is in the log (a DISCARD has no data)."""

    index: int
    flags: EntryFlag
    offset: int
    length: int
    mark: bytes
    data_offset: int

    @property
    def has_data(self) -> bool:
        """True if ``length`` bytes are stored at ``data_offset``."""
        return bool(self.length) and not self.flags & EntryFlag.DISCARD


class DmLogReader:
    """Reads a log; a context manager.  ``entry_count`` comes from the super block; later entries are not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        wanted = "a log is a file or a block device"
        self._fd = open_file(path, os.O_RDONLY, code=Code.LogUnreadable, purpose=wanted, devices=True)
        try:
            self._size = block_device.size_bytes(self._fd)
            self._read_super()
        except OSError as exc:
            os.close(self._fd)
            raise RigError(Code.LogUnreadable, f"{path}: cannot be read: {reason(exc, path)}") from exc
        except BaseException:
            os.close(self._fd)
            raise

    def _read_super(self) -> None:
        raw = os.pread(self._fd, _SUPER.size, 0)
        if len(raw) < _SUPER.size:
            raise self._bad(f"super block has {len(raw)} bytes; it must have {_SUPER.size}")
        magic, version, self.entry_count, self.sector_bytes = _SUPER.unpack(raw)
        if magic != MAGIC:
            raise self._bad(f"magic is {magic:#x}; a dm-log-writes log begins with {MAGIC:#x}")
        if version != VERSION:
            raise RigError(Code.LogVersion, f"{self.path}: dm-log-writes version {version}; this siterig reads {VERSION}")
        power_of_two = self.sector_bytes & (self.sector_bytes - 1) == 0
        if not power_of_two or not SECTOR_BYTES <= self.sector_bytes <= SECTOR_BYTES_MAX:
            raise self._bad(
                f"sector size is {self.sector_bytes} bytes; it must be a power of two from {SECTOR_BYTES} to "
                f"{SECTOR_BYTES_MAX}"
            )

    def _bad(self, why: str) -> RigError:
        return RigError(Code.DmLogCorrupt, f"{self.path}: dm-log-writes log is corrupt: {why}")

    def __enter__(self) -> DmLogReader:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def size_bytes(self) -> int:
        """Size of the log."""
        return self._size

    def entries(self) -> Iterator[DmLogEntry]:
        """Yield all entries in order.

        Raises:
            RigError: ``DmLogCorrupt`` at the first invalid entry.
        """
        at = self.sector_bytes
        for index in range(self.entry_count):
            if at + self.sector_bytes > self._size:
                raise self._bad(f"super block counts {self.entry_count} entries; the file ends in entry {index}")
            entry = self._parse(index, at)
            at = entry.data_offset + (entry.length if entry.has_data else 0)
            yield entry

    def _parse(self, index: int, at: int) -> DmLogEntry:
        raw = self._pread(at, self.sector_bytes)
        sector, sectors, flags, data_bytes = _ENTRY.unpack_from(raw)
        where = f"entry {index} at byte {at}"
        if flags & ~_KNOWN_FLAGS:
            raise self._bad(f"{where}: flags {flags:#x} are unknown; known are {_KNOWN_FLAGS:#x}")
        if not flags and not sectors:
            raise self._bad(f"{where}: is a write of nothing")
        offset, length = sector * self.sector_bytes, sectors * self.sector_bytes
        if offset + length > OFFSET_MAX:
            raise self._bad(f"{where}: {sectors} sectors at {sector} are beyond any disk")
        flag = EntryFlag(flags)
        mark = b""
        if flag & EntryFlag.MARK:
            if sectors or flag != EntryFlag.MARK:
                raise self._bad(f"{where}: MARK has flags {flags:#x} and {sectors} sectors; it has none but its own")
            if data_bytes > self.sector_bytes - ENTRY_BYTES:
                raise self._bad(f"{where}: mark of {data_bytes} bytes; at most {self.sector_bytes - ENTRY_BYTES}")
            mark = raw[ENTRY_BYTES : ENTRY_BYTES + data_bytes]
        elif data_bytes > length:
            raise self._bad(f"{where}: {data_bytes} bytes of data in {sectors} sectors")
        if any(raw[ENTRY_BYTES + len(mark) :]):
            raise self._bad(f"{where}: is not followed by zeros")
        entry = DmLogEntry(index, flag, offset, length, mark, at + self.sector_bytes)
        if entry.has_data and entry.data_offset + length > self._size:
            raise self._bad(f"{where}: {length} bytes of data run past the end of the file")
        return entry

    def _pread(self, at: int, length: int) -> bytes:
        pieces = []
        while length:
            piece = os.pread(self._fd, length, at)
            if not piece:
                raise self._bad(f"ends before byte {at + length}")
            pieces.append(piece)
            at += len(piece)
            length -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def data(self, entry: DmLogEntry, start: int, length: int) -> bytes:
        """Return ``length`` bytes of the entry's data from byte ``start``."""
        return self._pread(entry.data_offset + start, length)


class DmLogWriter:
    """Writes a new log under a temporary name; :meth:`finish` renames it.  Offsets and lengths are whole sectors."""

    def __init__(self, path: Path) -> None:
        if os.path.lexists(path):
            raise self._exists(path)
        self.path = path
        self.entry_count = 0
        self._tmp = path.with_name(temporary_name(path.name))
        self._end = SECTOR_BYTES
        try:
            with safe_files.held(path.parent) as folder:
                folder.remove_leftovers(path.name)
                self._fd = folder.open(self._tmp.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except OSError as exc:
            raise RigError(Code.LogUnwritable, f"{path}: cannot be created: {reason(exc, path)}") from exc

    @staticmethod
    def _exists(path: Path) -> RigError:
        return RigError(Code.LogExists, f"{path}: exists already")

    def _entry(self, flags: int, offset: int, length: int, data: bytes = b"", mark: bytes = b"") -> None:
        # A write of zeros has a hole for data: the file grows by ftruncate.
        sectors = length // SECTOR_BYTES
        head = _ENTRY.pack(offset // SECTOR_BYTES, sectors, flags, len(mark)) + mark
        view = memoryview(head.ljust(SECTOR_BYTES, b"\0") + data)
        at = self._end
        while view:
            done = os.pwrite(self._fd, view, at)
            view = view[done:]
            at += done
        self._end += SECTOR_BYTES + (0 if flags & EntryFlag.DISCARD else length)
        self.entry_count += 1

    def write(self, offset: int, data: bytes) -> None:
        """Add a write of ``data``."""
        if data:
            self._entry(0, offset, len(data), data)

    def zero(self, offset: int, length: int, *, step: int = 16 << 20) -> None:
        """Add writes of zeros, at most ``step`` bytes each.

        The format has no entry for zeros, and ``replay-log`` reads one write as a whole.
        """
        for at in range(offset, offset + length, step):
            self._entry(0, at, min(step, offset + length - at))

    def discard(self, offset: int, length: int) -> None:
        """Add discards."""
        for at in range(offset, offset + length, DISCARD_BYTES_MAX):
            self._entry(EntryFlag.DISCARD, at, min(DISCARD_BYTES_MAX, offset + length - at))

    def flush(self) -> None:
        """Add a flush."""
        self._entry(EntryFlag.FLUSH, 0, 0)

    def mark(self, name: bytes) -> None:
        """Add a mark of at most ``MARK_BYTES_MAX`` bytes."""
        self._entry(EntryFlag.MARK, 0, 0, mark=name)

    def finish(self) -> None:
        """Write the super block, make everything durable, and give the log its name.

        Raises:
            RigError: ``LogExists`` if the name is taken.
        """
        os.ftruncate(self._fd, self._end)
        os.pwrite(self._fd, _SUPER.pack(MAGIC, VERSION, self.entry_count, SECTOR_BYTES), 0)
        os.fsync(self._fd)
        try:
            rename_new(self._tmp, self.path)
        except FileExistsError:
            raise self._exists(self.path) from None
        sync_folder(self.path.parent)
        os.close(self._fd)

    def abandon(self) -> None:
        """Remove the unfinished log."""
        os.close(self._fd)
        self._tmp.unlink(missing_ok=True)
