"""A disk joins the replication of a VM, and keys are rotated, while a role is killed: points are right, without a resync.

``SITERIG_JOIN_KILLS`` (default: one of each role) is the number of kills; ``SITERIG_SEED`` repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from siterig.azure_emu.vault.model.resources import Job, ProtectedItem
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended

pytestmark = [pytest.mark.system, pytest.mark.slow]

ROLES = ("applier", "azurite", "site", "azure", "agent", "vault")
KILLS = int(os.environ.get("SITERIG_JOIN_KILLS", str(len(ROLES))))
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
VM, FIRST = "web01", "os"
DISK_BYTES, NEW_BYTES, BLOCK = 16 << 20, 2 << 20, 4096
KILL_AFTER_S_MAX = 0.5
"""The join of so small a disk takes about as long."""
WITHIN_S = 90.0
"""The time limit of one join with a kill."""
WRITE_EVERY_S = 0.05
Contents = dict[str, bytes]
T = TypeVar("T")


@dataclass
class Run:
    """A rig whose VM gets more and more disks, and the contents that its points must have."""

    rig: Testbed
    rng: random.Random
    disks: dict[str, Path] = field(default_factory=dict)
    contents: dict[str, bytearray] = field(default_factory=dict)
    expected: dict[str, tuple[tuple[str, ...], Contents]] = field(default_factory=dict)
    """The disks that a point lacks, and the contents of those that it has, by the name of the point."""
    replicated: list[str] = field(default_factory=list)
    rotations: int = 0
    mounts: int = 0
    """The number of points that were mounted and compared while roles were killed."""

    async def write(self, disk: str) -> None:
        """Write one block, and repeat that while the disks have no server."""
        data, at = self.rng.randbytes(BLOCK), self.rng.randrange(len(self.contents[disk]) // BLOCK) * BLOCK
        while True:
            try:
                fd = os.open(self.disks[disk], os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.pwrite(fd, data, at)
                    os.fsync(fd)
                finally:
                    os.close(fd)
            except OSError:
                await trio.sleep(WRITE_EVERY_S)
            else:
                self.contents[disk][at : at + BLOCK] = data
                return

    async def write_often(self) -> None:
        while True:
            for disk in self.contents:
                with trio.CancelScope(shield=True):  # so that the content of the block is known
                    await self.write(disk)
            await trio.sleep(WRITE_EVERY_S)

    async def use_keys(self) -> None:
        """Rotate the key of the vault, and mount points; a call that meets a kill may fail, but no byte may be wrong."""
        rng = random.Random(self.rng.random())
        while True:
            with trio.CancelScope(shield=True):  # a call is not cancelled, so that no answer is left unread
                with until_recoverable():
                    await self.rig.vault.rotate_key()
                    self.rotations += 1
                with until_recoverable():
                    await self.compare(rng.choice(sorted(self.expected)))
                    self.mounts += 1
            await trio.sleep(2 * rng.random())  # the random moment of the next rotation

    async def compare(self, name: str) -> None:
        """Compare all bytes of a point; the disks of its mount are gone if the disk host is killed."""
        lacking, contents = self.expected[name]
        points = {point.name: point for point in await self.rig.vault.points(vm=VM)}
        assert points[name].lacking_disks == lacking, name
        for left in await self.rig.vault.mounted_points(vm=VM):  # of a call that a kill interrupted
            await self.rig.vault.unmount_point(vm=VM, name=left.name)
        mounted = await self.rig.vault.mount_point(vm=VM, point=points[name].id)
        assert {disk.name for disk in mounted.disks} == set(contents), name
        for disk in mounted.disks:
            try:
                found = await trio.Path(disk.path).read_bytes()
            except OSError as error:
                raise RigError(Code.HostIoError, str(error), recoverable=True) from error
            assert found == contents[disk.name], (name, disk.name)
        await self.rig.vault.unmount_point(vm=VM, name=mounted.name)

    async def attach(self, name: str) -> None:
        """Attach a disk, and fill half of it."""
        made = await self.rig.vault.attach_disk(vm=VM, disk=DiskSpec(name=name, size_bytes=NEW_BYTES))
        self.disks = {disk.name: Path(disk.path) for disk in made.disks}
        self.contents[name] = bytearray(NEW_BYTES)
        data = self.rng.randbytes(NEW_BYTES // 2)
        await trio.Path(self.disks[name]).write_bytes(data + bytes(NEW_BYTES // 2))
        self.contents[name][: len(data)] = data

    async def point(self, name: str) -> None:
        """Take a point while nothing is written."""
        await answered(lambda: self.rig.vault.create_point(vm=VM, kind="CrashConsistent", name=name))
        lacking = tuple(disk for disk in self.contents if disk not in self.replicated)
        self.expected[name] = lacking, {disk: bytes(self.contents[disk]) for disk in self.replicated}

    async def item(self) -> ProtectedItem:
        (item,) = await answered(self.rig.vault.items)
        return item

    async def joined(self, job: Job) -> None:
        """Wait until the job that lets a disk join has succeeded."""
        while job.endTime is None:
            await trio.sleep(0.05)
            job = await answered(lambda: self.rig.vault.job(name=job.name))  # noqa: B023
        assert (job.state, job.stateDescription) == ("Succeeded", "Completed"), job

    async def is_wait_shown(self) -> bool:
        """Return whether a role shows a wait of the VM, or of itself."""
        status = await self.rig.supervisor.status()
        return any(wait.vm in (VM, None) for role in status.roles for wait in role.waits)

    async def check(self) -> None:
        """Compare all points byte by byte, and check that no kill led to a resync."""
        for role in ("vault", "applier", "azure"):  # all keys are read and decrypted again
            await self.rig.supervisor.kill_role(name=role)
        for name in self.expected:
            await answered(lambda: self.compare(name))  # noqa: B023
        assert len(await self.rig.vault.vault_keys()) > self.rotations > 0
        assert await self.rig.vault.unencrypted_disks() == []
        item = await self.item()
        assert (item.protectionState, item.resynchronizationRequired, item.excluded_disks) == ("Protected", None, [])
        assert not {job.scenarioName for job in await self.rig.vault.jobs()} & {"RepairVMReplication", "ReplicateNow"}
        disks = await self.rig.site.list_disks(vm=VM)
        assert sorted((disk.name, disk.needs_resync) for disk in disks) == [(name, None) for name in sorted(self.disks)]
        assert [disk.generation for disk in disks if disk.name == FIRST] == [1]


@contextmanager
def until_recoverable() -> Iterator[None]:
    """End the block at an error that a kill can cause."""
    try:
        yield
    except RigError as error:
        assert error.recoverable or error.code == Code.RoleHeld, f"{error.code}: {error.message}"


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call until it is answered: each failure that a kill causes must be marked as recoverable."""
    while True:
        try:
            return await call()
        except RigError as error:
            assert error.recoverable, f"{error.code}: {error.message}"
        await trio.sleep(0.1)


@asynccontextmanager
async def protected(folder: Path) -> AsyncIterator[Run]:
    async with Testbed.up(folder) as rig:
        run = Run(rig, random.Random(SEED))
        made = await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name=FIRST, size_bytes=DISK_BYTES)])
        run.disks = {disk.name: Path(disk.path) for disk in made.disks}
        run.contents[FIRST] = bytearray(DISK_BYTES)
        await ended(rig, await rig.vault.enable_protection(vm=VM, interval_s=2))
        run.replicated.append(FIRST)
        yield run


async def join_with_a_kill(run: Run, number: int, role: str, *, writes: bool, held: bool) -> None:
    """Let a disk join, and kill a role meanwhile; a role that is held comes back when a wait is shown, or after the end."""
    name = f"d{number}"
    await run.attach(name)
    await run.write(FIRST)
    await run.point(f"before-{name}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.use_keys)
        if writes:
            nursery.start_soon(run.write_often)
        job = await answered(lambda: run.rig.vault.add_disks(vm=VM, disks=[name]))
        await trio.sleep(run.rng.random() * KILL_AFTER_S_MAX)  # the random moment of the kill
        await run.rig.supervisor.kill_role(name=role, hold=held)
        if held:
            while not await run.is_wait_shown() and not (  # noqa: ASYNC110 (in other processes)
                role != "vault" and (await run.rig.vault.job(name=job.name)).endTime
            ):
                await trio.sleep(0.1)
            await run.rig.supervisor.start_role(name=role)
        await run.joined(job)
        nursery.cancel_scope.cancel()
    run.replicated.append(name)
    await run.point(f"with-{name}")


async def test_a_disk_joins_while_a_role_is_killed(tmp_path: Path) -> None:
    print(f"{KILLS} kills, SITERIG_SEED={SEED}")
    async with protected(tmp_path / "rig") as run:
        roles = run.rng.sample(ROLES, len(ROLES))
        for number in range(KILLS):
            role = roles[number % len(roles)]
            with trio.fail_after(WITHIN_S):
                held, writes = run.rng.random() < 0.5, number % len(roles) == 0
                print(f"d{number}: {role} is killed{' and held' * held}{', writes run' * writes}")
                await join_with_a_kill(run, number, role, writes=writes, held=held)
        print(f"{run.rotations} rotations, {run.mounts} mounts under kills")
        await run.check()
