"""Writes to an area of a disk without a file system, as a load whose check compares each byte of the area with a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.loads.load import LoadPlace
from siterig.scenarios.loads.process_load import ProcessLoad, promises
from siterig.scenarios.workloads.ack_log import Ack
from siterig.scenarios.workloads.raw_areas import AREA_BYTES, NUMBER_BYTES, change


@dataclass(frozen=True, slots=True)
class RawTable:
    """A load of raw writes.

    Args:
        name: its name.
        seed: the seed of its changes.
        start: the first byte of its area.
        rate: changes a second.
    """

    name: str
    seed: str
    start: int
    rate: int


class AreaModel:
    """The contents of an area after each of its changes; asking for ascending numbers is quick."""

    def __init__(self, seed: str) -> None:
        self._seed = seed
        self._begin()

    def _begin(self) -> None:
        self._count = 0
        self._data = bytearray(AREA_BYTES)

    def _after(self, count: int) -> bytes:
        if count < self._count:
            self._begin()
        while self._count < count:
            self._count += 1
            made = change(self._seed, self._count)
            self._data[made.offset : made.offset + len(made.data)] = made.data
        self._data[:NUMBER_BYTES] = count.to_bytes(NUMBER_BYTES, "little")
        return bytes(self._data)

    def difference(self, area: bytes, count_max: int) -> str | None:
        """Compare an area with the changes up to the number in it, and the begin of the next one.

        Args:
            area: its bytes in the state.
            count_max: the highest number that it may have.

        Returns:
            The first difference in words, or None.
        """
        count = int.from_bytes(area[:NUMBER_BYTES], "little")
        if count > count_max:
            return f"the number of changes is {count}; at most {count_max} were made"
        expected, following = self._after(count), change(self._seed, count + 1)
        start, stop = following.offset, following.offset + len(following.data)
        if area[:start] != expected[:start]:
            return f"byte {_differs_at(area[:start], expected)} is wrong after change {count}"
        if area[stop:] != expected[stop:]:
            return f"byte {stop + _differs_at(area[stop:], expected[stop:])} is wrong after change {count}"
        made = _differs_at(area[start:stop], following.data)
        if area[start + made : stop] != expected[start + made : stop]:
            wrong = start + made + _differs_at(area[start + made : stop], expected[start + made : stop])
            return f"byte {wrong} is of change {count + 1} or wrong, and byte {start + made} before it is of change {count}"
        return None


def _differs_at(one: bytes, other: bytes) -> int:
    """Return the index of the first difference, or the length of ``one``."""
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), len(one))


class RawLoad(ProcessLoad[RawTable]):
    """Changes of an area of a disk; ``mounts`` names the file of the disk, not a mount point."""

    module = "raw_areas"

    def __init__(self, table: RawTable, disks: Sequence[str]) -> None:
        super().__init__(table, disks)
        self._model = AreaModel(table.seed)

    @property
    def area(self) -> range:
        """The bytes of the disk that it writes."""
        return range(self.table.start, self.table.start + AREA_BYTES)

    def arguments(self, place: LoadPlace) -> Sequence[object]:
        disk = place.mounts[self.disks[0]]
        return ["--disk", disk, "--start", self.table.start, "--seed", self.table.seed]

    def findings(
        self, mounts: Mapping[str, Path], folder: Path, acks: list[Ack], cut: int | None
    ) -> tuple[list[CheckFinding], frozenset[int]]:
        disk = mounts[self.disks[0]]
        fd = os.open(disk, os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = os.pread(fd, AREA_BYTES, self.table.start)
        finally:
            os.close(fd)
        if not found and self.table.start >= disk.stat().st_size:  # the state is older than the growth of the disk
            return promises("change", acks, frozenset(), cut), frozenset()
        if len(found) < AREA_BYTES:  # the area begins before the old end of the disk
            found += bytes(AREA_BYTES - len(found))
        count = int.from_bytes(found[:NUMBER_BYTES], "little")
        # A killed process may have made the change after the last acknowledged one.
        wrong = self._model.difference(found, max((ack.n for ack in acks), default=0) + 1)
        present = frozenset() if wrong is not None and count > len(acks) + 1 else frozenset(range(1, count + 1))
        text = (
            f"{count} changes, every byte as they leave it" if wrong is None else f"area at byte {self.table.start}: {wrong}"
        )
        return [CheckFinding("bytes", wrong is None, text), *promises("change", acks, present, cut)], present
