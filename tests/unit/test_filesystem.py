"""The file system's operations, called without a mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import pytest

from blockfs.disk import Disk
from blockfs.filesystem import DiskFileSystem
from blockfs.host import DiskHost

SIZE = 1 << 20
NOBODY: Any = None
"""The request's context; the mount is private, so nothing asks for it."""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DiskHost]:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    yield host
    host.abandon()


async def inode_of(files: DiskFileSystem, vm: str, name: str) -> pyfuse3.InodeT:
    folder = await files.lookup(pyfuse3.ROOT_INODE, vm.encode(), NOBODY)
    return (await files.lookup(folder.st_ino, name.encode(), NOBODY)).st_ino


async def opened(host: DiskHost, name: str, flags: int) -> tuple[DiskFileSystem, pyfuse3.FileHandleT]:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    files = DiskFileSystem(host)
    return files, (await files.open(await inode_of(files, "web01", name), flags, NOBODY)).fh


async def test_fsync_returns_only_after_the_disk_was_flushed(host: DiskHost, monkeypatch: pytest.MonkeyPatch) -> None:
    files, handle = await opened(host, "os.img", os.O_RDWR)
    flushed = []

    async def flush(disk: Disk) -> None:
        flushed.append(disk.place.name)

    monkeypatch.setattr(Disk, "flush", flush)
    await files.write(handle, 0, b"x")
    assert flushed == []
    await files.fsync(handle, datasync=False)
    assert flushed == ["os"]


async def test_an_fsync_that_fails_is_the_guests_error(host: DiskHost, monkeypatch: pytest.MonkeyPatch) -> None:
    files, handle = await opened(host, "os.img", os.O_RDWR)

    async def flush(_disk: Disk) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Disk, "flush", flush)
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.fsync(handle, datasync=True)
    assert failed.value.errno == errno.EIO


async def test_a_full_host_disk_is_enospc_for_the_guest(host: DiskHost, monkeypatch: pytest.MonkeyPatch) -> None:
    files, handle = await opened(host, "os.img", os.O_RDWR)

    def full(_disk: Disk, _offset: int, _data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Disk, "write", full)
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.write(handle, 0, b"x")
    assert failed.value.errno == errno.ENOSPC


async def test_a_disk_opened_for_reading_takes_no_write(host: DiskHost) -> None:
    files, handle = await opened(host, "os.img", os.O_RDONLY)
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.write(handle, 0, b"x")
    assert failed.value.errno == errno.EBADF


async def test_open_handles_are_counted_until_they_are_released(host: DiskHost) -> None:
    files, handle = await opened(host, "os.img", os.O_RDWR)
    second = (await files.open(await inode_of(files, "web01", "os.vhd"), os.O_RDONLY, NOBODY)).fh
    assert host.disk("web01", "os").handles == 2
    await files.release(handle)
    await files.release(second)
    assert host.disk("web01", "os").handles == 0


async def test_pages_of_a_former_disk_of_the_same_name_are_not_kept(host: DiskHost) -> None:
    files, _ = await opened(host, "os.img", os.O_RDWR)
    info = await files.open(await inode_of(files, "web01", "os.img"), os.O_RDWR, NOBODY)
    assert info.keep_cache is False


@pytest.mark.parametrize("name", ["os.000001.hrl", "os.vhd"])
async def test_what_is_not_the_disk_is_not_opened_for_writing(host: DiskHost, name: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await opened(host, name, os.O_RDWR)
    assert failed.value.errno == errno.EACCES
