"""Load on two disks while the rig's roles are killed, and the expected contents of the disks at any position.

Each writer owns 1 MiB of either disk.  In a ring of slots it writes numbered blocks, to ``a`` and, after the
acknowledgement, to ``b``: so the newest number determines the content of all slots.  After the ring it writes blocks of
any size at any offset, and remembers the acknowledged bytes.  When the disks' server is killed, a writer waits for the
next server and continues, like an application that retries.
"""

from __future__ import annotations

import os
import random
import struct
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from siterig.blockfs.changelog.position_counter import read_position
from siterig.cext.checksums import is_zero

PAGE = 4096
SLOTS = 64
NOISE_OFFSET = SLOTS * PAGE
AREA = 1 << 20
NOISE_BYTES = AREA - NOISE_OFFSET
DISKS = ("a", "b")
FILL_OFFSET = 16 << 20
FILL_BYTES = 24 << 20
"""The size of data that is written once, before the load, so that kills meet the initial replication."""
_HEAD = struct.Struct("<QQ")
_REOPEN_S_MAX = 60.0


def block(writer: int, number: int) -> bytes:
    """Return the content of a numbered block; numbers begin at 1."""
    return _HEAD.pack(writer, number) + random.Random(writer << 40 | number).randbytes(PAGE - _HEAD.size)


def ring(writer: int, newest: int) -> bytes:
    """Return the content of the ring after the block ``newest``."""
    slots = [bytes(PAGE)] * SLOTS
    for number in range(max(1, newest - SLOTS + 1), newest + 1):
        slots[number % SLOTS] = block(writer, number)
    return b"".join(slots)


def newest_in(data: bytes) -> int:
    """Return the highest number in a ring."""
    return max(int(_HEAD.unpack_from(data, slot * PAGE)[1]) for slot in range(SLOTS))


def first_difference(found: bytes, wanted: bytes) -> str | None:
    """Describe the first difference of two images, or return None if they are equal."""
    if found == wanted:
        return None
    if len(found) != len(wanted):
        return f"{len(found)} bytes instead of {len(wanted)}"
    offset = next(i for i, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
    pages = sum(found[i : i + PAGE] != wanted[i : i + PAGE] for i in range(0, len(found), PAGE))
    return f"first difference at offset {offset}, {pages} pages in all"


@dataclass
class Acks:
    """Positions around the numbered writes of one writer to one disk; number n is at index n - 1.

    The record of a write has a position above ``before`` and up to ``after``; one in flight has no ``after`` yet.
    """

    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


class _StoppedError(Exception):
    """The load ended while the disks were not there."""


class Writer(threading.Thread):
    """A writer, which holds ``lock`` during each round: with the lock, nothing is in flight."""

    def __init__(self, number: int, folder: Path, position: Path, seed: int, *, pace_s: float) -> None:
        super().__init__(daemon=True)
        self.number = number
        self.lock = threading.Lock()
        self.acks = {disk: Acks() for disk in DISKS}
        self.noise = {disk: bytearray(NOISE_BYTES) for disk in DISKS}
        self.reopened = 0
        self.error: BaseException | None = None
        self._paths = {disk: folder / f"{disk}.img" for disk in DISKS}
        self._position = position
        self._rng = random.Random(seed)
        self._pace_s = pace_s
        self._base = number * AREA
        self._fds: dict[str, int] = {}
        self._ending = threading.Event()

    def stop(self) -> None:
        """Stop after the current round."""
        self._ending.set()
        self.join(timeout=_REOPEN_S_MAX)
        assert not self.is_alive(), "the writer hangs in a disk"
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        number = 0
        try:
            while not self._ending.wait(self._pace_s):
                with self.lock:
                    number += 1
                    for disk in DISKS:
                        self._numbered(disk, number)
                    if self._rng.random() < 0.3:
                        self._anywhere(self._rng.choice(DISKS))
        except _StoppedError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self._close()

    def _numbered(self, disk: str, number: int) -> None:
        self.acks[disk].before.append(read_position(self._position))
        data, offset = block(self.number, number), self._base + number % SLOTS * PAGE
        while True:  # repeated until it is acknowledged: a page is written as a whole or not at all
            try:
                written = os.pwrite(self._fd(disk), data, offset)
                if self._rng.random() < 0.02:
                    os.fsync(self._fd(disk))
            except OSError:
                self._reopen()
                continue
            assert written == PAGE
            break
        self.acks[disk].after.append(read_position(self._position))

    def _anywhere(self, disk: str) -> None:
        data = self._rng.randbytes(self._rng.choice([1, 512, 4096, 4097, 16_384]))
        at = self._rng.randrange(0, NOISE_BYTES - len(data))
        offset, noise = self._base + NOISE_OFFSET + at, self.noise[disk]
        try:
            written = os.pwrite(self._fd(disk), data, offset)
        except OSError:
            written = 0
        noise[at : at + written] = data[:written]
        if written < len(data):
            self._settle(disk, at + written, data[written:])

    def _settle(self, disk: str, at: int, data: bytes) -> None:
        """Find how many whole pages of an interrupted write are on the disk, and expect that content from now on."""
        while True:
            self._reopen()
            try:
                found = os.pread(self._fd(disk), len(data), self._base + NOISE_OFFSET + at)
            except OSError:
                continue
            break
        noise = self.noise[disk]
        before = bytes(noise[at : at + len(data)])
        edges = [0, len(data), *range(-at % PAGE, len(data), PAGE)]
        assert found in [data[:edge] + before[edge:] for edge in edges], f"torn write of {len(data)} bytes at {at} of {disk}"
        noise[at : at + len(data)] = found

    def _fd(self, disk: str) -> int:
        if disk not in self._fds:
            self._fds[disk] = os.open(self._paths[disk], os.O_RDWR | os.O_CLOEXEC)
        return self._fds[disk]

    def _close(self) -> None:
        for fd in self._fds.values():
            try:
                os.close(fd)
            except OSError:
                continue  # close, too, reports that the server is dead
        self._fds.clear()

    def _reopen(self) -> None:
        """Wait for the disks' next server."""
        self._close()
        deadline = time.monotonic() + _REOPEN_S_MAX
        while time.monotonic() < deadline:
            if self._ending.is_set():
                raise _StoppedError
            try:
                for disk in DISKS:
                    self._fd(disk)
            except OSError:
                self._close()
                time.sleep(0.02)  # another process starts again: there is nothing to wait for here
            else:
                self.reopened += 1
                return
        raise TimeoutError(f"the disks {list(self._paths.values())} did not come back within {_REOPEN_S_MAX:g} s")


@dataclass
class Still:
    """The disks' contents while nothing was written, valid for every position from ``first`` to ``last``."""

    first: int
    last: int
    images: dict[str, bytes]


class Load:
    """All writers together."""

    def __init__(self, folder: Path, position: Path, seed: int, *, writers: int = 2, pace_s: float = 0.01) -> None:
        self._position = position
        self._folder = folder
        self._fill = random.Random(seed).randbytes(FILL_BYTES)
        self.writers = [Writer(number, folder, position, seed + number, pace_s=pace_s) for number in range(writers)]

    @property
    def area_bytes(self) -> int:
        """The end of the range that the load writes on each disk."""
        return len(self.writers) * AREA

    def fill(self) -> None:
        """Write the data that never changes."""
        for disk in DISKS:
            with (self._folder / f"{disk}.img").open("r+b") as file:
                file.seek(FILL_OFFSET)
                file.write(self._fill)

    def rest_is_as_it_was(self, data: bytes) -> bool:
        """Return True if a disk is unchanged after the load's area."""
        with memoryview(data) as view:
            before, filled = view[self.area_bytes : FILL_OFFSET], view[FILL_OFFSET : FILL_OFFSET + FILL_BYTES]
            return is_zero(before) and filled == self._fill and is_zero(view[FILL_OFFSET + FILL_BYTES :])

    def acknowledged(self) -> int:
        """Return the number of acknowledged pairs of all writers."""
        return sum(len(writer.acks["b"].after) for writer in self.writers)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the load during the block."""
        for writer in self.writers:
            writer.start()
        try:
            yield
        finally:
            for writer in self.writers:
                writer.stop()

    def pause(self) -> None:
        """Pause the load, and return when nothing is in flight."""
        for writer in self.writers:
            writer.lock.acquire()

    def resume(self) -> None:
        """Continue after a pause."""
        for writer in self.writers:
            writer.lock.release()

    def image(self, disk: str) -> bytes:
        """Return the acknowledged content below ``area_bytes``, while the load is paused."""
        parts = []
        for writer in self.writers:
            parts.append(ring(writer.number, len(writer.acks[disk].after)))
            parts.append(bytes(writer.noise[disk]))
        return b"".join(parts)

    def still(self) -> Still:
        """Return the contents that every position has from now until :meth:`end_still`, while the load is paused."""
        position = read_position(self._position)
        return Still(position, position, {disk: self.image(disk) for disk in DISKS})

    def end_still(self, still: Still) -> None:
        """Extend a still up to now, while the load is still paused."""
        still.last = read_position(self._position)

    def check_cut(self, images: dict[str, bytes], position: int) -> list[str]:
        """Check the rings at ``position``, and return their errors: exactly the writes up to it must be there."""
        wrong = []
        for writer in self.writers:
            base = writer.number * AREA
            newest = {}
            for disk in DISKS:
                where = f"writer {writer.number}, disk {disk}, position {position}"
                data = images[disk][base : base + NOISE_OFFSET]
                newest[disk] = newest_in(data)
                difference = first_difference(data, ring(writer.number, newest[disk]))
                if difference is not None:
                    wrong.append(f"{where}: up to number {newest[disk]}: {difference}")
                acks = writer.acks[disk]
                sure, possible = bisect_right(acks.after, position), bisect_left(acks.before, position)
                if not sure <= newest[disk] <= possible:
                    wrong.append(f"{where}: newest number is {newest[disk]}; it must be {sure} to {possible}")
            if not newest["b"] <= newest["a"] <= newest["b"] + 1:
                wrong.append(f"writer {writer.number}, position {position}: {newest['a']} on a, {newest['b']} on b")
        return wrong
