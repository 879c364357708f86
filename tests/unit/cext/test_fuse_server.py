"""The FUSE server with a socket in place of the kernel: its answers, its upcalls to Python, and its end."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.cext._core import ffi, lib
from siterig.cext.fuse_server import FuseServer, FuseServerOptions
from tests.support.io_faults import SYNC, io_verdict

KERNELS = 1 << 51
"""The bits of ``unique`` below this one are the kernel's; those above identify the thread that took the request."""
LOOKUP, FORGET, GETATTR, READ, WRITE, FSYNC, FLUSH, INIT, READDIR, INTERRUPT = 1, 2, 3, 15, 16, 20, 25, 26, 28, 36
IOCTL, POLL, BATCH_FORGET, FALLOCATE, READDIRPLUS, LSEEK, COPY_FILE_RANGE, STATX = 39, 40, 42, 43, 44, 46, 47, 52
GETXATTR, MKNOD, OPEN = 22, 8, 14
FOPEN_DIRECT_IO, FOPEN_PARALLEL_DIRECT_WRITES = 1 << 0, 1 << 6
REQUEST_BYTES_MAX = 1 << 20
NO_HANDLE = (1 << 62) | 0xFFFFFFF
ASYNC_READ, AUTO_INVAL_DATA, READDIRPLUS_FLAG, ASYNC_DIO, WRITEBACK_CACHE = 1 << 0, 1 << 12, 1 << 13, 1 << 15, 1 << 16
PARALLEL_DIROPS, MAX_PAGES = 1 << 18, 1 << 22
FILL_S = 10.0
"""The longest wait for an expected message, in seconds."""


@dataclass(frozen=True)
class Message:
    """A request (``code`` is its opcode) or an answer (``code`` is its error)."""

    code: int
    unique: int
    body: bytes


class Rig:
    """The FUSE server between two sockets: ``kernel`` stands for /dev/fuse, ``python`` for libfuse."""

    def __init__(self, *, minor: int = 45, offered: int = 0xFFFFFFFF) -> None:
        """Start the server, and do the INIT handshake; ``init`` has the answer."""
        self.kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.python, names = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.kernel, self.python):
            end.settimeout(FILL_S)
        self.ask(INIT, 2, struct.pack("<IIII12I", 7, minor, 1 << 17, offered, 0xFFFFFFFF, *[0] * 11))
        options = FuseServerOptions(threads=1, request_bytes_max=REQUEST_BYTES_MAX, over_io_uring=False)
        with device, names:
            try:
                self.fuse_server = FuseServer(device.fileno(), names.fileno(), options)
            except OSError:
                self.kernel.close()
                self.python.close()
                raise
            self.init = self.answered()
            device.detach()
            names.detach()
        self.init_of_libfuse = self.asked()
        self.answer(self.init_of_libfuse.unique, bytes(24))

    def ask(self, opcode: int, unique: int, body: bytes = b"", node: int = 1) -> None:
        """Send a request, in the kernel's place."""
        self.kernel.send(struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 0, 0, 0) + body)

    def answered(self) -> Message:
        """Return the next message that the kernel gets."""
        message = self.kernel.recv(1 << 18)
        length, error, unique = struct.unpack_from("<IiQ", message)
        assert length == len(message)
        return Message(error, unique, message[16:])

    def asked(self) -> Message:
        """Return the next message that libfuse gets."""
        message = self.python.recv(1 << 18)
        length, opcode, unique = struct.unpack_from("<IIQ", message)
        assert length == len(message)
        return Message(opcode, unique, message[40:])

    def answer(self, unique: int, body: bytes, error: int = 0) -> None:
        """Send an answer, in libfuse's place."""
        self.python.send(struct.pack("<IiQ", 16 + len(body), error, unique) + body)

    def close(self) -> None:
        """Close the kernel's end, which ends the mount, and stop the server."""
        self.kernel.close()
        self.fuse_server.stop()
        self.python.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def test_c_answers_init_and_libfuse_gets_an_init_without_splicing(rig: Rig) -> None:
    assert (rig.init.code, rig.init.unique, len(rig.init.body)) == (0, 2, 64)
    found = struct.unpack_from("<IIIIHHIIHHI", rig.init.body)
    major, _, _, flags, background, congested, max_write, _, max_pages, _, flags2 = found
    assert (major, max_write, max_pages) == (7, REQUEST_BYTES_MAX, REQUEST_BYTES_MAX // 4096)
    wanted = ASYNC_READ | READDIRPLUS_FLAG | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES
    assert flags & wanted == wanted
    assert flags & (AUTO_INVAL_DATA | WRITEBACK_CACHE) == 0
    assert flags2 == 0, "no flag of the second word is wanted, such as io_uring"
    assert 0 < congested <= background
    assert (rig.init_of_libfuse.code, struct.unpack_from("<II", rig.init_of_libfuse.body)) == (INIT, (7, 13))
    rig.ask(STATX, 4)
    assert rig.answered().unique == 4, "libfuse's answer to the changed INIT must not reach the kernel"


def test_init_requests_only_features_that_the_kernel_offers() -> None:
    rig = Rig(minor=31, offered=MAX_PAGES | ASYNC_READ)
    assert struct.unpack_from("<IIII", rig.init.body)[3] == MAX_PAGES | ASYNC_READ
    rig.close()


def test_a_kernel_too_old_for_large_requests_is_refused() -> None:
    with pytest.raises(OSError, match="Protocol error"):
        Rig(minor=27, offered=ASYNC_READ)


def test_requests_about_names_go_to_python_and_answers_return_unchanged(rig: Rig) -> None:
    rig.ask(LOOKUP, 4, b"web01\0")
    rig.ask(GETATTR, 6, bytes(16))
    first, second = rig.asked(), rig.asked()
    assert (first.code, first.body, second.code, second.body) == (LOOKUP, b"web01\0", GETATTR, bytes(16))
    rig.answer(second.unique, b"attributes")
    rig.answer(first.unique, b"", -errno.ENOENT)
    assert rig.answered() == Message(0, 6, b"attributes")
    assert rig.answered() == Message(-errno.ENOENT, 4, b"")
    assert rig.fuse_server.counters() == {"answered": 0, "forwarded": 2}


@pytest.mark.parametrize(
    ("opcode", "error", "uncached", "parallel"),
    [(OPEN, 0, True, True), (OPEN, 0, False, False), (OPEN, -errno.EACCES, True, False), (GETATTR, 0, True, False)],
)
def test_only_successful_uncached_opens_allow_parallel_writes(
    rig: Rig, opcode: int, error: int, uncached: bool, parallel: bool
) -> None:
    flags = FOPEN_DIRECT_IO if uncached else 0
    rig.ask(opcode, 4, bytes(8))
    rig.answer(rig.asked().unique, struct.pack("<QII", 77, flags, 0), error)
    expected = struct.pack("<QII", 77, flags | (FOPEN_PARALLEL_DIRECT_WRITES if parallel else 0), 0)
    assert rig.answered() == Message(error, 4, expected)


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (READ, struct.pack("<QQIIQII", NO_HANDLE, 0, 4096, 0, 0, 0, 0)),
        (WRITE, struct.pack("<QQIIQII", NO_HANDLE, 0, 4, 0, 0, 0, 0) + b"data"),
        (FSYNC, struct.pack("<QII", NO_HANDLE, 0, 0)),
        (FALLOCATE, struct.pack("<QQQII", NO_HANDLE, 0, 4096, 3, 0)),
        (LSEEK, struct.pack("<QQII", NO_HANDLE, 0, os.SEEK_DATA, 0)),
    ],
    ids=["read", "write", "fsync", "fallocate", "lseek"],
)
def test_data_requests_with_an_unknown_handle_are_refused_in_c(rig: Rig, opcode: int, body: bytes) -> None:
    rig.ask(opcode, 8, body)
    assert rig.answered() == Message(-errno.EBADF, 8, b"")
    assert rig.fuse_server.counters() == {"answered": 1, "forwarded": 0}


@pytest.mark.parametrize(
    ("opcode", "body"),
    [
        (READ, struct.pack("<QQIIQII", NO_HANDLE, 0, REQUEST_BYTES_MAX + 4096, 0, 0, 0, 0)),
        (WRITE, struct.pack("<QQIIQII", NO_HANDLE, 0, 5, 0, 0, 0, 0) + b"data"),
    ],
    ids=["read", "write"],
)
def test_impossible_sizes_are_refused(rig: Rig, opcode: int, body: bytes) -> None:
    rig.ask(opcode, 8, body)
    assert rig.answered().code == -errno.EINVAL


def test_a_close_is_answered_without_a_sync(rig: Rig) -> None:
    rig.ask(FLUSH, 8, struct.pack("<QIIQ", NO_HANDLE, 0, 0, 0))
    assert rig.answered() == Message(0, 8, b"")


@pytest.mark.parametrize("opcode", [GETXATTR, INTERRUPT, POLL, COPY_FILE_RANGE, STATX])
def test_unsupported_requests_are_refused_with_enosys(rig: Rig, opcode: int) -> None:
    rig.ask(opcode, 8, bytes(48))
    assert rig.answered().code == -errno.ENOSYS


def test_ioctls_on_files_are_refused(rig: Rig) -> None:
    rig.ask(IOCTL, 8, bytes(32))
    assert rig.answered().code == -errno.ENOTTY


def test_forgotten_inodes_are_passed_on_in_bounded_messages(rig: Rig) -> None:
    one = [struct.pack("<QQ", inode, 1) for inode in range(10_000)]
    rig.ask(BATCH_FORGET, 8, struct.pack("<II", len(one), 0) + b"".join(one))
    seen: list[bytes] = []
    while len(seen) < len(one):
        message = rig.asked()
        assert message.code == BATCH_FORGET
        count = struct.unpack_from("<I", message.body)[0]
        assert len(message.body) == 8 + 16 * count
        seen += [message.body[at : at + 16] for at in range(8, len(message.body), 16)]
    assert seen == one
    rig.ask(FORGET, 10, struct.pack("<Q", 1))
    assert rig.asked().code == FORGET
    rig.ask(STATX, 12)
    assert rig.answered().unique == 12, "there was no answer before this one"


@pytest.mark.parametrize("opcode", [READDIR, READDIRPLUS])
def test_a_large_listing_is_requested_in_pieces(rig: Rig, opcode: int) -> None:
    rig.ask(opcode, 8, struct.pack("<QQIIQII", 5, 7, 1 << 20, 0, 0, 0, 0))
    handle, offset, size = struct.unpack_from("<QQI", rig.asked().body)
    assert (handle, offset, size) == (5, 7, 64 << 10)


def test_a_request_too_large_for_the_upcall_socket_is_refused(rig: Rig) -> None:
    rig.ask(MKNOD, 8, bytes(150_000))
    assert rig.answered().code == -errno.E2BIG


def test_notifications_reach_the_kernel(rig: Rig) -> None:
    rig.answer(0, bytes(24), error=2)
    assert rig.answered() == Message(2, 0, bytes(24))


def test_an_answer_without_a_request_is_dropped(rig: Rig) -> None:
    for mark in (9, 64, 4095):
        rig.answer((mark << 52) | 4, b"")
    rig.ask(STATX, 6)
    assert rig.answered().unique == 6


def test_a_stalled_python_delays_only_requests_about_names(rig: Rig) -> None:
    names = 5000  # far more than the buffer of the sockets can hold
    for i in range(names):
        rig.ask(LOOKUP, 2 * i + 2, b"n" * 200)
    rig.ask(READ, 1 << 20, struct.pack("<QQIIQII", NO_HANDLE, 0, 4096, 0, 0, 0, 0))
    assert rig.answered() == Message(-errno.EBADF, 1 << 20, b"")
    asked = [rig.asked().unique % KERNELS for _ in range(names)]
    assert asked == [2 * i + 2 for i in range(names)], "all requests arrive in their order"


def test_a_sync_of_one_disk_delays_no_other_request(rig: Rig, tmp_path: Path) -> None:
    """Each disk has its own sync, and there are more syncs than threads."""
    positions = PositionCounter(tmp_path / "position")
    disks = []
    for name in ("a", "b", "c"):
        paths = DiskPaths(tmp_path, "web01", name)
        make_raw(paths, 1 << 20)
        disks.append(Disk.open(paths, DiskOptions(positions), None))
    handles = [lib.sr_handle_open(disk.c, lib.SR_HANDLE_DISK, 1, ffi.NULL, -1, 0) for disk in disks]
    arrived, go_on = threading.Semaphore(0), threading.Event()

    def verdict(operation: int, _path: str, _offset: int, _size: int) -> int:
        if operation == SYNC:
            arrived.release()
            go_on.wait(FILL_S)
        return 0

    with io_verdict(verdict):
        for i, handle in enumerate(handles):
            rig.ask(FSYNC, 2 * i + 4, struct.pack("<QII", handle, 0, 0))
        for _ in handles:
            assert arrived.acquire(timeout=FILL_S), "the sync waits for the sync of another disk"
        rig.ask(WRITE, 100, struct.pack("<QQIIQII", handles[0], 0, 4, 0, 0, 0, 0) + b"data")
        assert rig.answered() == Message(0, 100, struct.pack("<II", 4, 0))
        go_on.set()
        assert {rig.answered().unique for _ in handles} == {4, 6, 8}
    for handle, disk in zip(handles, disks, strict=True):
        lib.sr_handle_close(handle)
        disk.close()
    positions.close()


def test_the_end_of_the_mount_is_signalled(rig: Rig) -> None:
    assert select.select([rig.fuse_server.ended_fd], [], [], 0)[0] == []
    rig.kernel.close()
    assert select.select([rig.fuse_server.ended_fd], [], [], FILL_S)[0] == [rig.fuse_server.ended_fd]


def test_a_failed_thread_ends_the_server_and_stop_raises_its_error() -> None:
    rig = Rig()
    rig.ask(STATX, 4)
    assert select.select([rig.kernel], [], [], FILL_S)[0] == [rig.kernel]
    rig.kernel.close()  # an answer is unread, so the other end gets ECONNRESET
    assert select.select([rig.fuse_server.ended_fd], [], [], FILL_S)[0] == [rig.fuse_server.ended_fd]
    with pytest.raises(ConnectionResetError):
        rig.fuse_server.stop()
    rig.python.close()


def test_the_server_can_be_stopped_while_kernel_and_python_are_silent() -> None:
    rig = Rig()
    for i in range(3000):
        rig.ask(LOOKUP, 2 * i + 2, b"n" * 200)
    rig.ask(STATX, 1 << 20)
    assert rig.answered().code == -errno.ENOSYS
    rig.fuse_server.stop()
    assert rig.kernel.recv(16) == b"", "the descriptor is closed"
    rig.kernel.close()
    rig.python.close()


@pytest.mark.parametrize("options", [FuseServerOptions(threads=0), FuseServerOptions(request_bytes_max=5000)])
def test_invalid_options_leave_the_descriptors_to_the_caller(options: FuseServerOptions) -> None:
    device, names = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with device, names, pytest.raises(OSError, match="Invalid argument"):
        FuseServer(device.fileno(), names.fileno(), options)
