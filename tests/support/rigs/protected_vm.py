"""A rig with a protected VM that is written to at random, and copies of its disks."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from siterig.azure_emu.vault.model.resources import MountedPoint, RecoveryPoint
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.rpc import directory
from siterig.testing.testbed import Testbed
from tests.support.warm_command import run_warm

MIB = 1 << 20


SIZES = {"os": 24 * MIB, "odd": 2 * MIB + 512}


SITERIG = (sys.executable, "-m", "siterig")


Images = dict[str, Path]


async def is_healthy(testbed: Testbed, vm: str) -> bool:
    """Return whether replication of a VM is healthy; cycles that an earlier fault made it miss are acknowledged."""
    (item,) = [each for each in await testbed.vault.items() if each.name == vm]
    for error in item.healthErrors:
        if error.errorCode == "ReplicationCyclesMissed":  # it counts the last hour, so it outlasts the fault
            await testbed.vault.resolve_health_errors(vm=vm, code=error.errorCode)
    return item.replicationHealth == "Normal" and item.resynchronizationRequired is None


class Source:
    """A protected VM, random writes to its disks, and copies of them."""

    def __init__(self, testbed: Testbed, folder: Path) -> None:
        seed = int(os.environ.get("SITERIG_SEED") or random.randrange(1 << 32))
        print(f"SITERIG_SEED={seed}")
        self._rng = random.Random(seed)
        self._testbed = testbed
        self._folder = folder
        self._disks: Images = {}

    async def protect(self) -> None:
        """Create and protect the VM, and wait for its first point."""
        vault = self._testbed.vault
        specs = [DiskSpec(name=name, size_bytes=size) for name, size in SIZES.items()]
        made = await vault.create_vm(vm="web01", disks=specs)
        self._disks = {disk.name: Path(disk.path) for disk in made.disks}
        await self.write()
        await vault.enable_protection(vm="web01", interval_s=2)
        with trio.fail_after(60):
            while (await vault.items())[0].protectionState != "Protected":  # noqa: ASYNC110 (in another process)
                await trio.sleep(0.1)

    async def write(self) -> None:
        """Make overlapping writes, too few for an overflow of a log, and make them durable."""
        await trio.to_thread.run_sync(self._write)

    def _write(self) -> None:
        for path in self._disks.values():
            fd = os.open(path, os.O_WRONLY)
            size = os.fstat(fd).st_size
            for _ in range(40):
                at = self._rng.randrange(size)
                os.pwrite(fd, self._rng.randbytes(min(self._rng.randrange(1, size // 200), size - at)), at)
            os.fsync(fd)
            os.close(fd)

    async def write_at(self, disk: str, offset: int, data: bytes) -> None:
        """Make one write, and make it durable."""

        def write() -> None:
            fd = os.open(self._disks[disk], os.O_WRONLY)
            assert os.pwrite(fd, data, offset) == len(data)
            os.fsync(fd)
            os.close(fd)

        await trio.to_thread.run_sync(write)

    async def copy(self, name: str) -> Images:
        """Copy the disks in their current state."""
        made = {disk: self._folder / f"{name}-{disk}.img" for disk in self._disks}
        for disk, path in self._disks.items():
            await trio.to_thread.run_sync(shutil.copyfile, path, made[disk])
        return made

    async def point(self, name: str) -> tuple[Images, RecoveryPoint]:
        """Write, copy the disks, and take a point of the same state."""
        await self.write()
        copy = await self.copy(name)
        return copy, await self._testbed.vault.create_point(vm="web01", kind="CrashConsistent", name=name)

    async def position(self, name: str) -> tuple[Images, int]:
        """Write, copy the disks, and return the position of the last write, which has no point."""
        await self.write()
        copy = await self.copy(name)
        return copy, max(disk.last_position for disk in await self._testbed.site.list_disks(vm="web01"))


@asynccontextmanager
async def protected(folder: Path) -> AsyncIterator[tuple[Testbed, Source]]:
    """Run a rig with a protected VM during the block."""
    async with Testbed.up(folder / "rig") as testbed:
        source = Source(testbed, folder)
        await source.protect()
        yield testbed, source


async def same(copy: Images, mounted: MountedPoint) -> None:
    """Compare all bytes of a copy with a mounted point; ``cmp`` names the first difference."""
    found = {disk.name: disk.path for disk in mounted.disks}
    assert found.keys() == copy.keys()
    for disk, path in copy.items():
        done = await trio.run_process(["cmp", path, found[disk]], capture_stdout=True, capture_stderr=True, check=False)
        assert done.returncode == 0, (mounted.name, done.stdout + done.stderr)


async def retain(testbed: Testbed, upto: int) -> None:
    """Report to the recovery side which positions to keep, as the vault's retention does."""
    disks = await testbed.site.list_disks(vm="web01")
    await directory.recovery_side(testbed.layout).retain(positions={disk.disk_id: upto for disk in disks})


async def floors(testbed: Testbed) -> list[int]:
    """Return the oldest position of each disk that can be read."""
    recovery = directory.recovery_side(testbed.layout)
    disks = await testbed.site.list_disks(vm="web01")
    return [(await recovery.disk_state(disk_id=disk.disk_id)).floor for disk in disks]


async def run(*command: object) -> str:
    """Run a command that must succeed, and return its standard output."""
    words = [str(word) for word in command]
    done = await trio.to_thread.run_sync(partial(subprocess.run, words, capture_output=True, text=True, check=False))
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


async def siterig(testbed: Testbed, *arguments: object) -> str:
    """Run a command on the rig, and return its standard output."""
    done = await trio.to_thread.run_sync(run_warm, *arguments, "--dir", testbed.layout.root)
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout
