"""Tests of the FUSE server under the kernel: the size of requests, their independence, and the end of a mount."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.fuse.mount import MountOptions, mount_filesystem
from siterig.cext import linux
from tests.support.disks.disk_model import replay_files
from tests.support.disks.disk_server import DISK_BYTES
from tests.support.disks.disk_server_process import DiskServer, message_of_failed_server, skip_unless_possible
from tests.support.disks.fuse_device import fuse_for_all
from tests.support.disks.holes import COLLAPSE_RANGE, fallocate, punch

pytestmark = pytest.mark.system

MIB = 1 << 20
NOBODY = 65534
DEAD = "not connected|Software caused connection abort|Operation canceled"  # the last one over io_uring


@pytest.fixture(params=["server", "io_uring"])
def front_end(request: pytest.FixtureRequest) -> str:
    skip_unless_possible(request.param)
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, front_end: str) -> Iterator[DiskServer]:
    server = DiskServer(tmp_path, front_end=front_end)
    try:
        server.start()
        yield server
    finally:
        server.clean_up()


@pytest.fixture
def disk(server: DiskServer) -> Iterator[int]:
    """Open the os disk past the page cache."""
    fd = os.open(server.os_disk, os.O_RDWR | os.O_DIRECT)
    yield fd
    with contextlib.suppress(OSError):  # the disk's mount may be gone
        os.close(fd)


def aligned(data: bytes) -> mmap.mmap:
    """Return aligned memory with data, for O_DIRECT."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memory


def read_direct(fd: int, offset: int, length: int) -> bytes:
    memory = mmap.mmap(-1, length)
    assert os.preadv(fd, [memory], offset) == length
    return memory[:]


def write(path: Path, data: bytes) -> None:
    with path.open("r+b", buffering=0) as disk:
        assert disk.write(data) == len(data)


def start_of(path: Path, length: int) -> bytes:
    with path.open("rb", buffering=0) as disk:
        return disk.read(length)


def test_requests_of_1_mib_arrive_in_one_piece(server: DiskServer, disk: int) -> None:
    data = random.Random(1).randbytes(MIB)
    before = server.counters("os")
    assert os.pwrite(disk, aligned(data), 4 * MIB) == MIB
    assert read_direct(disk, 4 * MIB, MIB) == data
    after = server.counters("os")
    for kind in ("write", "read"):
        assert after[kind]["ops"] - before[kind]["ops"] == 1
        assert after[kind]["bytes"] - before[kind]["bytes"] == MIB


def test_buffered_requests_of_1_mib_arrive_in_large_pieces(server: DiskServer) -> None:
    data = random.Random(2).randbytes(MIB)
    with server.os_disk.open("r+b", buffering=0) as disk:
        assert disk.write(data) == MIB
    assert server.counters("os")["write"] == {"ops": 1, "bytes": MIB}
    with server.os_disk.open("rb", buffering=0) as disk:  # opened again: nothing is cached
        os.posix_fadvise(disk.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        assert disk.read(MIB) == data
    assert server.counters("os")["read"]["ops"] <= 8


def test_many_concurrent_writers_read_their_data_and_the_log_has_it_all(server: DiskServer) -> None:
    openers, blocks = 24, 40
    seed = random.randrange(1 << 32)
    print("seed", seed)
    contents = {n: random.Random(seed + n).randbytes(4096) for n in range(openers)}
    failed: list[BaseException] = []

    def work(number: int) -> None:
        try:
            fd = os.open(server.os_disk, os.O_RDWR | os.O_DIRECT)
            try:
                for i in range(blocks):
                    offset = (i * openers + number) * 4096
                    assert os.pwrite(fd, aligned(contents[number]), offset) == 4096
                    assert read_direct(fd, offset, 4096) == contents[number]
                    if i % 10 == number % 10:
                        os.fsync(fd)
            finally:
                os.close(fd)
        except BaseException as exc:
            failed.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(openers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    found = (server.root / "web01" / "os.img").read_bytes()
    assert found[: openers * blocks * 4096] == b"".join(contents[n] for n in range(openers)) * blocks
    logs = sorted((server.root / "web01").glob("os.*.hrl"))
    assert replay_files(bytes(DISK_BYTES), logs) == found


def test_a_stalled_python_does_not_stall_requests_on_open_disks(server: DiskServer, disk: int) -> None:
    """Open disks are served even if more look-ups wait than there are threads, or entries in a ring."""
    folder = server.mountpoint / "web01"
    server.stall()
    waiting = [threading.Thread(target=(folder / f"new{i}").exists) for i in range(80)]
    for thread in waiting:
        thread.start()
    for i in range(20):
        assert os.pwrite(disk, aligned(bytes([i + 1]) * 4096), i * 4096) == 4096
        os.fsync(disk)
        assert read_direct(disk, i * 4096, 4096) == bytes([i + 1]) * 4096
    punch(disk, 0, 4096)
    assert read_direct(disk, 0, 4096) == bytes(4096)
    assert os.lseek(disk, 0, os.SEEK_DATA) >= 0
    assert all(thread.is_alive() for thread in waiting), "Python was not needed for a look-up"
    server.go_on()
    for thread in waiting:
        thread.join()
    assert server.counters("os")["flush"]["ops"] == 20


def test_a_file_without_holes_does_not_disable_them_for_the_disks(server: DiskServer, disk: int) -> None:
    """The kernel remembers for the whole mount that an operation is not implemented."""
    with (server.mountpoint / "web01" / "os.000001.hrl").open("rb") as log:
        assert log.read(7) == b"SRIGHRL"
        with pytest.raises(OSError, match=r".") as failed:
            os.lseek(log.fileno(), 0, os.SEEK_DATA)
        assert failed.value.errno == errno.EOPNOTSUPP
    assert fallocate(disk, COLLAPSE_RANGE, 0, 4096) == errno.EOPNOTSUPP
    os.pwrite(disk, aligned(b"x" * 4096), 8 * MIB)
    assert os.lseek(disk, 0, os.SEEK_DATA) == 8 * MIB
    punch(disk, 8 * MIB, 4096)
    with pytest.raises(OSError, match="No such device or address"):
        os.lseek(disk, 0, os.SEEK_DATA)


def test_bytes_are_copied_from_disk_to_disk_without_help_of_the_server(server: DiskServer) -> None:
    with server.os_disk.open("r+b", buffering=0) as source, server.data_disk.open("r+b", buffering=0) as target:
        source.write(b"copied" * 1000)
        assert os.copy_file_range(source.fileno(), target.fileno(), 6000, 0, 0) == 6000
        assert target.read(6000) == b"copied" * 1000


def test_an_unmount_by_another_program_ends_the_service(server: DiskServer) -> None:
    subprocess.run(["umount", server.mountpoint], check=True)
    assert server.wait() == 0


def test_after_a_lazy_unmount_the_last_user_is_still_served(server: DiskServer) -> None:
    with server.os_disk.open("r+b", buffering=0) as disk:
        subprocess.run(["umount", "--lazy", server.mountpoint], check=True)
        disk.write(b"still")
        os.fsync(disk.fileno())
    assert server.wait() == 0
    assert (server.root / "web01" / "os.img").read_bytes()[:5] == b"still"


def test_a_stop_does_not_wait_for_open_files_which_then_report_errors(server: DiskServer, disk: int) -> None:
    server.stop()
    with pytest.raises(OSError, match=DEAD):
        os.pwrite(disk, aligned(b"x" * 4096), 0)
    assert not server.mountpoint.is_mount()


def test_kill_9_under_load_leaves_a_mount_that_the_next_start_clears(server: DiskServer, disk: int) -> None:
    for _ in range(3):
        os.pwrite(disk, aligned(b"x" * 4096), 0)
    os.fsync(disk)
    server.kill()
    with pytest.raises(OSError, match=DEAD):
        os.pwrite(disk, aligned(b"y" * 4096), 0)
    with pytest.raises(OSError, match="Transport endpoint is not connected"):
        os.statvfs(server.mountpoint)
    server.start()
    assert start_of(server.os_disk, 4096) == b"x" * 4096


def test_two_mounts_serve_concurrently(server: DiskServer, tmp_path: Path, front_end: str) -> None:
    second = DiskServer(tmp_path / "second", front_end=front_end)
    try:
        second.start()
        write(server.os_disk, b"first")
        write(second.os_disk, b"second")
        assert start_of(server.os_disk, 6) == b"first\0"
        second.stop()
        assert start_of(server.os_disk, 6) == b"first\0"
    finally:
        second.clean_up()


def test_a_file_is_refused_as_a_mount_point(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for mountpoint, why in (("file", "File exists"), ("file/mnt", "Not a directory")):
        said = message_of_failed_server(tmp_path / "disks", tmp_path / mountpoint, DISK_BYTES)
        assert f"{tmp_path / mountpoint}: cannot be created as a mount point: {why}" in said


@pytest.fixture
def nobodys(front_end: str) -> Iterator[DiskServer]:
    """Return a server of an ordinary user, in a separate folder below ``/tmp``: pytest's folders belong to root."""
    if shutil.which("fusermount3") is None:
        pytest.skip("fusermount3 is not installed (Debian: fuse3)")
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, NOBODY, NOBODY)
    try:
        with fuse_for_all():
            server = DiskServer(folder, front_end=front_end, uid=NOBODY)
            try:
                yield server
            finally:
                server.clean_up()
    finally:
        shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_an_ordinary_user_mounts_with_fusermount3_and_has_sole_access(nobodys: DiskServer) -> None:
    nobodys.start()
    as_nobody = ["setpriv", "--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups"]
    command = [*as_nobody, "dd", f"of={nobodys.os_disk}", "bs=1M", "count=1", "conv=notrunc,fsync", "iflag=fullblock"]
    subprocess.run(command, input=b"mine" * (MIB // 4), check=True, capture_output=True)
    assert (nobodys.root / "web01" / "os.img").read_bytes()[:MIB] == b"mine" * (MIB // 4)
    with pytest.raises(PermissionError):
        nobodys.os_disk.stat()
    mounts = os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines()
    assert [line for line in mounts if f" {nobodys.mountpoint} " in line and "nosuid,nodev" in line]
    nobodys.stop()
    assert not nobodys.mountpoint.is_mount()


@pytest.mark.parametrize(
    ("helper", "code", "text"),
    [
        ("echo 'fusermount3: mount failed: Operation not permitted' >&2; exit 1", Code.NotPermitted, "--cap-add SYS_ADMIN"),
        ("echo 'fusermount3: user has no write access to mountpoint' >&2; exit 1", Code.MountFailed, "no write access"),
        (None, Code.ToolMissing, "apt-get install fuse3"),
    ],
)
def test_a_refusal_of_fusermount3_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helper: str | None, code: Code, text: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "no")

    monkeypatch.setattr(linux, "mount", refuse)
    monkeypatch.setenv("PATH", str(tmp_path))
    if helper is not None:
        (tmp_path / "fusermount3").write_text(f"#!/bin/sh\n{helper}\n")
        (tmp_path / "fusermount3").chmod(0o755)
    with pytest.raises(RigError, match=text) as caught:
        mount_filesystem(tmp_path, MountOptions("test"))
    assert caught.value.code == code
