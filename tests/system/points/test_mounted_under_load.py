"""Tests of points that are taken while a VM is written to and a disk grows: a mounted point shows all earlier writes.

Each writer has its own area, and after each change it stores the number of its changes there.  So the number in a
point says what the point must show: all changes up to that number, and at most a part of the next one.
``SITERIG_POINTS`` is the number of points (default 5); ``SITERIG_SEED`` repeats the writers' choices.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import MountedPoint, RecoveryPoint
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.testing.testbed import Testbed
from tests.support.disks.holes import punch
from tests.support.disks.log_oracle import data_ranges
from tests.support.rigs.jobs import ended
from tests.support.rigs.protected_vm import floors, retain

pytestmark = pytest.mark.system

POINTS = int(os.environ.get("SITERIG_POINTS", "5"))
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
MIB = 1 << 20
DISK_BYTES = 1 << 30
GROWN_BYTES = DISK_BYTES + 64 * MIB
AREA_BYTES = 6 * MIB
BLOCK = 4096
COUNT_BYTES = 8
LINE_BYTES = 16
"""A managed disk stores whole lines: a discard that covers a part of one writes its rest."""
DIVIDED_BYTES = 65536
"""A longer discard that does not begin and end between lines writes only its first and last line, and is a hole between."""
PACE_S = 0.005

Change = tuple[int, bytes, bool]
"""Offset in the area, the new contents, and whether it is a discard."""


def changes(seed: float) -> Iterator[Change]:
    """Yield writes of all sizes, and discards, which overlap; the area's first block is for the number."""
    rng = random.Random(seed)
    while True:
        length = rng.choice((512, 4096, 4096, 4096, 65536, rng.randrange(1, 200_000)))
        offset = rng.randrange(BLOCK, AREA_BYTES - length)
        discard = rng.random() < 0.15
        yield offset, bytes(length) if discard else rng.randbytes(length), discard


class Writer(threading.Thread):
    """A thread that changes its area, and counts the changes there, until ``stop`` is set."""

    def __init__(self, disk: Path, start: int, seed: float, stop: threading.Event) -> None:
        super().__init__()
        self.disk, self.start_byte, self.seed = disk, start, seed
        self._stop_asked = stop
        self.begun = self.done = 0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            fd = os.open(self.disk, os.O_RDWR)
            try:
                for offset, data, discard in changes(self.seed):
                    self.begun += 1
                    if discard:
                        punch(fd, self.start_byte + offset, len(data))
                    else:
                        assert os.pwrite(fd, data, self.start_byte + offset) == len(data)
                    assert os.pwrite(fd, self.begun.to_bytes(COUNT_BYTES, "little"), self.start_byte) == COUNT_BYTES
                    self.done = self.begun
                    if self._stop_asked.wait(PACE_S):
                        return
            finally:
                os.close(fd)
        except BaseException as exc:
            self.error = exc


@dataclass
class Area:
    """The expected contents of a writer's area after ``count`` changes; ``blocks`` are those that may hold data."""

    writer: Writer
    count: int = 0
    data: bytearray = field(default_factory=lambda: bytearray(AREA_BYTES))
    blocks: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._changes = changes(self.writer.seed)
        self._following = next(self._changes)

    def check(self, found: bytes, what: str) -> set[int]:
        """Check an area as a point shows it, and return the blocks that may hold data there."""
        self._advance(int.from_bytes(found[:COUNT_BYTES], "little"))
        offset, data, _ = self._following
        expected = bytes(self.data)
        stop = offset + len(data)
        assert found[:offset] == expected[:offset], f"{what}: wrong before byte {offset}, after change {self.count}"
        assert found[stop:] == expected[stop:], f"{what}: wrong from byte {stop} on, after change {self.count}"
        now, before = found[offset:stop], expected[offset:stop]
        made = next((i for i, pair in enumerate(zip(now, data, strict=True)) if pair[0] != pair[1]), len(data))
        assert now[made:] == before[made:], f"{what}: change {self.count + 1} at byte {offset} is there from byte {made} on"
        return self.blocks | _touched(offset, stop)

    def _advance(self, count: int) -> None:
        assert count >= self.count
        while self.count < count:
            offset, data, discard = self._following
            stop = offset + len(data)
            self.data[offset:stop] = data
            if discard and (len(data) > DIVIDED_BYTES or offset % LINE_BYTES == stop % LINE_BYTES == 0):
                self.blocks -= set(range(-(-offset // BLOCK), stop // BLOCK))
                self.blocks |= {at // BLOCK for at in (offset, stop) if at % LINE_BYTES}
            else:
                self.blocks |= _touched(offset, stop)
            self._following = next(self._changes)
            self.count += 1
            self.blocks.add(0)
        self.data[:COUNT_BYTES] = count.to_bytes(COUNT_BYTES, "little")


def _touched(start: int, stop: int) -> set[int]:
    return set(range(start // BLOCK, -(-stop // BLOCK)))


@dataclass
class Taken:
    """A point, the changes of each writer that were done before its request, and those begun before its answer."""

    point: RecoveryPoint
    done: dict[Writer, int]
    begun: dict[Writer, int]
    sizes: dict[str, int]


def check(taken: Taken, mounted: MountedPoint, areas: list[Area]) -> None:
    """Check that a mounted point shows all writes, and nothing else."""
    for disk in mounted.disks:
        path = Path(disk.path)
        assert path.parts[-4:] == ("recovery", "web01", mounted.name, f"{disk.name}.img")
        fd = os.open(path, os.O_RDONLY)
        try:
            assert os.fstat(fd).st_size == taken.sizes[disk.name]
            allowed: set[int] = set()
            for area in [area for area in areas if area.writer in taken.done and area.writer.disk.name == path.name]:
                writer, what = area.writer, f"SITERIG_SEED={SEED}: {taken.point.name}, {path.name}"
                start = writer.start_byte
                blocks = area.check(os.pread(fd, AREA_BYTES, start), f"{what}, area at byte {start}")
                assert taken.done[writer] <= area.count <= taken.begun[writer], what
                allowed |= {start // BLOCK + block for block in blocks}
            data = {block for begin, end in data_ranges(fd) for block in _touched(begin, end)}
            assert data <= allowed, f"SITERIG_SEED={SEED}: {taken.point.name}, {path.name}: data where nothing was written"
        finally:
            os.close(fd)


async def test_every_mounted_point_shows_the_writes_before_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    print(f"SITERIG_SEED={SEED}")
    rng, stop = random.Random(SEED), threading.Event()
    writers: list[Writer] = []
    sizes = {"os": DISK_BYTES, "data": DISK_BYTES}

    def begin(disk: Path, start: int) -> None:
        writers.append(Writer(disk, start, rng.random(), stop))
        writers[-1].start()

    # The folder has a short name: a socket is below it, and the kernel allows 107 bytes for the socket's path.
    async with Testbed.up(tmp_path_factory.mktemp("l")) as testbed:
        vault = testbed.vault
        specs = [DiskSpec(name=name, size_bytes=size) for name, size in sizes.items()]
        images = {disk.name: Path(disk.path) for disk in (await vault.create_vm(vm="web01", disks=specs)).disks}
        await ended(testbed, await vault.enable_protection(vm="web01", interval_s=2))
        points: list[Taken] = []
        mounted: dict[str, MountedPoint] = {}
        try:
            for image in images.values():
                begin(image, 0)
                begin(image, 100 * MIB)
            for number in range(POINTS):
                if number == POINTS // 2:
                    sizes["os"] = (await testbed.site.resize_disk(vm="web01", disk="os", size_bytes=GROWN_BYTES)).size_bytes
                    begin(images["os"], DISK_BYTES - 2 * MIB)  # across the old end
                done = {writer: writer.done for writer in writers}
                point = await vault.create_point(vm="web01", kind="CrashConsistent", name=f"point {number}")
                begun = {writer: writer.begun for writer in writers}
                points.append(Taken(point, done, begun, dict(sizes)))
                if number % 2:
                    mounted[point.id] = await vault.mount_point(vm="web01", point=point.id)
        finally:
            stop.set()
            for writer in writers:
                await trio.to_thread.run_sync(writer.join)
        assert [writer.error for writer in writers] == [None] * len(writers)
        assert all(writer.done > POINTS for writer in writers)
        assert sizes["os"] == GROWN_BYTES

        async def check_all(some: list[Taken]) -> None:
            areas = [Area(writer) for writer in writers]
            for taken in some:
                if taken.point.id not in mounted:
                    mounted[taken.point.id] = await vault.mount_point(vm="web01", point=taken.point.id)
                await trio.to_thread.run_sync(check, taken, mounted[taken.point.id], areas)

        await check_all(points)
        later = points[POINTS // 2 :]
        for state in mounted.values():
            await vault.unmount_point(vm="web01", name=state.name)
        mounted.clear()
        await retain(testbed, later[0].point.position)
        with trio.fail_after(60):
            while min(await floors(testbed)) <= points[0].point.position:  # noqa: ASYNC110 (in another process)
                await trio.sleep(0.1)
        await check_all(later)
        assert [disk.needs_resync for disk in await testbed.site.list_disks(vm="web01")] == [None, None]
