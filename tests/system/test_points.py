"""Recovery points as files in a real mount: compared with copies of the disks taken at the tags."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from azure_emu.ports import DiskSpec
from blockfs.errors import RigError
from siterig.testbed import Testbed
from tests.system.needs import needs_program

pytestmark = pytest.mark.system

MIB = 1 << 20
SIZES = {"os": 24 * MIB, "odd": 2 * MIB + 512}
SITERIG = (sys.executable, "-m", "siterig")


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of a short name: below it is a socket, and the kernel allows 107 bytes for its path."""
    folder = tmp_path_factory.mktemp("p")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


class Source:
    """The source VM's disks, written to at random; copies of them."""

    def __init__(self, folder: Path, disks: dict[str, Path], rng: random.Random) -> None:
        self._folder = folder
        self._disks = disks
        self._rng = rng

    def write(self, times: int = 40) -> None:
        """Writes that overlap, of any length, and holes punched; durable at the end."""
        for path in self._disks.values():
            fd = os.open(path, os.O_WRONLY)
            size = os.fstat(fd).st_size
            for _ in range(times):
                at = self._rng.randrange(size)
                os.pwrite(fd, self._rng.randbytes(min(self._rng.randrange(1, 60_000), size - at)), at)
            os.fsync(fd)
            os.close(fd)

    def copy(self, name: str) -> dict[str, Path]:
        """The disks as they are now."""
        made = {}
        for disk, path in self._disks.items():
            made[disk] = self._folder / f"{name}-{disk}.img"
            shutil.copyfile(path, made[disk])
        return made


def compare(copy: dict[str, Path], mounted: dict[str, Path]) -> None:
    """Byte by byte; names the first that differs."""
    assert copy.keys() == mounted.keys()
    for disk, path in copy.items():
        done = subprocess.run(["cmp", path, mounted[disk]], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def siterig(testbed: Testbed, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*SITERIG, *arguments, "--dir", str(testbed.layout.root)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def qemu_img(*arguments: object) -> str:
    done = subprocess.run(["qemu-img", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_program("qemu-img")
async def test_points_and_a_position_are_mounted_at_once_survive_a_restart_and_are_exported(folder: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    async with Testbed.up(folder / "rig") as testbed:
        vault = testbed.vault
        vm = await vault.create_vm(vm="web01", disks=[DiskSpec(name=n, size_bytes=size) for n, size in SIZES.items()])
        source = Source(folder, {disk.name: Path(disk.path) for disk in vm.disks}, random.Random(seed))
        await trio.to_thread.run_sync(source.write)
        job = await vault.enable_protection(vm="web01", interval_s=2)
        while not await vault.points(vm="web01"):
            await trio.sleep(0.1)
            assert (await vault.job(name=job.name)).state != "Failed"

        copies: dict[str, dict[str, Path]] = {}
        positions: dict[str, int] = {}
        points = []
        for name in ("first", "second"):
            await trio.to_thread.run_sync(source.write)
            copies[name] = await trio.to_thread.run_sync(source.copy, name)
            while not points or points[-1].name != name:
                try:
                    points.append(await vault.create_point(vm="web01", kind="CrashConsistent", name=name))
                except RigError as error:
                    assert error.code == "JobInProgress"  # the job that finalizes protection
                    await trio.sleep(0.2)
            positions[name] = points[-1].position
            # Between the points: nothing but these writes happens to the disks, so the newest position is that of the last one.
            await trio.to_thread.run_sync(source.write)
            copies[f"after {name}"] = await trio.to_thread.run_sync(source.copy, f"after-{name}")
            positions[f"after {name}"] = max(disk.last_position for disk in await testbed.site.list_disks(vm="web01"))
        last = await vault.create_point(vm="web01", kind="CrashConsistent", name="last")

        mounts = [
            await vault.mount_point(vm="web01", point=points[0].id),
            await vault.mount_point(vm="web01", position=positions["after first"]),
            await vault.mount_point(vm="web01", point=points[1].id),
            await vault.mount_point(vm="web01", position=positions["after second"]),
        ]
        order = ["first", "after first", "second", "after second"]
        await trio.to_thread.run_sync(source.write)  # what goes on at the site changes nothing of them

        async def all_as_they_were() -> None:
            for name, mount in zip(order, mounts, strict=True):
                images = {disk.name: Path(disk.path) for disk in mount.disks}
                await trio.to_thread.run_sync(compare, copies[name], images)

        await all_as_they_were()
        os_disk = next(disk for disk in mounts[1].disks if disk.name == "os")
        assert os_disk.vhd is not None
        assert next(disk for disk in mounts[1].disks if disk.name == "odd").vhd is None
        compared = await trio.to_thread.run_sync(
            qemu_img, "compare", "-f", "raw", "-F", "vpc", copies["after first"]["os"], os_disk.vhd
        )
        assert "Images are identical." in compared
        for refused in (lambda: os.open(os_disk.path, os.O_RDWR), lambda: os.truncate(os_disk.path, 4096)):
            with pytest.raises(OSError, match="Read-only file system"):
                await trio.to_thread.run_sync(refused)

        await testbed.supervisor.kill_role(name="azure", hold=False)
        with trio.fail_after(30):
            while True:
                try:
                    if len(await testbed.azure.list_recoveries()) == 4:
                        break
                except RigError:
                    pass
                await trio.sleep(0.1)
        await all_as_they_were()

        by_time = await vault.mount_point(vm="web01", time=last.recoveryPointTime)
        assert by_time.position >= positions["after second"]

        listed = await trio.to_thread.run_sync(siterig, testbed, "point", "list", "web01", "--json")
        assert listed.returncode == 0, listed.stderr
        assert len(json.loads(listed.stdout)["mounted"]) == 5
        for format_ in ("raw", "qcow2", "vhd"):
            to = folder / f"exported.{format_}"
            done = await trio.to_thread.run_sync(
                siterig, testbed, "point", "export", "web01", "--disk", "os", "--position", str(positions["after first"]),
                "--format", format_, "--to", str(to),
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            name = {"vhd": "vpc"}.get(format_, format_)
            qemu_img("compare", "-f", "raw", "-F", name, copies["after first"]["os"], to)
        for mount in (*mounts, by_time):
            done = await trio.to_thread.run_sync(siterig, testbed, "point", "unmount", "web01", mount.name)
            assert done.returncode == 0, done.stderr
        assert await vault.mounted_points(vm="web01") == []
        assert not (testbed.layout.azure_mount / "recovery").exists()

        made = await trio.to_thread.run_sync(
            siterig, testbed, "vm", "create", "copy", "--disk", f"os={folder / 'exported.qcow2'}:32MiB", "--json"
        )  # fmt: skip
        assert made.returncode == 0, made.stderr
        path = json.loads(made.stdout)["disks"][0]["path"]
        with open(path, "rb") as file:  # noqa: ASYNC230 (a test of files)
            data = file.read()
        assert data == copies["after first"]["os"].read_bytes() + bytes(8 * MIB)
