"""Tests of times, owner and mode of mounted disks: backup programs decide by them whether to read a disk."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.disks.disk_server_process import CAN_MAKE_HOLES, VM, DiskServer, StartServer
from tests.support.disks.guest import loop_device, run
from tests.support.disks.holes import KEEP_SIZE, PUNCH_HOLE, fallocate, memory

pytestmark = pytest.mark.system

MIB = 1 << 20


def write(path: Path, offset: int = 0, flags: int = 0) -> None:
    fd = os.open(path, os.O_RDWR | flags)
    try:
        assert os.pwritev(fd, [memory(4096, 1)], offset) == 4096
    finally:
        os.close(fd)


def write_by_map(path: Path) -> None:
    with path.open("r+b", buffering=0) as disk, mmap.mmap(disk.fileno(), 4096) as mapped:
        mapped[:5] = b"words"
        mapped.flush()


def write_by_loop(path: Path, *, direct_io: bool) -> None:
    with loop_device(path, direct_io=direct_io) as device:
        run("dd", "if=/dev/urandom", f"of={device}", "bs=4096", "count=1", "conv=fsync", "status=none")


def punch(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        assert fallocate(fd, PUNCH_HOLE | KEEP_SIZE, 0, 4096) == 0
    finally:
        os.close(fd)


def grow(path: Path) -> None:
    os.truncate(path, path.stat().st_size + MIB)


CHANGES: list[Callable[[Path], None]] = [
    write,
    lambda path: write(path, flags=os.O_DIRECT),
    lambda path: write(path, flags=os.O_SYNC),
    write_by_map,
    lambda path: write_by_loop(path, direct_io=True),
    lambda path: write_by_loop(path, direct_io=False),
    grow,
    write,
]


def test_every_kind_of_change_is_visible_in_the_times(start_server: StartServer) -> None:
    server = start_server(16 * MIB)
    vhd = server.os_disk.with_suffix(".vhd")
    changes = [*CHANGES, punch] if server.front_end in CAN_MAKE_HOLES else CHANGES
    for number, change in enumerate(changes):
        before, other = server.os_disk.stat(), server.data_disk.stat()
        change(server.os_disk)
        after = server.os_disk.stat()
        assert after.st_mtime_ns > before.st_mtime_ns, number
        assert after.st_ctime_ns > before.st_ctime_ns, number
        assert vhd.stat().st_mtime_ns == after.st_mtime_ns
        assert server.data_disk.stat().st_mtime_ns == other.st_mtime_ns, "the other disk changed"
    assert server.os_disk.stat().st_mtime_ns == after.st_mtime_ns
    for end in (server.stop, server.kill):
        before = server.os_disk.stat()
        end()
        server.start()
        after = server.os_disk.stat()
        assert after.st_ino == before.st_ino
        assert after.st_mtime_ns >= before.st_mtime_ns
        if end == server.stop:
            assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


def test_an_open_descriptor_sees_the_time_of_another_ones_writes(start_server: StartServer) -> None:
    server = start_server(16 * MIB)
    with server.os_disk.open("rb", buffering=0) as reader, server.os_disk.open("r+b", buffering=0) as writer:
        seen = []
        for number in range(100):
            writer.seek(number * 512)
            writer.write(b"x" * 512)
            seen.append(os.fstat(reader.fileno()).st_mtime_ns)
    assert seen == sorted(set(seen)), "a write has no later time than the write before it"


def test_programs_can_set_times_owner_and_mode_of_disks_only(start_server: StartServer) -> None:
    server = start_server(16 * MIB)
    run("touch", "-d", "2001-02-03T04:05:06.789Z", server.os_disk)
    run("chmod", "0640", server.os_disk)
    run("chgrp", "6", server.os_disk)
    assert run("stat", "-c", "%a %g %.3Y", server.os_disk) == "640 6 981173106.789\n"
    run("touch", server.os_disk)
    assert server.os_disk.stat().st_mtime_ns > 1_700_000_000 * 10**9
    run("touch", "-d", "2001-02-03T04:05:06.789Z", server.os_disk)
    server.stop()
    server.start()
    assert run("stat", "-c", "%a %g %.3Y", server.os_disk) == "640 6 981173106.789\n"
    write(server.os_disk)
    assert server.os_disk.stat().st_mtime_ns > 1_700_000_000 * 10**9
    for refused in refusals(server):
        with pytest.raises(AssertionError, match=r"Operation not permitted|Permission denied"):
            run(*refused)


def refusals(server: DiskServer) -> list[tuple[str | Path, ...]]:
    folder = server.mountpoint / VM
    made = [folder, server.mountpoint, folder / "os.vhd", folder / "os.stats", folder / "os.000001.hrl"]
    setuid: tuple[str | Path, ...] = ("chmod", "u+s", server.os_disk)
    return [(*command, path) for path in made for command in (("touch",), ("chmod", "0666"), ("chown", "6:6"))] + [setuid]


def test_a_second_backup_copies_the_writes_since_the_first(start_server: StartServer, tmp_path: Path) -> None:
    """Decide by size and times, as ``rsync``, ``restic`` and ``borg`` do, but without these programs."""
    server = start_server(MIB)
    known: dict[Path, tuple[int, int, int, int]] = {}
    for _ in range(3):
        for disk in (server.os_disk, server.data_disk):
            found = disk.stat()
            key = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
            if known.get(disk) != key:
                (tmp_path / disk.name).write_bytes(disk.read_bytes())
            known[disk] = key
            assert (tmp_path / disk.name).read_bytes() == disk.read_bytes()
        write(server.os_disk, 8192)
