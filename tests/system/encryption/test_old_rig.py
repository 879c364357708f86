"""A rig of an older siterig, whose data were not encrypted, is taken up: its disks become encrypted and all points stay.

``tests/vectors/rig_before_encryption.tar.xz`` is the folder of a rig of commit 1835e342, the last one without encryption,
after ``down``: VM ``web01`` with disk ``os`` of 256 KiB, with the points ``after-2`` and ``after-3``.  Before the protection
the blocks of ``written(1)`` were written, before each point those of ``written(2)`` and ``written(3)``.
"""

from __future__ import annotations

import os
import random
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import trio

from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended

pytestmark = [pytest.mark.system, pytest.mark.slow]

VECTOR = Path(__file__).parents[2] / "vectors" / "rig_before_encryption.tar.xz"
VM, DISK_BYTES, BLOCK = "web01", 256 << 10, 4096
WITHIN_S = 180
"""The time limit of all steps, far beyond their usual time."""


def written(number: int) -> list[tuple[int, bytes]]:
    rng = random.Random(number)
    return [(rng.randrange(DISK_BYTES // BLOCK) * BLOCK, rng.randbytes(BLOCK)) for _ in range(6)]


def state(number: int) -> bytes:
    """Return the contents of the disk after these writes and all before them."""
    data = bytearray(DISK_BYTES)
    for each in range(1, number + 1):
        for at, block in written(each):
            data[at : at + BLOCK] = block
    return bytes(data)


async def contents(rig: Testbed, point: str) -> bytes:
    mounted = await rig.vault.mount_point(vm=VM, point=point)
    (disk,) = mounted.disks
    try:
        return await trio.Path(disk.path).read_bytes()
    finally:
        await rig.vault.unmount_point(vm=VM, name=mounted.name)


def blocks_in(files: list[Path]) -> list[str]:
    """Return the files with a block that the guest wrote."""
    blocks = [block for number in (1, 2, 3) for _, block in written(number)]
    return [str(path) for path in files if any(block in path.read_bytes() for block in blocks)]


async def test_a_rig_from_before_encryption_is_taken_up(tmp_path: Path) -> None:
    with tarfile.open(VECTOR) as vector:
        vector.extractall(tmp_path)  # noqa: S202 (a file of this repository)
    folder = tmp_path / "rig"
    with closing(sqlite3.connect(folder / "vault.db")) as database, database:
        database.execute("UPDATE item SET history_hours = 1000000")  # the points are as old as the vector
    (managed,) = (folder / "azure" / "disks").iterdir()
    assert blocks_in([path for path in managed.rglob("*") if path.is_file()]), "the old rig has encrypted data"
    with trio.fail_after(WITHIN_S):
        async with Testbed.up(folder) as rig:
            while await rig.vault.unencrypted_disks():  # noqa: ASYNC110 (in another process)
                await trio.sleep(0.1)
            for number in (2, 3):
                assert await contents(rig, f"after-{number}") == state(number)
            (disk,) = await rig.site.list_disks(vm=VM)
            fd = os.open(disk.path, os.O_RDWR)
            try:
                assert os.pread(fd, DISK_BYTES, 0) == state(3)
                for at, block in written(4):
                    os.pwrite(fd, block, at)
                os.fsync(fd)
            finally:
                os.close(fd)
            await rig.vault.create_point(vm=VM, kind="CrashConsistent", name="after-4")
            for number in (2, 3, 4):
                assert await contents(rig, f"after-{number}") == state(number)
            (item,) = await rig.vault.items()
            assert (item.protectionState, item.resynchronizationRequired) == ("Protected", None)
            assert "RepairVMReplication" not in [job.scenarioName for job in await rig.vault.jobs()]
            job = await ended(rig, await rig.vault.test_failover(vm=VM, point="after-2"))
            assert job.result is not None
            assert await trio.Path(job.result.disks[0].path).read_bytes() == state(2)
            await ended(rig, await rig.vault.cleanup_test_failover(vm=VM))
        assert blocks_in([path for path in (folder / "azure").rglob("*") if path.is_file()]) == []
