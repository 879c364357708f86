"""The file system's operations, called without a mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest

from siterig.blockfs.disk.disk_tracking import DiskTracking
from siterig.blockfs.fuse.filesystem import DiskFileSystem
from siterig.blockfs.host.disk_host import DiskHost
from tests.support.disks.fuse_calls import NOBODY, inode_of
from tests.support.io_faults import SYNC, WRITE, failing, io_verdict

SIZE = 1 << 20
RESIZE = cast(
    pyfuse3.SetattrFields,
    SimpleNamespace(
        update_size=True, update_mode=False, update_uid=False, update_gid=False, update_atime=False, update_mtime=False
    ),
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DiskHost]:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    yield host
    host.abandon()


async def opened(host: DiskHost, name: str, flags: int) -> tuple[DiskFileSystem, pyfuse3.FileHandleT]:
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    files = DiskFileSystem(host)
    return files, (await files.open(await inode_of(files, "web01", name), flags, NOBODY)).fh


async def test_fsync_returns_only_after_log_and_disk_were_synced(host: DiskHost) -> None:
    files, handle = await opened(host, "os.img", os.O_RDWR)
    synced: list[str] = []

    def note(operation: int, path: str, _offset: int, _size: int) -> int:
        if operation == SYNC:
            synced.append(Path(path).name)
        return 0

    with io_verdict(note):
        await files.write(handle, 0, b"x")
        assert synced == []
        await files.fsync(handle, datasync=False)
        assert synced == ["os.000001.hrl", "os.img"]


async def test_a_failed_fsync_is_an_error_for_the_guest(host: DiskHost) -> None:
    files, handle = await opened(host, "os.img", os.O_RDWR)
    with failing(SYNC, ".img", errno.EIO), pytest.raises(pyfuse3.FUSEError) as failed:
        await files.fsync(handle, datasync=True)
    assert failed.value.errno == errno.EIO


async def test_a_full_host_disk_is_enospc_for_the_guest(host: DiskHost) -> None:
    files, handle = await opened(host, "os.img", os.O_RDWR)
    with failing(WRITE, ".hrl", errno.ENOSPC), pytest.raises(pyfuse3.FUSEError) as failed:
        await files.write(handle, 0, b"x")
    assert failed.value.errno == errno.ENOSPC


async def grown(files: DiskFileSystem, inode: pyfuse3.InodeT, size_bytes: int) -> int:
    wanted = pyfuse3.EntryAttributes()
    wanted.st_size = size_bytes
    return (await files.setattr(inode, wanted, RESIZE, None, NOBODY)).st_size


async def test_a_disk_is_grown_through_its_file_and_never_shrunk(host: DiskHost) -> None:
    files, handle = await opened(host, "os.img", os.O_RDWR)
    inode = await inode_of(files, "web01", "os.img")
    assert await grown(files, inode, 2 * SIZE) == 2 * SIZE
    assert await files.write(handle, 2 * SIZE - 3, b"end") == 3
    assert host.disk("web01", "os").state.size_bytes == 2 * SIZE
    for size, error in ((SIZE, errno.EPERM), (2 * SIZE + 1, errno.EINVAL)):
        with pytest.raises(pyfuse3.FUSEError) as failed:
            await grown(files, inode, size)
        assert failed.value.errno == error


async def test_a_disk_opened_for_reading_refuses_writes(host: DiskHost) -> None:
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


async def test_cached_pages_of_an_earlier_disk_of_the_same_name_are_dropped(host: DiskHost) -> None:
    files, _ = await opened(host, "os.img", os.O_RDWR)
    info = await files.open(await inode_of(files, "web01", "os.img"), os.O_RDWR, NOBODY)
    assert info.keep_cache is False


@pytest.mark.parametrize("name", ["os.000001.hrl", "os.vhd"])
async def test_files_other_than_the_disk_cannot_be_opened_for_writing(host: DiskHost, name: str) -> None:
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await opened(host, name, os.O_RDWR)
    assert failed.value.errno == errno.EACCES


async def test_a_segment_that_is_deleted_during_a_lookup_is_not_found(
    host: DiskHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, _ = await opened(host, "os.img", os.O_RDWR)

    def gone(*_args: object) -> int:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(DiskTracking, "segment_bytes", gone)
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await inode_of(files, "web01", "os.000001.hrl")
    assert failed.value.errno == errno.ENOENT


async def test_all_opens_of_a_disk_use_the_caching_mode_of_the_first_one(host: DiskHost) -> None:
    """With different modes, a direct write could leave old bytes in the cache of a buffered reader."""
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    files = DiskFileSystem(host)
    disk, vhd = await inode_of(files, "web01", "os.img"), await inode_of(files, "web01", "os.vhd")
    direct, buffered = os.O_RDWR | os.O_DIRECT, os.O_RDWR
    for first, second, uncached in ((direct, buffered, True), (buffered, direct, False), (direct, direct, True)):
        beside = await files.open(vhd, os.O_RDONLY, NOBODY)  # has its own cached pages, so its mode does not matter
        infos = [await files.open(disk, flags, NOBODY) for flags in (first, second)]
        assert [info.direct_io for info in infos] == [uncached, uncached]
        for info in (*infos, beside):
            await files.release(info.fh)
