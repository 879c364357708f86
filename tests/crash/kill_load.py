"""Load on a mounted disk that remembers all acknowledged writes, until the disk's server is dead."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.disks.holes import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate, record_edges

AREA_BYTES = 4 << 20
"""The size of each writer's own part of the disk."""
PAGE_BYTES = 4096
_WRITE_BYTES = [1, 512, 4096, 4097, 16_384, 300_000]
_GONE = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ECANCELED, errno.ENODEV}
"""Errors that the kernel returns for a mount whose server is dead."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A request without an answer: ``data`` at ``offset``; only its first pages may be written, or records if ``whole``."""

    offset: int
    data: bytes
    whole: bool


class Area:
    """A part of a disk: ``sure`` is its expected content, except for the request that was ``in_flight`` at the kill."""

    def __init__(self, begin: int) -> None:
        self.begin = begin
        self.sure = bytearray(AREA_BYTES)
        self.in_flight: InFlight | None = None

    def check(self, found: bytes, where: str) -> None:
        """Check the content ``found`` on the recovered disk; it is the expected content from now on."""
        flight = self.in_flight
        if flight is not None and found != self.sure:
            end = flight.offset + len(flight.data)
            before = bytes(self.sure[flight.offset : end])
            pages = range(-flight.offset % PAGE_BYTES, len(before), PAGE_BYTES)
            inner = record_edges(flight.offset, len(before)) if flight.whole else pages
            edges = [0, len(before), *inner]
            now = found[flight.offset : end]
            assert now in [flight.data[:edge] + before[edge:] for edge in edges], f"{where}: torn at {flight.offset}"
            self.sure[flight.offset : end] = now
        self.in_flight = None
        if found != self.sure:
            at = next(i for i, (a, b) in enumerate(zip(found, self.sure, strict=True)) if a != b)
            raise AssertionError(f"{where}: byte {at} of the area at {self.begin} is not what was acknowledged")


class Writer(threading.Thread):
    """A thread that writes to an area of the disk ``path``, direct or buffered, with discards and zeros if ``holes``."""

    def __init__(self, path: Path, area: Area, seed: int, *, direct: bool, holes: bool) -> None:
        super().__init__()
        self._path = path
        self._area = area
        self._rng = random.Random(seed)
        self._direct = direct
        self._holes = holes
        self.acknowledged = 0
        self.synced = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            fd = os.open(self._path, os.O_RDWR | (os.O_DIRECT if self._direct else 0))
        except OSError as exc:
            self._end(exc)
            return
        try:
            with mmap.mmap(-1, AREA_BYTES // 4) as buffer:  # aligned to pages, as O_DIRECT needs it
                while True:
                    self._step(fd, buffer)
        except BaseException as exc:
            self._end(exc)
        finally:
            with contextlib.suppress(OSError):  # close, too, reports that the server is dead
                os.close(fd)

    def _end(self, exc: BaseException) -> None:
        if not isinstance(exc, OSError) or exc.errno not in _GONE:
            self.error = exc

    def _step(self, fd: int, buffer: mmap.mmap) -> None:
        rng = self._rng
        if rng.random() < 0.05:
            os.fsync(fd)
            self.synced += 1
            return
        length = rng.choice(_WRITE_BYTES)
        offset = rng.randrange(AREA_BYTES - 2 * length)
        if self._direct:
            offset, length = offset // PAGE_BYTES * PAGE_BYTES, -(-length // PAGE_BYTES) * PAGE_BYTES
        if self._holes and rng.random() < 0.15:
            self._do(InFlight(offset, bytes(length), whole=True), lambda: self._zero(fd, offset, length))
            return
        data = rng.randbytes(length)
        buffer[:length] = data
        self._do(InFlight(offset, data, whole=False), lambda: self._write(fd, memoryview(buffer)[:length], offset))

    def _zero(self, fd: int, offset: int, length: int) -> None:
        mode = self._rng.choice([PUNCH_HOLE, ZERO_RANGE]) | KEEP_SIZE
        if error := fallocate(fd, mode, self._area.begin + offset, length):
            raise OSError(error, os.strerror(error))

    def _write(self, fd: int, data: memoryview, offset: int) -> None:
        with data:
            if os.pwrite(fd, data, self._area.begin + offset) < len(data):  # a kill between two requests of one write
                raise OSError(errno.EIO, "short write")

    def _do(self, flight: InFlight, step: Callable[[], None]) -> None:
        self._area.in_flight = flight
        step()
        self._area.sure[flight.offset : flight.offset + len(flight.data)] = flight.data
        self._area.in_flight = None
        self.acknowledged += 1
