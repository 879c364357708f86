"""Tests of loop devices, mounts and freezing on real files."""

# ruff: noqa: ASYNC220, ASYNC251 (the tests need other processes that block)
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from siterig.blockfs.core.clock import SystemClock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.guests import freezer, loop_devices
from siterig.blockfs.host.disk_host import DiskHost
from siterig.scenarios.workloads.guest import Guest, GuestDisk, check_filesystem
from tests.support.disks.mount_namespace import copied_mount

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]
MIB = 1024 * 1024


def sparse(path: Path, size_bytes: int) -> Path:
    path.touch()
    os.truncate(path, size_bytes)
    return path


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Path]:
    yield tmp_path
    with trio.CancelScope(shield=True):
        await loop_devices.release_below(tmp_path)


async def mounted(host: Path, name: str, filesystem: str = "ext4", size_bytes: int = 64 * MIB) -> tuple[Path, Path]:
    disk = sparse(host / f"{name}.img", size_bytes)
    loop = await loop_devices.attach(disk)
    await loop_devices.mkfs(loop, filesystem, name)
    where = host / "mnt" / name
    await loop_devices.mount(loop, where, filesystem)
    return disk, where


def test_a_mount_point_whose_name_is_not_utf_8_hides_no_other(tmp_path: Path) -> None:
    where = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", where], check=True)
    try:
        assert str(where) in [point for _, _, point in loop_devices.mounts()]
    finally:
        subprocess.run(["umount", where], check=True)


async def test_uses_shows_loop_device_and_mount_and_shutdown_ends_both(host: Path) -> None:
    disk, where = await mounted(host, "os")
    (use,) = await loop_devices.uses(disk)
    assert use.disk == str(disk)
    assert use.loop is not None
    assert use.mountpoints == (str(where),)
    await loop_devices.shutdown([disk])
    assert await loop_devices.uses(disk) == []
    assert not where.is_mount()


async def test_shutdown_names_mount_point_and_the_process_that_uses_it(host: Path) -> None:
    disk, where = await mounted(host, "os")
    with (where / "held").open("w"), subprocess.Popen(["sleep", "60"], cwd=where) as holder:
        try:
            with pytest.raises(RigError) as caught:
                await loop_devices.shutdown([disk])
        finally:
            holder.kill()
    assert caught.value.code == "VmBusy"
    assert caught.value.message.startswith(f"{where} cannot be unmounted, it is held by sleep ({holder.pid}): ")
    assert where.is_mount()


async def test_shutdown_names_a_process_that_has_the_disk_file_open(host: Path) -> None:
    disk = sparse(host / "os.img", MIB)
    with disk.open("rb") as file, subprocess.Popen(["sleep", "60"], stdin=file) as holder:
        try:
            with pytest.raises(RigError) as caught:
                await loop_devices.shutdown([disk])
        finally:
            holder.kill()
    assert caught.value.message == f"disk {disk} is open in sleep ({holder.pid})"


class ImpatientClock(SystemClock):
    def move_on_after(self, seconds: float, *, shield: bool = False) -> trio.CancelScope:
        return super().move_on_after(seconds / 20, shield=shield)


async def test_detach_names_a_process_whose_mount_namespace_has_the_device(host: Path) -> None:
    """A new mount namespace begins with a copy of every mount, which outlives the unmounting of the original."""
    disk, where = await mounted(host, "os")
    (use,) = await loop_devices.uses(disk)
    assert use.loop is not None
    with copied_mount(where) as holder:
        await loop_devices.unmount(where)
        with pytest.raises(RigError) as caught:
            await loop_devices.detach(use.loop, clock=ImpatientClock())
    assert caught.value.code == "VmBusy"
    holders = re.fullmatch(f"loop device {use.loop} is still open: (.*)", caught.value.message)
    assert holders is not None, caught.value.message
    # A process that another test starts in a namespace of its own may be named, too.
    assert re.search(rf"\b(sleep|sh) \({holder}\), in its mount namespace", holders[1])


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_guest_that_is_unmounted_can_be_checked(host: Path, is_kept: bool) -> None:
    """The checkers of XFS and btrfs find errors, or nothing, while another mount namespace has a copy of the mount."""
    disk = sparse(host / "os.img", 320 * MIB)
    (host / "mnt").mkdir()
    attached = GuestDisk("os", disk, "xfs", await loop_devices.attach(disk), host / "mnt" / "os")
    await loop_devices.mkfs(attached.loop, "xfs", "os")
    guest = Guest("web01", [attached])
    await guest.mount()
    (guest["os"] / "file").write_bytes(b"x" * MIB)
    with copied_mount(guest["os"]) as holder:
        if is_kept:
            with pytest.raises(RigError, match=r"^disk 'os' of VM 'web01' is unmounted here, and still") as caught:
                await guest.unmount(clock=ImpatientClock())
            assert caught.value.code == "VmBusy"
            assert re.search(rf"\b(sleep|sh) \({holder}\)", caught.value.message)
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.unmount)
                while guest["os"].is_mount():  # noqa: ASYNC110 (the kernel changes it)
                    await trio.sleep(0.01)
                os.kill(holder, signal.SIGKILL)
            finding = await check_filesystem(attached)
            assert finding.ok, finding.evidence


async def test_release_below_reports_its_actions_and_keeps_other_folders(host: Path) -> None:
    (host / "a").mkdir()
    (host / "ab").mkdir()
    disk, where = await mounted(host / "a", "os")
    other = await loop_devices.attach(sparse(host / "ab" / "x.img", MIB))
    (use,) = await loop_devices.uses(disk)
    assert await loop_devices.release_below(host / "a") == [f"unmounted {where}", f"detached {use.loop} from {disk}"]
    assert [use.loop for use in await loop_devices.uses(host / "ab" / "x.img")] == [other]


async def test_a_copy_of_a_mounted_xfs_can_be_mounted_too(host: Path) -> None:
    disk, where = await mounted(host, "data", "xfs", 300 * MIB)
    (where / "file").write_text("x")
    async with loop_devices.frozen([str(where)], timeout_s=30):
        await trio.run_process(["cp", "--sparse=always", str(disk), str(host / "copy.img")])
    loop = await loop_devices.attach(host / "copy.img")
    await loop_devices.mount(loop, host / "mnt" / "copy", "xfs")
    assert (host / "mnt" / "copy" / "file").read_text() == "x"


async def test_frozen_file_systems_take_no_write_until_the_block_ends(host: Path) -> None:
    _, one = await mounted(host, "one")
    _, two = await mounted(host, "two")
    async with loop_devices.frozen([str(one), str(two)], timeout_s=30):
        writers = [subprocess.Popen(["touch", str(where / "file")]) for where in (one, two)]
        for writer in writers:
            with pytest.raises(subprocess.TimeoutExpired):
                writer.wait(0.2)
    assert [writer.wait(10) for writer in writers] == [0, 0]
    assert (one / "file").exists()
    assert (two / "file").exists()


async def test_a_block_that_exceeds_its_time_is_an_error_and_is_thawed(host: Path) -> None:
    _, where = await mounted(host, "os")
    with pytest.raises(RigError) as caught:
        async with loop_devices.frozen([str(where)], timeout_s=0.2):
            await trio.run_process(["touch", str(where / "file")])  # it ends only after the thaw
    assert caught.value.code == "FreezeTimedOut"
    assert caught.value.message == f"{where} had to be thawed after 0.2 s, before the recovery point was taken"


async def test_if_the_second_cannot_be_frozen_the_first_is_thawed(host: Path) -> None:
    _, one = await mounted(host, "one")
    with pytest.raises(RigError) as caught:
        async with loop_devices.frozen([str(one), "/proc"], timeout_s=30):
            pytest.fail("was frozen")
    assert caught.value.code == "FreezeFailed"
    assert caught.value.message == "cannot freeze /proc: Operation not supported"
    (one / "file").touch()


async def test_a_freeze_that_hangs_keeps_no_other_file_system_frozen(host: Path) -> None:
    _, one = await mounted(host, "one")
    _, outer = await mounted(host, "outer")
    inner = host / "mnt" / "inner"
    loop = await loop_devices.attach(sparse(outer / "disk", 16 * MIB))
    await loop_devices.mkfs(loop, "ext4", "inner")
    await loop_devices.mount(loop, inner, "ext4")
    (inner / "dirty").write_bytes(b"x" * MIB)
    await trio.run_process(["fsfreeze", "--freeze", str(outer)])  # the disk of the inner file system does not answer now
    try:
        with pytest.raises(RigError) as caught:
            async with loop_devices.frozen([str(one), str(inner)], timeout_s=0.2):
                pytest.fail("was frozen")
        assert caught.value.code == "FreezeTimedOut"
        writer = subprocess.Popen(["touch", str(one / "file")])
        assert writer.wait(10) == 0
    finally:
        await trio.run_process(["fsfreeze", "--unfreeze", str(outer)])
    assert subprocess.Popen(["touch", str(inner / "file")]).wait(10) == 0, "it is thawed, too"
    with trio.fail_after(10):
        while not await unmounted(inner):  # noqa: ASYNC110 (another process ends)
            await trio.sleep(0.05)
    await loop_devices.detach(loop)


async def unmounted(where: Path) -> bool:
    try:
        await loop_devices.unmount(where)
    except RigError:
        return False
    return True


async def test_an_error_in_the_block_thaws_and_is_raised_unchanged(host: Path) -> None:
    _, one = await mounted(host, "one")
    with pytest.raises(ZeroDivisionError):
        async with loop_devices.frozen([str(one)], timeout_s=30):
            _ = 1 // 0
    (one / "file").touch()


@pytest.mark.parametrize("end", ["parent dies", "SIGTERM"])
async def test_the_freezer_thaws_if_its_parent_dies_or_on_sigterm(host: Path, end: str) -> None:
    _, one = await mounted(host, "one")
    with subprocess.Popen(
        [sys.executable, "-m", "siterig.blockfs.guests.freezer", "60", str(one)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == b"frozen\n"
        child.send_signal(signal.SIGINT)  # Ctrl-C reaches the whole group: nothing happens
        time.sleep(0.1)
        assert child.poll() is None
        if end == "SIGTERM":
            child.terminate()
        else:
            child.stdin.close()
        assert child.wait(10) == (freezer.EXIT_STOPPED if end == "SIGTERM" else freezer.EXIT_THAWED)
    (one / "file").touch()


async def test_a_loop_device_on_a_disk_file_prevents_the_start_of_a_log(host: Path) -> None:
    disks = DiskHost(host / "disks", host / "mnt")
    await disks.create_disk(vm="web01", name="os", size_bytes=MIB)
    await disks.start_tracking(vm="web01")
    disks.close()
    loop = await loop_devices.attach(host / "disks/web01/os.img")
    disks = DiskHost(host / "disks", host / "mnt")
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disks.run_maintenance)
            while (await disks.list_disks())[0].needs_resync != "ImageChanged":
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
    with pytest.raises(RigError, match=f"losetup -d {loop}") as refused:
        await disks.start_tracking(vm="web01", new_generation=True)
    assert refused.value.code == "DiskInUse"
    await loop_devices.detach(loop)
    (info,) = await disks.start_tracking(vm="web01", new_generation=True)
    assert info.needs_resync is None
    disks.close()
