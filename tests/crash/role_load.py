"""Load on two disks for kills of the rig's roles, and what must be on them at any position.

Each writer owns 1 MiB of either disk.  In a ring of slots it writes numbered blocks, to ``a`` and, when that is
acknowledged, to ``b``: what a slot holds follows from the newest number alone.  Beside the ring it writes blocks of any
size anywhere, of which it remembers the bytes that were acknowledged.  When the disks' server is killed it waits for the
next one and goes on, as an application would that retries.
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
"""Written once, before the load: it makes the initial replication long enough to be met by kills."""
_HEAD = struct.Struct("<QQ")
_REOPEN_S_MAX = 60.0


def block(writer: int, number: int) -> bytes:
    """Content of a numbered block; numbers begin at 1."""
    return _HEAD.pack(writer, number) + random.Random(writer << 40 | number).randbytes(PAGE - _HEAD.size)


def ring(writer: int, newest: int) -> bytes:
    """The whole ring when ``newest`` was written last."""
    slots = [bytes(PAGE)] * SLOTS
    for number in range(max(1, newest - SLOTS + 1), newest + 1):
        slots[number % SLOTS] = block(writer, number)
    return b"".join(slots)


def newest_in(data: bytes) -> int:
    """The highest number in a ring."""
    return max(int(_HEAD.unpack_from(data, slot * PAGE)[1]) for slot in range(SLOTS))


def first_difference(found: bytes, wanted: bytes) -> str | None:
    """Where two images differ first, in words; None if they are equal."""
    if found == wanted:
        return None
    if len(found) != len(wanted):
        return f"{len(found)} bytes instead of {len(wanted)}"
    offset = next(i for i, (one, other) in enumerate(zip(found, wanted, strict=True)) if one != other)
    pages = sum(found[i : i + PAGE] != wanted[i : i + PAGE] for i in range(0, len(found), PAGE))
    return f"first difference at offset {offset}, {pages} pages in all"


@dataclass
class Acks:
    """Numbered writes of one writer to one disk: number n is at index n - 1.

    The record of a write has a position above ``before`` and up to ``after``; one in flight has no ``after`` yet.
    """

    before: list[int] = field(default_factory=list)
    after: list[int] = field(default_factory=list)


class _StoppedError(Exception):
    """The load was ended while the disks were away."""


class Writer(threading.Thread):
    """One writer; ``lock`` is held for one round, so who holds it sees everything acknowledged and nothing in flight."""

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
        """End after the round."""
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
        while True:  # written again where it is not known to be there: a page is written whole or not at all
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
        """Of a write that was cut off, the first so many whole pages are there: from now on it is what the disk says."""
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
                continue  # the server is dead: close reports that too
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
                time.sleep(0.02)  # another process comes back: there is nothing here to wait on
            else:
                self.reopened += 1
                return
        raise TimeoutError(f"the disks {list(self._paths.values())} did not come back within {_REOPEN_S_MAX:g} s")


@dataclass
class Still:
    """What the disks held while nothing was written: valid for every position from ``first`` to ``last``."""

    first: int
    last: int
    images: dict[str, bytes]


class Load:
    """The writers together."""

    def __init__(self, folder: Path, position: Path, seed: int, *, writers: int = 2, pace_s: float = 0.01) -> None:
        self._position = position
        self._folder = folder
        self._fill = random.Random(seed).randbytes(FILL_BYTES)
        self.writers = [Writer(number, folder, position, seed + number, pace_s=pace_s) for number in range(writers)]

    @property
    def area_bytes(self) -> int:
        """The disks are written below this offset only."""
        return len(self.writers) * AREA

    def fill(self) -> None:
        """Write what stays as it is."""
        for disk in DISKS:
            with (self._folder / f"{disk}.img").open("r+b") as file:
                file.seek(FILL_OFFSET)
                file.write(self._fill)

    def rest_is_as_it_was(self, data: bytes) -> bool:
        """Whether a disk holds what it did before the load, beyond the load's area."""
        with memoryview(data) as view:
            before, filled = view[self.area_bytes : FILL_OFFSET], view[FILL_OFFSET : FILL_OFFSET + FILL_BYTES]
            return is_zero(before) and filled == self._fill and is_zero(view[FILL_OFFSET + FILL_BYTES :])

    def acknowledged(self) -> int:
        """Pairs, over all writers."""
        return sum(len(writer.acks["b"].after) for writer in self.writers)

    @contextmanager
    def running(self) -> Iterator[None]:
        """The load for the time of the block."""
        for writer in self.writers:
            writer.start()
        try:
            yield
        finally:
            for writer in self.writers:
                writer.stop()

    def pause(self) -> None:
        """Returns when nothing is in flight."""
        for writer in self.writers:
            writer.lock.acquire()

    def resume(self) -> None:
        """Go on."""
        for writer in self.writers:
            writer.lock.release()

    def image(self, disk: str) -> bytes:
        """What was acknowledged, below ``area_bytes``; while paused."""
        parts = []
        for writer in self.writers:
            parts.append(ring(writer.number, len(writer.acks[disk].after)))
            parts.append(bytes(writer.noise[disk]))
        return b"".join(parts)

    def still(self) -> Still:
        """While paused: what must be there at every position until :meth:`end_still`."""
        position = read_position(self._position)
        return Still(position, position, {disk: self.image(disk) for disk in DISKS})

    def end_still(self, still: Still) -> None:
        """Still paused: up to here nothing has changed."""
        still.last = read_position(self._position)

    def check_cut(self, images: dict[str, bytes], position: int) -> list[str]:
        """What is wrong with the rings of a state at ``position``; empty: exactly the writes up to it are there."""
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
