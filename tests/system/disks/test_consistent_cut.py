"""Tests that every position is a consistent cut over two disks.

Each writer writes a number to the first disk and, once that is acknowledged, to the second disk.  So at every
position, and for each writer, the second disk is never ahead of the first, and at most one number behind it.  A
tag that is taken meanwhile contains all writes that were acknowledged before it, and none that were begun after it.

``SITERIG_POSITIONS`` (default 6000) is the total number of writes; ``SITERIG_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks.disk_server_process import DiskServer, StartServer
from tests.support.disks.log_oracle import TAG, WRITE, Model, records
from tests.support.disks.shadowed_disk import ShadowedDisk

pytestmark = pytest.mark.system

POSITIONS = int(os.environ.get("SITERIG_POSITIONS", "6000"))
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
WRITERS = 6
TAGS = 8
SLOT_BYTES = 4096
DISK_BYTES = 4 << 30
FIRST, SECOND = "os", "data"


class Writer(threading.Thread):
    """A thread that writes 1, 2, 3, ... to its slot of the first disk, and each number then to the second disk.

    Writers with an even number write past the page cache.  ``begun`` is the newest number whose first write has begun;
    ``done`` is the newest number whose second write was acknowledged.
    """

    def __init__(self, server: DiskServer, number: int, last: int) -> None:
        super().__init__()
        self.begun = self.done = 0
        self._offset = number * SLOT_BYTES
        self._last = last
        self._flags = os.O_RDWR | (0 if number % 2 else os.O_DIRECT)
        self._paths = (server.disk(FIRST), server.disk(SECOND))

    def run(self) -> None:
        first, second = (os.open(path, self._flags) for path in self._paths)
        with mmap.mmap(-1, SLOT_BYTES) as page:
            for number in range(1, self._last + 1):
                page[:8] = number.to_bytes(8, "little")
                self.begun = number
                os.pwrite(first, page, self._offset)
                os.pwrite(second, page, self._offset)
                self.done = number
        os.close(first)
        os.close(second)


def numbers_in(image: Path) -> list[int]:
    """Return each writer's number on a disk."""
    with image.open("rb") as file:
        return [int.from_bytes(file.read(SLOT_BYTES)[:8], "little") for _ in range(WRITERS)]


def written(paths: list[Path]) -> Iterator[tuple[int, int, int]]:
    """Yield (position, writer, number) of every write in a log."""
    for path in paths:
        for record in records(path):
            if record.kind == WRITE:
                yield record.position, record.offset // SLOT_BYTES, int.from_bytes(record.payload[:8], "little")


def tag_positions(paths: list[Path]) -> dict[str, int]:
    """Return the position that each tag of a log names."""
    found = {}
    for path in paths:
        for record in records(path):
            if record.kind == TAG:
                tag = json.loads(bytes(record.payload))
                found[tag["tag_id"]] = tag["position"]
    return found


def test_no_position_shows_the_second_write_without_the_first(start_server: StartServer) -> None:
    print(f"SITERIG_POSITIONS={POSITIONS} SITERIG_SEED={SEED}")
    server = start_server(DISK_BYTES)
    disks = {name: ShadowedDisk(server, name) for name in (FIRST, SECOND)}
    writers = [Writer(server, number, POSITIONS // WRITERS // 2) for number in range(WRITERS)]
    tags = []
    for writer in writers:
        writer.start()
    for number in range(TAGS):
        while min(writer.done for writer in writers) < POSITIONS // WRITERS // 2 * number // TAGS:
            assert all(writer.is_alive() or writer.done for writer in writers)
        before = [writer.done for writer in writers]
        position = server.cut()
        tags.append((position, before, [writer.begun for writer in writers]))
    for writer in writers:
        writer.join()
    for disk in disks.values():
        disk.check()

    logs = {name: [Path(segment.path) for segment in disk.closed()] for name, disk in disks.items()}
    assert tag_positions(logs[FIRST]) == tag_positions(logs[SECOND])
    assert {position for position, _, _ in tags} <= set(tag_positions(logs[FIRST]).values())
    checked = check_every_position(*(list(written(logs[name])) for name in (FIRST, SECOND)))
    print(f"{checked} positions checked")
    assert checked == WRITERS * (POSITIONS // WRITERS // 2) * 2

    rng = random.Random(SEED)
    for position, before, begun in tags + [(rng.randrange(tags[-1][0]), [], []) for _ in range(TAGS)]:
        first, second = (numbers_at(server, logs[name], position) for name in (FIRST, SECOND))
        assert all(b <= a <= b + 1 for a, b in zip(first, second, strict=True)), (position, first, second)
        if before:
            assert all(done <= b for done, b in zip(before, second, strict=True)), "an acknowledged write is missing"
            assert all(a <= last for a, last in zip(first, begun, strict=True)), "a write that was begun later is in the cut"


def check_every_position(first: list[tuple[int, int, int]], second: list[tuple[int, int, int]]) -> int:
    """Merge two logs by position, check both disks after each record, and return the number of records."""
    rows = sorted([(*row, 0) for row in first] + [(*row, 1) for row in second])
    assert len({position for position, *_ in rows}) == len(rows), "a position is used twice"
    state = [[0, 0] for _ in range(WRITERS)]
    for position, writer, number, disk in rows:
        assert state[writer][disk] == number - 1, (position, writer, number)
        state[writer][disk] = number
        a, b = state[writer]
        assert b <= a <= b + 1, f"SITERIG_SEED={SEED}: at position {position} writer {writer} has {a} and {b}"
    return len(rows)


def numbers_at(server: DiskServer, segments: list[Path], position: int) -> list[int]:
    """Return each writer's number on a disk that was replayed up to a position."""
    image = Model(server.folder / "image", server.disk_bytes)
    image.replay(segments, upto=position)
    found = numbers_in(image.path)
    image.path.unlink()
    return found
