"""Tests of discards: they make holes, which take no space, and which tools for sparse copies see.

One front end, pyfuse3, has no fallocate and no lseek.  It reports that, and the data stays correct.
"""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disks.disk_server_process import CAN_MAKE_HOLES, StartServer
from tests.support.disks.guest import run
from tests.support.disks.holes import (
    COLLAPSE_RANGE,
    INSERT_RANGE,
    KEEP_SIZE,
    PUNCH_HOLE,
    ZERO_RANGE,
    fallocate,
    record_edges,
    seek,
)
from tests.support.disks.log_oracle import data_ranges
from tests.support.disks.shadowed_disk import ShadowedDisk
from tests.support.needs import needs_program

pytestmark = pytest.mark.system

SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
DISK_BYTES = 64 << 20


def allocated_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize(("mode", "record"), [(PUNCH_HOLE | KEEP_SIZE, "DISCARD"), (ZERO_RANGE | KEEP_SIZE, "ZERO")])
def test_a_discarded_range_reads_as_zeros_and_is_a_hole_and_a_record(
    start_server: StartServer, mode: int, record: str
) -> None:
    print(f"SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    server = start_server(DISK_BYTES)
    disk = ShadowedDisk(server, "os")
    expected = bytearray(rng.randbytes(8 << 20))
    can = server.front_end in CAN_MAKE_HOLES
    fd = os.open(server.os_disk, os.O_RDWR)
    try:
        os.pwrite(fd, expected, 0)
        before = allocated_bytes(disk.file)
        ranges = [(1 << 20, 4 << 20), (rng.randrange(6 << 20), rng.randrange(1, 70_000)), (DISK_BYTES - 512, 512)]
        for offset, length in ranges:
            assert fallocate(fd, mode, offset, length) == (0 if can else errno.EOPNOTSUPP)
            if can and offset < len(expected):
                expected[offset : offset + length] = bytes(length)
        assert os.pread(fd, len(expected) + 512, 0) == expected + bytes(512)
        os.fsync(fd)
    finally:
        os.close(fd)
    disk.check()
    records = sum(1 + len(record_edges(offset, length)) for offset, length in ranges)
    assert disk.model.counts[record] == (records if can else 0)
    if can:
        assert allocated_bytes(disk.file) <= before - (4 << 20)


def test_operations_that_no_disk_supports_are_refused(start_server: StartServer) -> None:
    server = start_server(DISK_BYTES)
    disk = ShadowedDisk(server, "os")
    fd = os.open(server.os_disk, os.O_RDWR)
    try:
        os.pwrite(fd, b"bytes", 4096)
        for mode, length in ((COLLAPSE_RANGE, 4096), (INSERT_RANGE, 4096), (PUNCH_HOLE, 4096)):
            assert fallocate(fd, mode, 0, length) == errno.EOPNOTSUPP
    finally:
        os.close(fd)
    disk.check()
    assert (disk.model.counts["WRITE"], server.os_disk.stat().st_size) == (1, DISK_BYTES)


def test_holes_are_where_the_disks_file_has_holes(start_server: StartServer) -> None:
    print(f"SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    server = start_server(DISK_BYTES)
    fd, file = os.open(server.os_disk, os.O_RDWR), os.open(server.backing("os"), os.O_RDONLY)
    try:
        for _ in range(20):
            os.pwrite(fd, rng.randbytes(rng.randrange(1, 300_000)), rng.randrange(DISK_BYTES - 300_000))
        places = [0, DISK_BYTES - 1, *(rng.randrange(DISK_BYTES) for _ in range(50)), *sum(data_ranges(file), ())]
        for offset in (place for place in places if place < DISK_BYTES):
            for whence in (os.SEEK_DATA, os.SEEK_HOLE):
                expected = seek(file, offset, whence)
                if server.front_end not in CAN_MAKE_HOLES:  # like a file without holes, which is always correct
                    expected = offset if whence == os.SEEK_DATA else DISK_BYTES
                assert seek(fd, offset, whence) == expected, offset
    finally:
        os.close(fd)
        os.close(file)


COPIES: dict[str, Callable[[Path, Path], str]] = {
    "cp --sparse=always": lambda disk, copy: run("cp", "--sparse=always", disk, copy),
    "cp --sparse=auto": lambda disk, copy: run("cp", "--sparse=auto", disk, copy),
    "qemu-img convert": lambda disk, copy: run("qemu-img", "convert", "-f", "raw", "-O", "raw", disk, copy),
    "qemu-img convert -T none": lambda disk, copy: run(
        "qemu-img", "convert", "-T", "none", "-f", "raw", "-O", "raw", disk, copy
    ),
}
FINDS_ZEROS_BY_ITSELF = set(COPIES) - {"cp --sparse=auto"}


@pytest.mark.parametrize("tool", [pytest.param(t, marks=needs_program("qemu-img")) for t in COPIES])
def test_a_sparse_copy_equals_the_disk_and_takes_no_more_space(start_server: StartServer, tmp_path: Path, tool: str) -> None:
    print(f"SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    server = start_server(DISK_BYTES)
    disk, copy = ShadowedDisk(server, "os"), server.folder / "copy"
    can = server.front_end in CAN_MAKE_HOLES
    fd = os.open(server.os_disk, os.O_RDWR)
    try:
        os.pwrite(fd, rng.randbytes(6 << 20), 10 << 20)
        os.pwrite(fd, bytes(2 << 20), 30 << 20)
        os.pwrite(fd, rng.randbytes(100), DISK_BYTES - 100)
        if can:
            assert fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 11 << 20, 2 << 20) == 0
        os.fsync(fd)
    finally:
        os.close(fd)
    COPIES[tool](server.os_disk, copy)
    disk.check()
    disk.model.check(copy)
    run("qemu-img", "compare", "-f", "raw", "-F", "raw", server.os_disk, copy)
    if can or tool in FINDS_ZEROS_BY_ITSELF:
        assert allocated_bytes(copy) <= allocated_bytes(disk.file) + (64 << 10)
    assert allocated_bytes(server.os_disk) == allocated_bytes(disk.file)
    if can:
        extents = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", server.os_disk))
        data = [(extent["start"], extent["start"] + extent["length"]) for extent in extents if extent["data"]]
        file = os.open(disk.file, os.O_RDONLY)
        try:
            assert data == list(data_ranges(file))
        finally:
            os.close(file)


@needs_program("qemu-img")
def test_a_disk_used_by_qemu_without_a_host_cache_replays(start_server: StartServer) -> None:
    print(f"SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    server = start_server(256 << 20)
    disk = ShadowedDisk(server, "os")
    commands = []
    for _ in range(200):
        sectors = rng.choice([1, 8, 9, 256, 2048])
        where = f"{rng.randrange(server.disk_bytes // 512 - sectors) * 512} {sectors * 512}"
        write = f"aio_write -P {rng.randrange(1, 256)} {where}"
        commands.append(rng.choice([write, write, write, f"aio_write -z {where}", f"aio_write -z -u {where}", "aio_flush"]))
        if rng.random() < 0.2:
            commands.append(f"discard {where}")
    words = [word for command in [*commands, "aio_flush", "flush"] for word in ("-c", command)]
    run("qemu-io", "-f", "raw", "-t", "none", "-d", "unmap", *words, server.os_disk)
    disk.check()
    assert disk.model.counts["WRITE"] > 50
    assert (disk.model.counts["DISCARD"] > 0) == (server.front_end in CAN_MAKE_HOLES)
