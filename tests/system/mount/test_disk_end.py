"""Tests of the end of a mounted disk: programs fill, wipe and grow it like a block device or an image."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

import pytest

from tests.support.disks.disk_server_process import CAN_MAKE_HOLES, VM, DiskServer, StartServer
from tests.support.disks.guest import run, write_durably
from tests.support.disks.holes import COLLAPSE_RANGE, INSERT_RANGE, KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate, memory
from tests.support.disks.shadowed_disk import ShadowedDisk
from tests.support.needs import needs_program

pytestmark = pytest.mark.system

MIB = 1 << 20
DISK_BYTES = 33 * MIB // 2
"""A size that is no multiple of 1 MiB, nor of the kernel's largest request."""


def written(write: Callable[..., int], *arguments: object) -> int:
    """Return the number of bytes that a system call wrote, or -errno."""
    try:
        return write(*arguments)
    except OSError as exc:
        return -(exc.errno or errno.EIO)


@pytest.mark.parametrize(
    "flags", [os.O_RDWR, os.O_RDWR | os.O_DIRECT, os.O_RDWR | os.O_SYNC], ids=["buffered", "direct", "sync"]
)
def test_a_write_across_the_end_writes_the_bytes_that_fit(start_server: StartServer, flags: int) -> None:
    server = start_server(DISK_BYTES)
    disk = ShadowedDisk(server, "os")
    expected = bytearray(DISK_BYTES)
    fd = os.open(server.os_disk, flags)
    try:
        for value, (before, length) in enumerate(
            [(4096, 8192), (MIB // 2, MIB), (512 * 1024 + 4096, 3 * MIB), (2 * MIB, 8 * MIB), (512, 4096)], 1
        ):
            data = memory(length, value)
            assert written(os.pwritev, fd, [data], DISK_BYTES - before) == before
            expected[DISK_BYTES - before :] = bytes([value]) * before
            os.fsync(fd)
            assert disk.file.read_bytes() == expected
        for past in (0, 512, MIB):
            assert written(os.pwritev, fd, [memory(4096, 9)], DISK_BYTES + past) == -errno.ENOSPC
        two = [memory(4096, 7), memory(8192, 8)]
        assert written(os.pwritev, fd, two, DISK_BYTES - 8192) == 8192
        expected[DISK_BYTES - 8192 :] = bytes([7]) * 4096 + bytes([8]) * 4096
        os.fsync(fd)
    finally:
        os.close(fd)
    assert server.os_disk.stat().st_size == DISK_BYTES
    assert server.os_disk.read_bytes() == disk.file.read_bytes() == expected
    disk.check()


def test_programs_can_fill_a_disk_completely_and_then_get_an_error(
    start_server: StartServer,
) -> None:
    server = start_server(DISK_BYTES)
    disk, source = ShadowedDisk(server, "os"), os.urandom(MIB)
    write_durably(server.data_disk, 0, source)
    fd, from_fd = os.open(server.os_disk, os.O_RDWR), os.open(server.data_disk, os.O_RDONLY)
    appending = os.open(server.os_disk, os.O_WRONLY | os.O_APPEND)
    try:
        assert written(os.write, appending, b"more") == -errno.ENOSPC
        at = DISK_BYTES - 5000
        assert written(os.copy_file_range, from_fd, fd, MIB, 0, at) == 5000
        assert os.pread(fd, 9000, at) == source[:5000]
        assert written(os.copy_file_range, from_fd, fd, MIB, 0, DISK_BYTES) == -errno.ENOSPC
        os.lseek(fd, at - 100, os.SEEK_SET)
        sent = 0
        while (more := written(os.sendfile, fd, from_fd, sent, MIB - sent)) > 0:
            sent += more
        assert (sent, more) == (5100, -errno.ENOSPC)
        assert os.pread(fd, 9000, at - 100) == source[:5100]
        os.fsync(fd)
    finally:
        for each in (fd, from_fd, appending):
            os.close(each)
    with pytest.raises(AssertionError, match="No space left on device"):
        run("dd", "if=/dev/zero", f"of={server.os_disk}", "bs=1M", "seek=14", "conv=notrunc,fsync")
    assert not any(server.os_disk.read_bytes()[14 * MIB :])
    assert server.os_disk.stat().st_size == DISK_BYTES
    disk.check()


def test_fallocate_reserves_within_the_disk_and_grows_it_past_its_end(start_server: StartServer) -> None:
    server = start_server(DISK_BYTES)
    disk = ShadowedDisk(server, "os")
    can = server.front_end in CAN_MAKE_HOLES
    fd = os.open(server.os_disk, os.O_RDWR)

    def expect(mode: int, offset: int, length: int, error: int) -> None:
        assert fallocate(fd, mode, offset, length) == (error if can else errno.EOPNOTSUPP)

    try:
        os.pwrite(fd, b"bytes", DISK_BYTES - 5)
        for mode in (0, KEEP_SIZE):
            expect(mode, 0, DISK_BYTES, 0)
        expect(KEEP_SIZE, 0, 4 * DISK_BYTES, 0)
        assert os.fstat(fd).st_size == DISK_BYTES
        expect(0, 0, DISK_BYTES + 1, errno.EINVAL)
        expect(0, 0, 65 << 40, errno.EFBIG)
        expect(COLLAPSE_RANGE, 0, 4096, errno.EOPNOTSUPP)
        expect(INSERT_RANGE, 0, 4096, errno.EOPNOTSUPP)
        assert os.fstat(fd).st_size == DISK_BYTES
        expect(0, DISK_BYTES - 5, 4096 + 5, 0)
        expect(ZERO_RANGE, DISK_BYTES, 8192, 0)
        grown = DISK_BYTES + (8192 if can else 0)
        assert os.fstat(fd).st_size == server.os_disk.stat().st_size == grown
        assert os.pread(fd, 20_000, DISK_BYTES - 5) == b"bytes" + bytes(grown - DISK_BYTES)
        assert os.pwrite(fd, b"x" * 100, grown - 50) == 50
        expect(PUNCH_HOLE | KEEP_SIZE, grown - 50, 4096, 0)
        os.fsync(fd)
    finally:
        os.close(fd)
    disk.check()
    assert disk.model.size_bytes == grown
    server.stop()
    server.start()
    assert server.os_disk.stat().st_size == grown


@needs_program("qemu-img")
@pytest.mark.parametrize("preallocation", ["off", "falloc", "full"])
def test_qemu_img_makes_a_disk_larger(start_server: StartServer, preallocation: str) -> None:
    server = start_server(16 * MIB)
    disk = ShadowedDisk(server, "os")
    if preallocation == "falloc" and server.front_end not in CAN_MAKE_HOLES:
        pytest.skip("pyfuse3 knows no fallocate")
    run("qemu-img", "resize", "-f", "raw", f"--preallocation={preallocation}", server.os_disk, "24M")
    assert server.os_disk.stat().st_size == server.backing("os").stat().st_size == 24 * MIB
    assert vhd_bytes(server) == 24 * MIB + 512
    assert server.call("list_disks", vm=VM)[0]["size_bytes"] == 24 * MIB
    disk.check()


def vhd_bytes(server: DiskServer) -> int:
    return server.os_disk.with_suffix(".vhd").stat().st_size
