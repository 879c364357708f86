"""A fenced VM: its disks refuse every change, durably, and everything else continues."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.host.disk_host import DiskHost
from siterig.cext._core import ffi, lib

SIZE = 256 << 10
CHANGES: dict[str, Callable[[Disk], object]] = {
    "write": lambda disk: disk.write(0, b"new"),
    "zero": lambda disk: disk.zero(0, 4096),
    "discard": lambda disk: disk.zero(0, 4096, discard=True),
    "growth": lambda disk: disk.resize(2 * SIZE),
}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DiskHost]:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    yield host
    host.abandon()


async def two_disks(host: DiskHost) -> None:
    for name in "ab":
        await host.create_disk(vm="web01", name=name, size_bytes=SIZE)
    await host.start_tracking(vm="web01")


def restart(host: DiskHost) -> DiskHost:
    host.abandon()
    return DiskHost(host.root, host.mountpoint)


def refused(disk: Disk, change: str) -> bool:
    before = disk.read(0, SIZE), disk.size_bytes, disk.tracking.log.last_seq
    try:
        CHANGES[change](disk)
    except OSError as error:
        assert error.errno == errno.EROFS
        assert (disk.read(0, SIZE), disk.size_bytes, disk.tracking.log.last_seq) == before
        return True
    return False


@pytest.mark.parametrize("change", CHANGES)
async def test_a_fenced_disk_refuses_a_change_also_after_a_kill(host: DiskHost, change: str) -> None:
    await two_disks(host)
    host.disk("web01", "a").write(0, b"old")
    assert {disk.fenced for disk in await host.fence(vm="web01", fenced=True)} == {True}
    await host.fence(vm="web01", fenced=True)
    assert all(refused(host.disk("web01", name), change) and host.disk("web01", name).read_only for name in "ab")
    again = restart(host)
    try:
        assert refused(again.disk("web01", "a"), change)
        assert {disk.fenced for disk in await again.list_disks()} == {True}
        assert {disk.fenced for disk in await again.fence(vm="web01", fenced=False)} == {False}
        assert not refused(again.disk("web01", "a"), change)
        assert not again.disk("web01", "a").read_only
    finally:
        again.abandon()


async def test_a_file_that_was_open_for_writing_is_refused_too(host: DiskHost) -> None:
    await two_disks(host)
    handle = lib.sr_handle_open(host.disk("web01", "a").c, lib.SR_HANDLE_DISK, 1, ffi.NULL, -1, 0)
    try:
        assert lib.sr_handle_write(handle, b"one", 3, 0) == 3
        await host.fence(vm="web01", fenced=True)
        assert lib.sr_handle_write(handle, b"two", 3, 0) == -errno.EROFS
        assert lib.sr_handle_fallocate(handle, 3, 0, 4096) == -errno.EROFS  # a discard
        assert lib.sr_handle_flush(handle) == 0
        await host.fence(vm="web01", fenced=False)
        assert lib.sr_handle_write(handle, b"two", 3, 0) == 3
    finally:
        lib.sr_handle_close(handle)


async def test_cuts_of_a_fenced_vm_are_possible(host: DiskHost) -> None:
    await two_disks(host)
    await host.fence(vm="web01", fenced=True)
    cut = await host.cut(vm="web01", kind="CrashConsistent", name="p")
    disks = await host.list_disks()
    assert [disk.name for disk in disks if disk.last_position >= cut.position and disk.needs_resync is None] == ["a", "b"]


async def test_disks_that_come_back_are_not_fenced(host: DiskHost) -> None:
    await two_disks(host)
    await host.fence(vm="web01", fenced=True)
    staging = await host.begin_replace(vm="web01", disk="a", size_bytes=SIZE)
    Path(staging.path).write_bytes(bytes(SIZE))
    assert {disk.fenced for disk in await host.commit_replace(vm="web01", keep=[])} == {False}
    for name in "ab":
        host.disk("web01", name).write(0, b"new")
        assert not DiskState.load(host.disk("web01", name).paths.file("disk")).fenced


async def test_a_fence_that_cannot_be_stored_is_not_in_force(host: DiskHost, monkeypatch: pytest.MonkeyPatch) -> None:
    await two_disks(host)

    def full(_state: DiskState, _path: Path) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(DiskState, "save", full)
        with pytest.raises(RigError):
            await host.fence(vm="web01", fenced=True)
    host.disk("web01", "a").write(0, b"new")
    await host.fence(vm="web01", fenced=True)
    with monkeypatch.context() as patch:
        patch.setattr(DiskState, "save", full)
        with pytest.raises(RigError):
            await host.fence(vm="web01", fenced=False)
    assert refused(host.disk("web01", "a"), "write")


async def test_an_unknown_vm_cannot_be_fenced(host: DiskHost) -> None:
    with pytest.raises(RigError, match="db01"):
        await host.fence(vm="db01", fenced=True)
