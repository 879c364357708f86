"""A logged disk of a disk host's folder, with what its guest knows of it, and the check that nothing differs in silence."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from siterig.blockfs.changelog.disk_log import LogPolicy, find_segments
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.changelog.segment import RecordType, SegmentReader, scan_tail
from siterig.blockfs.contracts.shares import WhenFull
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions

SIZE_BYTES = 1 << 20
SECTOR_BYTES = 512


@dataclass
class LoggedDisk:
    """Disk ``web01/os`` in ``root``, tracked; ``errors`` has the errors that its guest and its maintenance met."""

    root: Path
    when_full: WhenFull = "refuse"
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.positions = PositionCounter(self.root / "position")
        self.paths = DiskPaths(self.root / "web01", "web01", "os")
        is_new = not self.paths.folder.exists()
        if is_new:
            self.paths.folder.mkdir()
            make_raw(self.paths, SIZE_BYTES)
        self._rng = random.Random(1)
        self._data, self._unknown = bytearray(SIZE_BYTES), bytearray(SIZE_BYTES // SECTOR_BYTES)
        self.open()
        if is_new:
            self.disk.tracking.start(new_generation=False)

    def open(self) -> None:
        """Open the disk, as a start of its host does."""
        policy = LogPolicy(kept_share_max=None, when_full=self.when_full)
        self.disk = Disk.open(self.paths, DiskOptions(self.positions, policy=policy), None)

    def close(self) -> None:
        """Release everything, as a kill does."""
        if self.disk.is_open:
            self.disk.abandon()
        self.positions.close()

    def write(self, count: int) -> None:
        """Write random ranges; the effect of a write that fails is unknown."""
        for _ in range(count):
            length = self._rng.randrange(1, 100) * SECTOR_BYTES
            at = self._rng.randrange(0, SIZE_BYTES - length) // SECTOR_BYTES * SECTOR_BYTES
            data = self._rng.randbytes(length)
            if self._try(partial(self.disk.write, at, data)):
                self._data[at : at + length] = data
                self._note(at, length, b"\0")
            else:
                self._note(at, length, b"\1")

    def _note(self, at: int, length: int, value: bytes) -> None:
        first, count = at // SECTOR_BYTES, length // SECTOR_BYTES
        self._unknown[first : first + count] = value * count

    def _try(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except OSError as exc:
            self.errors.append(str(exc.strerror))
            return False
        return True

    def work(self) -> None:
        """Write, flush, and begin some segments."""
        self.write(6)
        self._try(self.disk.flush_now)
        for _ in range(4):
            self.write(5)
            self._try(self.disk.tracking.maintain)
        self._try(self.disk.flush_now)
        self.write(3)

    def check(self) -> str | None:
        """Check the disk after it was opened again.

        Its bytes are those that the guest wrote.  If no resync is due, the replay of its log gives the same bytes.

        Returns:
            The reason of the resync that is due; None if none is.
        """
        found = self.disk.read(0, SIZE_BYTES)
        assert self._same(found, self._data), "the disk does not have the bytes that its guest wrote"
        if self.disk.state.needs_resync is None:
            assert self.disk.tracking.active
            assert self.replayed() == found, "no resync is due, and the log does not give the disk"
        return self.disk.state.needs_resync

    def _same(self, found: bytes, wanted: bytearray) -> bool:
        return all(
            unknown or found[at : at + SECTOR_BYTES] == wanted[at : at + SECTOR_BYTES]
            for unknown, at in zip(self._unknown, range(0, SIZE_BYTES, SECTOR_BYTES), strict=True)
        )

    def segments(self) -> list[Path]:
        """Return the files of the log, oldest first."""
        return [path for _, path in find_segments(self.paths.folder, "os")]

    def replayed(self) -> bytes:
        """Return the bytes that the whole log gives; the disk began with zeros."""
        image, seq = bytearray(SIZE_BYTES), 1
        for path in self.segments():
            with SegmentReader(path) as reader:
                assert reader.header.first_seq == seq, f"{path}: record {seq} is missing"
                for record in scan_tail(reader).records:
                    seq = record.seq + 1
                    if record.type is RecordType.WRITE:
                        image[record.offset : record.offset + record.length] = reader.payload(record)
        return bytes(image)
