"""The position counter: one 64-bit number for all disks of a host, drawn for every record.

A write that is issued after another was acknowledged always has the higher position, on whatever disk; so "all
records up to position P" is a consistent cut over every disk of the host.

Fault contract: the counter lives in a memory-mapped file, so a kill loses nothing.  After a power loss the file may
be old, so in each boot the counter begins past everything that can have been drawn in the one before
(``POWER_LOSS_JUMP``), and the file says so, durably, before the first position is drawn.  Layout: docs/formats/disk.md.
"""

from __future__ import annotations

import mmap
import os
import struct
import uuid
from pathlib import Path

from blockfs import boot, own_file, safe_files
from blockfs.durable import sync_folder
from blockfs.os_errors import naming
from cext._core import ffi, lib

POWER_LOSS_JUMP = 1 << 40
_U64 = struct.Struct("<Q")
_FILE = struct.Struct("<Q16s")
"""The newest position, and the boot in which it was drawn."""


class PositionCounter:
    """Draws positions, from any thread; other processes may read the file (:func:`read_position`).

    Without a file (``path`` is None) they begin anew with each counter.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._identity: own_file.Identity | None = None
        if path is None:
            self._map = mmap.mmap(-1, _FILE.size)
        else:
            self._map, self._identity = _mapped(path)
        self._buffer = ffi.from_buffer(self._map)
        self.address = ffi.cast("uint64_t *", self._buffer)
        """Where the disk engine draws from."""

    @property
    def value(self) -> int:
        """The newest position drawn (0: none yet)."""
        return int(lib.sr_position_value(self.address))

    def draw(self) -> int:
        """The next position."""
        return int(lib.sr_position_draw(self.address))

    def advance(self, at_least: int) -> None:
        """Never draw ``at_least`` or less again."""
        lib.sr_position_advance(self.address, at_least)

    def file_trouble(self) -> str | None:
        """The end of a sentence: what another program has done to the file; None: nothing."""
        return None if self.path is None else own_file.became(own_file.named(self.path), self._identity)

    def close(self) -> None:
        """Make the value durable and let go of the file; no disk may use it any more."""
        ffi.release(self._buffer)
        self._map.flush()
        self._map.close()


def _mapped(path: Path) -> tuple[mmap.mmap, own_file.Identity]:
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
        return mmap.mmap(fd, _FILE.size), own_file.opened(fd)
    finally:
        os.close(fd)


def read_position(path: Path) -> int:
    """The newest position drawn by the host that owns the file."""
    with path.open("rb") as file:
        return int(_U64.unpack_from(file.read(_FILE.size))[0])
