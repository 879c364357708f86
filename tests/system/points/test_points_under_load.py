"""Tests of points taken while disks are written to: a managed disk's state equals a copy of the source at that time.

The copy is read from a snapshot of both disks at one position, while the writers continue and one disk grows; the
managed disks receive the contents of the logs.  test_mounted_under_load.py tests points by their tags, in a rig and
through its mount.  ``SITERIG_POINTS`` is the number of points (default 6); ``SITERIG_SEED`` repeats the writers'
choices.
"""

from __future__ import annotations

import math
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_view
from siterig.blockfs.transfer.codec import pack
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_stream import SyncStream
from tests.support.disks.disk_server_process import VM, DiskServer
from tests.support.disks.holes import punch

pytestmark = pytest.mark.system

POINTS = int(os.environ.get("SITERIG_POINTS", "6"))
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
DISK_BYTES = 4 << 30
"""A sparse size, so large that the log between two points stays below half of it."""
AREA_BYTES = 24 << 20
"""The size of the range at the start of each disk that is written to again and again, so that writes overlap."""
GROWN_BYTES = DISK_BYTES + (16 << 20)
WRITES_BEFORE_POINT, WRITES_AFTER_CUT = 40, 20
"""The least number of writes of each writer before a point, and the most while the managed disks receive the log."""
GROWN_AREA = (DISK_BYTES - (4 << 20), 12 << 20)
"""The range of ``os`` that is written to after it has grown (offset, length); other ranges are never written."""
NAMES = ("os", "data")
STEP_BYTES = 1 << 20


def areas_of(size_bytes: int) -> list[tuple[int, int]]:
    """Return the ranges that are written to on a disk of a size."""
    return [(0, AREA_BYTES), *([GROWN_AREA] if size_bytes > DISK_BYTES else [])]


def steps(size_bytes: int) -> list[int]:
    return [at for start, length in areas_of(size_bytes) for at in range(start, start + length, STEP_BYTES)]


class Writer(threading.Thread):
    """A thread that writes pieces of all sizes at any byte, with some discards, until :meth:`end`."""

    def __init__(self, disk: Path, area: tuple[int, int], rng: random.Random) -> None:
        super().__init__()
        self._disk, self._area, self._rng = disk, area, rng
        self.error: BaseException | None = None
        self.done = 0
        self._limit: float = math.inf
        self._changed = threading.Condition()

    def run(self) -> None:
        try:
            with self._disk.open("r+b", buffering=0) as disk:
                while self._may_write():
                    length = self._rng.choice((512, 4096, 4096, 4096, 65536, self._rng.randrange(1, 200_000)))
                    offset = self._area[0] + self._rng.randrange(self._area[1] - length)
                    if self._rng.random() < 0.1:
                        punch(disk.fileno(), offset, length)
                    else:
                        assert os.pwrite(disk.fileno(), self._rng.randbytes(length), offset) == length
                    with self._changed:
                        self.done += 1
                        self._changed.notify_all()
        except BaseException as exc:
            with self._changed:
                self.error = exc
                self._changed.notify_all()

    def _may_write(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self.done < self._limit or self._limit == 0)
            return self._limit > 0

    def go_on(self, at_most: float = math.inf) -> int:
        """Allow this many more writes, and return the number of writes so far."""
        with self._changed:
            self._limit = self.done + at_most
            self._changed.notify_all()
            return self.done

    def wait_for(self, done: int) -> None:
        """Wait until this many writes are done, or one has failed."""
        with self._changed:
            self._changed.wait_for(lambda: self.done >= done or self.error is not None)

    def end(self) -> None:
        with self._changed:
            self._limit = 0
            self._changed.notify_all()
        self.join()


class Replica:
    """The managed disk of one of the server's disks."""

    def __init__(self, server: DiskServer, name: str, folder: Path, snapshot: dict[str, Any]) -> None:
        """Create the managed disk from a snapshot of the empty disks."""
        self._server, self.name = server, name
        self._disk_id = next(d["disk_id"] for d in server.call("list_disks") if d["name"] == name)
        self.folder = folder / self._disk_id
        self.store = ManagedDiskStore.create(self.folder, disk_id=self._disk_id, size_bytes=DISK_BYTES, created_ns=1)
        stream = SyncStream(
            folder,
            disk_id=self._disk_id,
            generation=1,
            disk_size_bytes=DISK_BYTES,
            position=snapshot["position"],
            time_ns=snapshot["time_ns"],
            first_seq=next(disk["first_seq"] for disk in snapshot["disks"] if disk["disk_id"] == self._disk_id),
        )
        part, path = stream.finish()
        self.store.apply_part(part, pack(path))

    def apply_sent(self) -> None:
        """Apply all closed segments, which the site then forgets."""
        for found in self._server.call("segments", vm=VM):
            if found["disk_id"] != self._disk_id:
                continue
            part = PartName(self._disk_id, found["generation"], "log", found["first_seq"], found["last_seq"])
            self.store.apply_part(part, pack(Path(found["path"])))
            self._server.call("trim_log", disk_id=self._disk_id, generation=found["generation"], last_seq=found["last_seq"])

    def compare(self, position: int, copy: Path) -> None:
        """Compare the state at ``position`` with a copy; outside of the written ranges there is no data."""
        view = open_view(self.folder, position)
        try:
            assert view.size_bytes == copy.stat().st_size
            areas = areas_of(view.size_bytes)
            for offset, length in view.data_ranges():
                assert any(start <= offset and offset + length <= start + area for start, area in areas)
            with copy.open("rb") as file:
                for offset in steps(view.size_bytes):
                    found, expected = view.pread(offset, STEP_BYTES), os.pread(file.fileno(), STEP_BYTES, offset)
                    if found != expected:
                        first = next(i for i in range(STEP_BYTES) if found[i] != expected[i])
                        pytest.fail(
                            f"SITERIG_SEED={SEED}: {self.name} at position {position}: byte {offset + first} is "
                            f"{found[first]:#04x}; in the copy of the source it is {expected[first]:#04x}"
                        )
        finally:
            view.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[DiskServer]:
    server = DiskServer(tmp_path, disk_bytes=DISK_BYTES, front_end="server")
    try:
        server.start()
        yield server
    finally:
        server.clean_up()
        shutil.rmtree(tmp_path, ignore_errors=True)


def copy_source(server: DiskServer, name: str, target: Path) -> None:
    """Copy the written ranges of a snapshot to a file of the snapshot's size."""
    with (server.mountpoint / VM / f"{name}.snapshot").open("rb") as source, target.open("xb") as file:
        size = os.fstat(source.fileno()).st_size
        file.truncate(size)
        for offset in steps(size):
            os.pwrite(file.fileno(), os.pread(source.fileno(), STEP_BYTES, offset), offset)


def test_every_point_equals_the_source_at_that_time(server: DiskServer, tmp_path: Path) -> None:
    print(f"SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    stores = tmp_path / "stores"
    stores.mkdir()
    empty = server.call("begin_snapshot", vm=VM)
    server.call("end_snapshot", vm=VM)
    replicas = [Replica(server, name, stores, empty) for name in NAMES]
    writers = [Writer(server.disk(name), (0, AREA_BYTES), random.Random(rng.random())) for name in NAMES for _ in range(2)]
    for writer in writers:
        writer.start()
    points: list[int] = []
    try:
        for number in range(POINTS):
            if number == POINTS // 3:
                server.call("resize_disk", vm=VM, disk="os", size_bytes=GROWN_BYTES)
                writers.append(Writer(server.disk("os"), GROWN_AREA, random.Random(rng.random())))
                writers[-1].start()
            for writer, done in [(writer, writer.go_on()) for writer in writers]:
                writer.wait_for(done + WRITES_BEFORE_POINT)
            position = server.call("begin_snapshot", vm=VM)["position"]
            for name in NAMES:
                copy_source(server, name, tmp_path / f"{name}-{position}")
            server.call("end_snapshot", vm=VM)
            points.append(position)
            server.cut()
            for writer in writers:  # otherwise each point would have more to apply than the one before, on a slow machine
                writer.go_on(WRITES_AFTER_CUT)
            for replica in replicas:
                replica.apply_sent()
    finally:
        for writer in writers:
            writer.end()
    assert [writer.error for writer in writers] == [None] * len(writers)
    assert all(writer.done > POINTS for writer in writers)
    server.cut()
    for replica in replicas:
        replica.apply_sent()
        for position in points:
            replica.compare(position, tmp_path / f"{replica.name}-{position}")
        oldest = points[len(points) // 2]
        assert replica.store.compactor.compact(oldest) <= oldest
        for position in points[len(points) // 2 :]:
            replica.compare(position, tmp_path / f"{replica.name}-{position}")
        replica.store.close()
