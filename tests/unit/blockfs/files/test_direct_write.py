"""Writes past the page cache give the same file, whatever the file system and the kernel do with them."""

from __future__ import annotations

import errno
import fcntl
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from typing_extensions import Buffer

from siterig.blockfs.files import direct_write, host_calls
from siterig.blockfs.files.direct_write import ALIGNMENT_BYTES, PIECE_BYTES

SIZES = [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + ALIGNMENT_BYTES, 2 * PIECE_BYTES + 4097]
Write = Callable[[int, Buffer, int], int]


def written(path: Path, data: bytes) -> bytes:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        direct_write.write_all(fd, data)
        assert not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT
    finally:
        os.close(fd)
    return path.read_bytes()


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return whether each write was direct."""
    found = []
    pwrite = host_calls.pwrite

    def noted(fd: int, data: Buffer, offset: int) -> int:
        found.append(bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT))
        return pwrite(fd, data, offset)

    monkeypatch.setattr(host_calls, "pwrite", noted)
    return found


@pytest.mark.parametrize("size", SIZES)
def test_the_file_has_the_bytes(tmp_path: Path, direct: list[bool], size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert written(tmp_path / "part", data) == data
    whole = size // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    pieces = -(-whole // PIECE_BYTES) if size >= PIECE_BYTES else 0
    assert sum(direct) == pieces, "large files are written past the page cache"


def _short(pwrite: Write) -> Write:
    def shorten(fd: int, data: Buffer, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            assert offset % ALIGNMENT_BYTES == len(memoryview(data)) % ALIGNMENT_BYTES == 0, "the kernel would refuse it"
        return pwrite(fd, memoryview(data)[:5000], offset)

    return shorten


def _refused(pwrite: Write) -> Write:
    def refuse(fd: int, data: Buffer, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT and offset:
            raise OSError(errno.EINVAL, "Invalid argument")
        return pwrite(fd, data, offset)

    return refuse


@pytest.mark.parametrize("change", [_short, _refused])
def test_short_and_refused_writes_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Write], Write]
) -> None:
    data = random.Random(7).randbytes(2 * PIECE_BYTES + 17)
    monkeypatch.setattr(host_calls, "pwrite", change(_plain))
    assert written(tmp_path / "part", data) == data


def _plain(fd: int, data: Buffer, offset: int) -> int:
    """Write as the page cache does: a direct write of such a length is an error."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & ~os.O_DIRECT)
    try:
        return os.pwrite(fd, data, offset)
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def test_a_file_system_without_direct_writes_gets_the_bytes(
    tmp_path: Path, direct: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random.Random(8).randbytes(PIECE_BYTES + 5)
    control = fcntl.fcntl

    def refuse(fd: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return control(fd, command, flags)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert written(tmp_path / "part", data) == data
    assert direct == [False]


def test_another_error_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: Buffer, _offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(host_calls, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        written(tmp_path / "part", bytes(PIECE_BYTES))
