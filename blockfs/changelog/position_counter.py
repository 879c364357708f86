"""The position counter: a 64-bit number over all disks of a host, drawn for every record; a log sequence number (LSN).

A write that is issued after another write was acknowledged always gets the higher position, on any disk.  So all records up
to position P are a consistent cut over every disk of the host.

Fault contract
--------------
A position is in a memory-mapped file before it is used, so a kill loses nothing.  After a power loss the file can be old.
Therefore the counter begins in each boot above all positions that the boot before can have drawn (``POWER_LOSS_JUMP``), and
this value is durable before the first position is drawn.  If another program truncates the file, or its medium fails, the
counter continues in memory, and no position is drawn twice.  The disks' logs end then
(:mod:`siterig.blockfs.disk.disk_guard`), because a kill would now lose positions; the file is rewritten at the end.  Layout:
docs/reference/formats/disk.md.
"""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
from pathlib import Path

from siterig.blockfs.core import boot
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder, write_atomically
from siterig.blockfs.files.os_errors import naming, raised_by_c
from siterig.blockfs.watch import own_file
from siterig.cext._core import ffi, lib

POWER_LOSS_JUMP = 1 << 40
_U64 = struct.Struct("<Q")
_FILE = struct.Struct("<Q16s")
"""The newest position, and the boot in which it was drawn."""


class PositionCounter:
    """Draws positions, in any thread; other processes may read the file (:func:`read_position`).

    Without a file (``path`` is None) each counter begins at 0.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        fd = -1 if path is None else _opened(path)
        self._identity = None if path is None else own_file.opened(fd)
        made = lib.sr_positions_new(fd)
        if made == ffi.NULL:
            error = raised_by_c(-ffi.errno)
            if fd >= 0:
                os.close(fd)
            raise error
        self.c = ffi.gc(made, lib.sr_positions_free)
        """The counter in C, from which the disks draw."""

    @property
    def value(self) -> int:
        """The newest position (0: none was drawn yet)."""
        return int(lib.sr_position_value(self.c))

    def draw(self) -> int:
        """Return the next position."""
        return int(lib.sr_position_draw(self.c))

    def advance(self, at_least: int) -> None:
        """Make all later positions higher than ``at_least``."""
        lib.sr_position_advance(self.c, at_least)

    @property
    def trouble(self) -> str | None:
        """Return why a kill would lose positions now, because of a change of the file; None if it would not."""
        if not lib.sr_positions_lost(self.c):
            return None
        return f"{self.path} was truncated by another program, or its medium failed"

    def file_trouble(self) -> str | None:
        """Return a change of the file by another program as the end of a sentence; None if there is none."""
        return None if self.path is None else own_file.became(own_file.named(self.path), self._identity)

    def close(self) -> None:
        """Make the value durable and close the file; no disk may use it any more."""
        lost, value = self.trouble is not None, self.value
        ffi.release(self.c)
        if lost and self.path is not None:
            with contextlib.suppress(OSError):  # then the next counter begins at the end of the logs
                write_atomically(self.path, _FILE.pack(value, uuid.UUID(boot.current_boot_id()).bytes))


def _opened(path: Path) -> int:
    fd = safe_files.open_file(path, os.O_RDWR | os.O_CREAT)
    try:
        found = os.pread(fd, _FILE.size, 0)
        value, drawn_in = _FILE.unpack(found.ljust(_FILE.size, b"\0"))
        now = uuid.UUID(boot.current_boot_id()).bytes
        if drawn_in != now:
            with naming(path):
                os.pwrite(fd, _FILE.pack(value + POWER_LOSS_JUMP if found else 0, now), 0)
                os.fsync(fd)
            sync_folder(path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_position(path: Path) -> int:
    """Return the newest position of the host that owns the file."""
    with path.open("rb") as file:
        return int(_U64.unpack_from(file.read(_FILE.size))[0])
