"""Requests of a guest on an open disk, as both front ends make them, and the check that the log has the same bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import trio

from siterig.blockfs.changelog.disk_log import LogPolicy, find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.cext._core import ffi, lib
from tests.support.disks.log_oracle import KINDS, Model, records

DISCARD = 0x3
ZERO = 0x11


class GuestDisk:
    """A tracked disk of zeros with a handle; all results are those of the C functions: -errno or a count."""

    def __init__(self, folder: Path, *, name: str = "os", size: int = 1 << 20, positions: PositionCounter) -> None:
        paths = DiskPaths(folder, "web01", name)
        make_raw(paths, size)
        self._folder = folder
        self.disk = Disk.open(paths, DiskOptions(positions, policy=LogPolicy(kept_share_max=None)), None)
        self.disk.tracking.start(new_generation=False)
        self.faults = self.disk.faults
        self.handle = int(lib.sr_handle_open(self.disk.c, lib.SR_HANDLE_DISK, 1, b"", -1, 0))

    def read(self, offset: int, length: int) -> bytes | int:
        """Return the bytes, or -errno."""
        data = bytearray(length)
        done = int(lib.sr_handle_read(self.handle, ffi.from_buffer(data), length, offset))
        return done if done < 0 else bytes(data[:done])

    def write(self, offset: int, data: bytes) -> int:
        """Write bytes; return their number."""
        return int(lib.sr_handle_write(self.handle, ffi.from_buffer(data), len(data), offset))

    def flush(self) -> int:
        """Flush; return 0."""
        return int(lib.sr_handle_flush(self.handle))

    def discard(self, offset: int, length: int) -> int:
        """Discard a range; return 0."""
        return int(lib.sr_handle_fallocate(self.handle, DISCARD, offset, length))

    def zero(self, offset: int, length: int) -> int:
        """Zero a range; return 0."""
        return int(lib.sr_handle_fallocate(self.handle, ZERO, offset, length))

    @property
    def contents(self) -> bytes:
        """The bytes that the disk really holds."""
        return self.disk.read(0, self.disk.size_bytes)

    def logged(self) -> list[tuple[str, int, int]]:
        """Return (kind, offset, length) of all records."""
        return [
            (KINDS[found.kind].lower(), found.offset, found.length) for path in self._written() for found in records(path)
        ]

    def logged_positions(self) -> list[tuple[int, int]]:
        """Return (position, length) of all records."""
        return [(found.position, found.length) for path in self._written() for found in records(path)]

    def check_log(self) -> None:
        """Assert that a replay of the log gives the bytes of the disk."""
        path = self._folder / f"{self.disk.paths.name}.replayed"
        path.unlink(missing_ok=True)
        Model(path, self.disk.size_bytes).replay(self._written())
        assert path.read_bytes() == self.contents

    def _written(self) -> list[Path]:
        """Copy the log's segments without their preallocated ends."""
        copies = []
        for number, path in find_segments(self.disk.paths.folder, self.disk.paths.name):
            copies.append(self._folder / f"{path.name}.copy")
            copies[-1].write_bytes(path.read_bytes()[: self.disk.tracking.segment_bytes(number, path)])
        return copies

    def close(self) -> None:
        """Close handle and disk as a kill does."""
        lib.sr_handle_close(self.handle)
        self.disk.abandon()


class Request(threading.Thread):
    """A request of a guest in a thread of its own."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.result: object = None
        self.start()

    def run(self) -> None:
        """Make the request."""
        self.result = self._call()

    async def done(self) -> object:
        """Return the result, once it is there."""
        with trio.fail_after(60):
            await trio.to_thread.run_sync(self.join, abandon_on_cancel=True)
        return self.result


async def until_waiting(guest: GuestDisk, rule: int, count: int) -> None:
    """Wait until a rule keeps so many operations waiting."""
    with trio.fail_after(60):
        while guest.faults.counts(rule).waiting < count:
            await trio.lowlevel.checkpoint()


def pattern(length: int, seed: int = 1) -> bytes:
    """Return bytes in which each sector of 512 bytes is different."""
    sectors = range(-(-length // 512))
    return b"".join(bytes([seed]) * 8 + at.to_bytes(4, "little") * 126 for at in sectors)[:length]
