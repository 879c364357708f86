"""Faults of a disk as an unmodified guest meets them through a mount, with each front end."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks import guest
from tests.support.disks.disk_server_process import VM, DiskServer, skip_unless_possible

pytestmark = pytest.mark.system

DISK_BYTES = 64 << 20
READERS = 40
"""More than the FUSE server has threads."""
ALL: list[str] = []


@pytest.fixture(params=["server", "io_uring", "pyfuse3"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DiskServer]:
    skip_unless_possible(request.param)
    server = DiskServer(tmp_path, disk_bytes=DISK_BYTES, front_end=request.param)
    try:
        server.start()
        yield server
    finally:
        server.clean_up()


def arm(server: DiskServer, effect: str, operations: list[str], **values: object) -> int:
    [rule] = server.call("arm", disks=["os"], effect=effect, operations=operations, **values)
    assert isinstance(rule, int)
    return rule


class Readers:
    """Programs that read one block each at the same time, past the page cache; reads need no lock of the kernel."""

    def __init__(self, disk: Path) -> None:
        self._results: queue.SimpleQueue[bytes | int] = queue.SimpleQueue()
        for at in range(READERS):
            threading.Thread(target=self._read, args=(disk, at), daemon=True).start()

    def _read(self, disk: Path, at: int) -> None:
        try:
            fd = os.open(disk, os.O_RDONLY | os.O_DIRECT)
            try:
                with mmap.mmap(-1, 4096) as memory:
                    os.preadv(fd, [memory], at * 4096)
                    self._results.put(memory[:4])
            finally:
                os.close(fd)
        except OSError as exc:
            self._results.put(exc.errno or -1)

    @property
    def done(self) -> int:
        """Number of programs that have a result."""
        return self._results.qsize()

    def results(self) -> set[bytes | int]:
        """Wait for all programs; return what they read, or their errno."""
        return {self._results.get(timeout=60) for _ in range(READERS)}


def test_an_error_on_a_write_reaches_a_program_on_ext4(server: DiskServer, tmp_path: Path) -> None:
    guest.run("mkfs.ext4", "-q", "-F", server.os_disk)
    with guest.loop_device(server.os_disk, direct_io=False) as device:
        with guest.mounted(device, tmp_path / "guest") as folder:
            (folder / "before").write_bytes(b"safe")
            os.sync()
            rule = arm(server, "FailEffect", ["write"])
            with pytest.raises(OSError, match=r"Input/output error|Read-only file system"):
                guest.write_durably(_made(folder / "file"), 0, b"x" * 65536)
            assert server.call("fired", disk="os", rule=rule, times=1) >= 1
            server.call("disarm")
        with guest.mounted(device, tmp_path / "guest") as folder:
            assert (folder / "before").read_bytes() == b"safe"


@contextlib.contextmanager
def lost_machine(device: Path, folder: Path) -> Iterator[None]:
    """Mount a file system for a guest that is lost at the end of the block."""
    folder.mkdir()
    guest.run("mount", device, folder)
    try:
        yield
    finally:
        guest.run("umount", "--lazy", folder)


def _made(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.parametrize("lies", [False, True])
def test_an_fsync_that_lies_loses_the_file_at_a_power_loss(server: DiskServer, tmp_path: Path, lies: bool) -> None:
    guest.run("mkfs.ext4", "-q", "-F", server.os_disk)
    with guest.loop_device(server.os_disk, direct_io=False) as device:
        guest.run("blockdev", "--flushbufs", device)
    server.call("keep_unsynced")
    folder = tmp_path / "guest"
    with guest.loop_device(server.os_disk, direct_io=False) as device:
        with lost_machine(device, folder):
            guest.write_durably(_made(folder / "first"), 0, b"first")
            if lies:
                arm(server, "LieEffect", ALL)
            guest.write_durably(_made(folder / "second"), 0, b"second")
            arm(server, "FailEffect", ALL)  # the machine stops: what it still sends does not reach the disk
        _until_unused(device)
        server.call("disarm")
    lost = server.call("lose_power")
    assert lost > 0 or not lies
    with guest.loop_device(server.os_disk, direct_io=False) as device, guest.mounted(device, folder):
        assert (folder / "first").read_bytes() == b"first"
        assert (folder / "second").exists() is not lies


def test_a_frozen_disk_keeps_no_other_disk_and_no_name_waiting(server: DiskServer) -> None:
    guest.write_durably(server.os_disk, 0, b"here" * 1024 * READERS)
    rule = arm(server, "FreezeEffect", ALL)
    readers = Readers(server.os_disk)
    assert server.call("fired", disk="os", rule=rule, times=READERS) == READERS
    assert "data.img" in [path.name for path in (server.mountpoint / VM).iterdir()]
    guest.write_durably(server.data_disk, 0, b"other disk")
    assert server.os_disk.stat().st_size == DISK_BYTES
    assert readers.done == 0
    server.call("disarm")
    assert readers.results() == {b"here"}


@pytest.mark.parametrize("values", [None, {"delay_ns": 3600 * 10**9}], ids=["freeze", "delay"])
@pytest.mark.parametrize("how", ["stop", "umount"])
def test_an_operation_that_waits_does_not_hang_the_end_of_the_mount(
    server: DiskServer, values: dict[str, int] | None, how: str
) -> None:
    rule = arm(server, "FreezeEffect" if values is None else "DelayEffect", ALL, **(values or {}))
    readers = Readers(server.os_disk)
    assert server.call("fired", disk="os", rule=rule, times=READERS) == READERS
    if how == "stop":
        server.stop()
    else:
        subprocess.run(["umount", "--force", "--lazy", server.mountpoint], check=True)
        assert server.wait() == 0
    assert readers.results() <= {bytes(4), errno.EIO, errno.ECONNABORTED, errno.ENOTCONN, errno.ECANCELED, errno.EINTR}
    assert not server.mountpoint.is_mount()


def _until_unused(device: Path) -> None:
    """Wait until no file system uses a device any more."""
    while True:
        try:
            os.close(os.open(device, os.O_RDWR | os.O_EXCL))
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
        else:
            return
