"""Tests of a committed failover in a real rig: hydration makes its disk independent while a guest writes to it."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.disks.pins import pins
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended
from tests.support.stores.stored_bytes import cipher

pytestmark = pytest.mark.system

MIB = 1 << 20
DISK_BYTES = 192 * MIB
DATA_BYTES = 128 * MIB
VM = "web01"
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))


class Guest:
    """A thread that writes random blocks through the mount, and compares what it reads with a model."""

    def __init__(self, disk: Path, model: bytearray) -> None:
        self._disk, self._model = disk, model
        self._dice = random.Random(SEED)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.writes = 0
        self.wrong: list[str] = []

    def _run(self) -> None:
        fd = os.open(self._disk, os.O_RDWR)
        try:
            while not self._stop.is_set():
                offset = self._dice.randrange(len(self._model) - 65536)
                data = self._dice.randbytes(self._dice.choice((100, 4096, 20_000)))
                os.pwrite(fd, data, offset)
                self._model[offset : offset + len(data)] = data
                probe = self._dice.randrange(len(self._model) - 65536)
                if os.pread(fd, 8192, probe) != self._model[probe : probe + 8192]:
                    self.wrong.append(f"8192 bytes at {probe} after {self.writes} writes")
                self.writes += 1
                if self.writes % 50 == 0:
                    os.fsync(fd)
        finally:
            os.close(fd)

    def __enter__(self) -> Guest:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def write(path: Path, data: bytes) -> None:
    """Write data to the start of a file, and make it durable."""
    with path.open("r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


async def disk_when(testbed: Testbed, wanted: Callable[[DiskInfo], bool]) -> DiskInfo:
    with trio.fail_after(120):
        while True:
            (disk,) = await testbed.azure.list_disks(vm=VM)
            if wanted(disk):
                return disk
            await trio.sleep(0.02)


async def test_a_committed_disk_is_hydrated_under_load_and_despite_a_kill(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    print(f"SITERIG_SEED={SEED}")
    content = random.Random(SEED + 1).randbytes(DATA_BYTES)
    async with Testbed.up(tmp_path_factory.mktemp("p")) as testbed:
        vault = testbed.vault
        vm = await vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=DISK_BYTES)])
        image = Path(vm.disks[0].path)
        write(image, content)
        await ended(testbed, await vault.enable_protection(vm=VM, interval_s=30))
        job = await ended(testbed, await vault.unplanned_failover(vm=VM, point="LatestProcessed"))
        assert job.result is not None
        disk = Path(job.result.disks[0].path)
        model = bytearray(content + bytes(DISK_BYTES - DATA_BYTES))
        folder = testbed.layout.azure_vms / VM
        with Guest(disk, model) as guest:
            await ended(testbed, await vault.commit_failover(vm=VM))
            info = await disk_when(testbed, lambda disk: disk.promotion is None or disk.promotion.done_bytes > 4 * MIB)
            assert info.promotion is not None
            assert (folder / "os.top").exists()
        assert (guest.wrong, guest.writes > 0) == ([], True)
        # The host is killed during hydration, which continues without a command.
        await testbed.supervisor.kill_role(name="azure", hold=True)
        assert (folder / "os.top").exists()
        await testbed.supervisor.start_role(name="azure")
        with Guest(disk, model) as guest:
            info = await disk_when(testbed, lambda disk: disk.promotion is None)
        assert (guest.wrong, guest.writes > 0) == ([], True)
        assert (info.tracked, info.needs_resync) == (True, None)
        assert disk.read_bytes() == model
        whole = (await cipher(testbed, "os")).decrypt((folder / "os.img").read_bytes(), 0)
        assert whole == model, "the raw file alone is not the disk, encrypted"
        assert not list(folder.glob("os.top*"))
        assert (folder / "os.img").stat().st_blocks * 512 < DISK_BYTES, "a hole of the managed disk is not a hole here"
        (replica,) = [item for item in (testbed.layout.managed_disks).iterdir() if (item / "disk.json").exists()]
        assert pins(replica) == [], "a position of the managed disk is still pinned"
        # The failback works as before.
        for step in (vault.failback, vault.commit_failover, vault.reprotect):
            await ended(testbed, await step(vm=VM))
        assert image.read_bytes() == model
