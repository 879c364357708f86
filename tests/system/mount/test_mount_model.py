"""Tests of random sequences of system calls (hypothesis) on a mounted disk and on a byte array, for each front end."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.disks.disk_server_process import StartServer
from tests.support.disks.holes import KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE, fallocate, seek
from tests.support.disks.log_oracle import Model
from tests.support.repo.examples import examples

pytestmark = pytest.mark.system

DISK_BYTES = 128 << 20
"""A size so large that the log stays below half of it."""
AREA_BYTES = 1 << 20
"""The size of the range that operations use: the disk's end, and the bytes by which it grows."""
BASE = DISK_BYTES - AREA_BYTES
GROWN_MAX = 2 * AREA_BYTES
EXAMPLES = examples(25)
CALLS = st.sampled_from(["write", "write", "write", "discard", "zero", "grow", "fsync", "reopen"])
OFFSETS = st.integers(0, GROWN_MAX - 1) | st.integers(0, GROWN_MAX // 4096 - 1).map(lambda block: block * 4096)
LENGTHS = st.integers(1, 20_000) | st.sampled_from([512, 4096, 65_536, 300_000])
STEPS = st.lists(st.tuples(CALLS, OFFSETS, LENGTHS, st.integers(1, 255)), min_size=1, max_size=30)


class Mounted:
    """An open disk, and the bytes that it must have from ``BASE`` on."""

    def __init__(self, path: Path, front_end: str) -> None:
        self.path = path
        self.front_end = front_end
        self.bytes = bytearray(AREA_BYTES)
        self.fd = os.open(path, os.O_RDWR)

    def do(self, call: str, offset: int, length: int, value: int) -> None:
        """Make one system call, and change the model in the same way."""
        inside = max(min(length, len(self.bytes) - offset), 0)
        match call:
            case "write" if inside:
                assert os.pwrite(self.fd, bytes([value]) * length, BASE + offset) == inside
                self.bytes[offset : offset + inside] = bytes([value]) * inside
            case "write":
                with pytest.raises(OSError, match="No space left on device"):
                    os.pwrite(self.fd, bytes([value]) * length, BASE + offset)
            case "discard" | "zero" if inside:
                mode = (PUNCH_HOLE if call == "discard" else ZERO_RANGE) | KEEP_SIZE
                error = fallocate(self.fd, mode, BASE + offset, inside)
                if self.front_end == "pyfuse3":  # it does not support this, and reports that
                    assert error in (errno.EOPNOTSUPP, errno.ENOSYS)
                else:
                    assert error == 0
                    self.bytes[offset : offset + inside] = bytes(inside)
            case "grow":
                size = min(len(self.bytes) + value * 512, GROWN_MAX)
                if self.front_end == "pyfuse3" or offset % 2:
                    os.ftruncate(self.fd, BASE + size)
                else:
                    assert fallocate(self.fd, 0, BASE, size) == 0
                self.bytes.extend(bytes(size - len(self.bytes)))
            case "fsync":
                os.fsync(self.fd)
            case "reopen":
                os.close(self.fd)
                self.fd = os.open(self.path, os.O_RDWR)
            case _:
                pass  # beyond the end

    def check(self) -> None:
        """Compare size, bytes and holes with the model."""
        end = BASE + len(self.bytes)
        assert os.fstat(self.fd).st_size == end
        assert os.pread(self.fd, GROWN_MAX, BASE) == self.bytes
        at = 0
        while (data := seek(self.fd, at, os.SEEK_DATA)) is not None:
            assert not any(self.bytes[max(at - BASE, 0) : max(data - BASE, 0)])
            hole = seek(self.fd, data, os.SEEK_HOLE)
            assert hole is not None
            at = hole
        assert not any(self.bytes[max(at - BASE, 0) :])


def test_system_calls_change_a_disk_as_they_change_a_byte_array(
    start_server: StartServer, front_end: str, tmp_path: Path
) -> None:
    server = start_server(DISK_BYTES)
    disk = Mounted(server.os_disk, front_end)

    @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture], print_blob=True)
    @given(STEPS)
    def run(steps: list[tuple[str, int, int, int]]) -> None:
        for step in steps:
            disk.do(*step)
        disk.check()

    run()
    os.fsync(disk.fd)
    os.close(disk.fd)
    model = Model(tmp_path / "model", DISK_BYTES)
    server.stop()
    model.replay(server.logs("os"))
    model.check(server.backing("os"))
    assert (tmp_path / "model").read_bytes()[BASE:] == disk.bytes
