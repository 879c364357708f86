"""The names in a mount: a folder for each VM, or one disk in the mount's own folder."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pyfuse3
import pytest
import trio
import trio.testing

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_tracking import DiskTracking
from siterig.blockfs.fuse.filesystem import DiskFileSystem
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.host.disk_tree import ROOT, SingleDisk, maintain_once
from tests.support.disks.fuse_calls import NOBODY, listed

SIZE = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Yield a tracked disk whose name contains a dot, like names of images."""
    paths = DiskPaths(tmp_path, "", "debian-12.5")
    make_raw(paths, SIZE)
    positions = PositionCounter(tmp_path / "position")
    disk = Disk.open(paths, DiskOptions(positions), None)
    disk.tracking.start(new_generation=False)
    yield disk
    disk.close()
    positions.close()


async def test_a_single_disk_is_in_the_mounts_own_folder(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    files = DiskFileSystem(SingleDisk(disk, -1))
    found = await listed(files, pyfuse3.ROOT_INODE, monkeypatch)
    assert list(found) == ["debian-12.5.000001.hrl", "debian-12.5.img", "debian-12.5.stats", "debian-12.5.vhd"]
    for name, inode in found.items():
        entry = await files.lookup(pyfuse3.ROOT_INODE, name.encode(), NOBODY)
        assert (entry.st_ino, entry.st_mode & 0o200) == (inode, 0o200 if name.endswith(".img") else 0)


async def test_a_file_is_no_folder_and_unknown_names_are_not_found(disk: Disk) -> None:
    files = DiskFileSystem(SingleDisk(disk, -1))
    image = (await files.lookup(pyfuse3.ROOT_INODE, b"debian-12.5.img", NOBODY)).st_ino
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.lookup(image, b"anything", NOBODY)
    assert failed.value.errno == errno.ENOTDIR
    for name in (b"debian-12.img", b"debian-12.5", b"debian-12.5.000002.hrl", b"debian-12.5.snapshot", b".hrl"):
        with pytest.raises(pyfuse3.FUSEError) as failed:
            await files.lookup(pyfuse3.ROOT_INODE, name, NOBODY)
        assert failed.value.errno == errno.ENOENT


async def test_lookups_of_unknown_names_use_no_memory(disk: Disk) -> None:
    files = DiskFileSystem(SingleDisk(disk, -1))
    before = files.inodes_known
    for number in range(100):
        with pytest.raises(pyfuse3.FUSEError):
            await files.lookup(pyfuse3.ROOT_INODE, b"no-such-%d" % number, NOBODY)
    assert files.inodes_known == before


async def test_a_host_has_one_folder_for_each_vm_and_no_disk_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    assert host.disks_in(ROOT) == {}
    assert host.disks_in("web02") is None
    files = DiskFileSystem(host)
    found = await listed(files, pyfuse3.ROOT_INODE, monkeypatch)
    assert list(found) == ["web01"]
    assert list(await listed(files, pyfuse3.InodeT(found["web01"]), monkeypatch)) == ["os.img", "os.stats", "os.vhd"]
    await host.remove_vm(vm="web01")
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.getattr(pyfuse3.InodeT(found["web01"]), NOBODY)
    assert failed.value.errno == errno.ENOENT
    host.close()


async def test_only_a_disk_that_raised_the_event_is_maintained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    host, came, failing = DiskHost(tmp_path / "disks", tmp_path / "mnt"), list[str](), True
    maintain = DiskTracking.maintain
    send, receive = trio.open_memory_channel[None](100)
    token = trio.lowlevel.current_trio_token()

    def recorded(tracking: DiskTracking) -> None:
        vm = next(disk.paths.vm for disk in host.registry.all_disks() if disk.tracking is tracking)
        came.append(vm)
        trio.from_thread.run_sync(send.send_nowait, None, trio_token=token)
        if vm == "one" and failing:
            raise OSError(errno.ENOSPC, "no room")
        maintain(tracking)

    async def check_cut(vm: str, *maintained: str) -> None:
        came.clear()
        await host.cut(vm=vm, kind="CrashConsistent", name="cut")
        while not set(came) >= set(maintained):
            await receive.receive()
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert set(came) == set(maintained)

    try:
        for vm in ("one", "two", "three"):
            await host.create_disk(vm=vm, name="disk", size_bytes=SIZE)
            await host.start_tracking(vm=vm)
        nursery.start_soon(host.run_maintenance)
        await trio.testing.wait_all_tasks_blocked(0.02)
        monkeypatch.setattr(DiskTracking, "maintain", recorded)
        await check_cut("two", "two")
        await check_cut("one", "one")
        failing = False
        await check_cut("three", "one", "three")
        await check_cut("three", "three")
        nursery.cancel_scope.cancel()
    finally:
        host.close()


async def test_maintenance_passes_over_a_disk_that_was_removed_meanwhile(tmp_path: Path) -> None:
    """The list of disks is older than the removal: maintenance of the disk before it took a while."""
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    try:
        for vm in ("one", "two"):
            await host.create_disk(vm=vm, name="disk", size_bytes=SIZE)
            await host.start_tracking(vm=vm)
        disks = host.registry.all_disks()
        await host.remove_vm(vm="two")
        await maintain_once(disks)
    finally:
        host.close()
