"""The workload of a disk without a file system: ``python -m siterig.scenarios.workloads.raw_areas --disk FILE ...``.

Step N changes an area of the disk: a write of any size at any byte, or a discard; then it writes N to the first bytes of the
area, and is acknowledged.  The change follows from the seed and N alone.  So the number in any state of the disk says which
bytes the area must have: all changes up to that number, and at most a part of the next one.  A process that was killed
between the two writes does the same change again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.cext.linux import punch_hole
from siterig.scenarios.workloads.ack_log import Ack, AckWriter
from siterig.scenarios.workloads.worker import Steps, add_common_options, work

AREA_BYTES = 4 << 20
NUMBER_BYTES = 8
_FIRST_BYTE = 4096
"""The first byte that changes may touch: the block before it is for the number."""
_DISCARDS = 0.15
_SYNC_EVERY = 16


@dataclass(frozen=True, slots=True)
class AreaChange:
    """A change: the contents that the area gets at an offset; a discard leaves zeros."""

    offset: int
    data: bytes
    discard: bool


def change(seed: str, n: int) -> AreaChange:
    """Return the change of step ``n``: 8 bytes, whole sectors and blocks, or any number of bytes."""
    rng = random.Random(f"{seed}/{n}")  # noqa: S311 (no secrets)
    length = rng.choice((8, 512, 4096, 4096, rng.randrange(1, 5000), rng.randrange(1, 100_000)))
    offset = rng.randrange(_FIRST_BYTE, AREA_BYTES - length)
    if rng.random() < 0.5:
        offset -= offset % 512 if length % 512 == 0 else offset % 8
    discard = rng.random() < _DISCARDS
    return AreaChange(offset, bytes(length) if discard else rng.randbytes(length), discard)


def _write(fd: int, data: bytes, offset: int) -> None:
    while data:
        done = os.pwrite(fd, data, offset)
        data, offset = data[done:], offset + done


class RawAreas(Steps):
    """One area of a disk, and the acknowledgement file."""

    failures = (OSError,)

    def __init__(self, disk: Path, start: int, seed: str, acks: AckWriter, position: Path) -> None:
        """Open the disk.

        Args:
            disk: the file of the disk.
            start: the first byte of the area.
            seed: the seed of all changes.
            acks: the acknowledgement log.
            position: the position file of the disk's host.
        """
        self.acknowledged = 0
        self._start, self._seed, self._position = start, seed, position
        self._fd = os.open(disk, os.O_RDWR | os.O_CLOEXEC)
        self._acks = acks
        self.newest = int.from_bytes(os.pread(self._fd, NUMBER_BYTES, start), "little")

    def step(self) -> None:
        n = self.newest + 1
        begin = read_position(self._position)
        made = change(self._seed, n)
        if made.discard:
            punch_hole(self._fd, self._start + made.offset, len(made.data))
        else:
            _write(self._fd, made.data, self._start + made.offset)
        _write(self._fd, n.to_bytes(NUMBER_BYTES, "little"), self._start)
        if n % _SYNC_EVERY == 0:
            os.fdatasync(self._fd)
        self._acks.append(Ack(n, begin, read_position(self._position), SYSTEM_CLOCK.wall_ns()))
        self.newest = self.acknowledged = n

    def close(self) -> None:
        self._acks.close()
        with contextlib.suppress(OSError):
            os.close(self._fd)


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m siterig.scenarios.workloads.raw_areas")
    parser.add_argument("--disk", type=Path, required=True)
    parser.add_argument("--start", type=int, required=True)
    parser.add_argument("--seed", required=True)
    options = add_common_options(parser).parse_args()

    def make(acks: AckWriter) -> RawAreas:
        return RawAreas(options.disk, options.start, options.seed, acks, options.position)

    return work(make, RawAreas.failures, options)


if __name__ == "__main__":
    sys.exit(main())
