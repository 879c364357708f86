"""Tests of one disk that is opened past the page cache and through it: no reader gets data that was replaced."""

from __future__ import annotations

import mmap
import os
import threading

import pytest

from tests.support.disks.disk_server import DISK_BYTES
from tests.support.disks.disk_server_process import DiskServer, StartServer

pytestmark = pytest.mark.system

BLOCK = 4096
BLOCKS = 8
ROUNDS = 1000
MODES = {"direct": os.O_RDWR | os.O_DIRECT, "buffered": os.O_RDWR}


@pytest.fixture
def server(start_server: StartServer) -> DiskServer:
    return start_server(DISK_BYTES)


def page(number: int) -> mmap.mmap:
    """Return an aligned block of memory that is filled with a number."""
    memory = mmap.mmap(-1, BLOCK)
    memory[:] = number.to_bytes(8, "little") * (BLOCK // 8)
    return memory


def read_page(fd: int, memory: mmap.mmap, index: int) -> int:
    """Return the number at the start of a block; a block that is being written may end with the previous number."""
    assert os.preadv(fd, [memory], index * BLOCK) == BLOCK
    return int.from_bytes(memory[:8], "little")


@pytest.mark.parametrize("first", MODES)
def test_acknowledged_writes_are_read_however_the_disk_was_opened_first(server: DiskServer, first: str) -> None:
    order = sorted(MODES, key=lambda mode: mode != first)
    fds = {mode: os.open(server.os_disk, MODES[mode]) for mode in order}
    acknowledged = [0] * BLOCKS
    done, wrong = threading.Event(), list[str]()

    def read() -> None:
        memory = page(0)
        while not done.is_set():
            for index in range(BLOCKS):
                least = acknowledged[index]
                found = read_page(fds["buffered"], memory, index)
                if found < least:
                    wrong.append(f"block {index}: read {found} after {least} was acknowledged")

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(1, ROUNDS):
            memory = page(number)
            for index in range(BLOCKS):
                assert os.pwritev(fds["direct"], [memory], index * BLOCK) == BLOCK
                acknowledged[index] = number
    finally:
        done.set()
        reader.join()
    assert wrong == []
    memory = page(0)
    assert {read_page(fds["buffered"], memory, index) for index in range(BLOCKS)} == {ROUNDS - 1}
    os.pwrite(fds["buffered"], page(ROUNDS), 0)
    assert read_page(fds["direct"], memory, 0) == ROUNDS
    for fd in fds.values():
        os.close(fd)


def test_a_disk_that_is_only_open_without_o_direct_can_be_mapped(server: DiskServer) -> None:
    with server.os_disk.open("r+b", buffering=0) as disk, mmap.mmap(disk.fileno(), BLOCK) as mapped:
        mapped[:5] = b"words"
        mapped.flush()
    assert (server.root / "web01" / "os.img").read_bytes()[:5] == b"words"
