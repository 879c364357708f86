"""Tests with kill -9 of the rig's roles under load: no data is lost or mixed, and no resync is needed.

``SITERIG_ROLE_KILLS`` (default 8) is the number of kills, and more points are compared after more kills; ``SITERIG_SEED``
repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from siterig.azure_emu.storage.azurite import connection_string
from siterig.azure_emu.storage.blob_cache import BlobCacheAccount
from siterig.azure_emu.vault.model.resources import Job, ProtectedItem, RecoveryPoint, Vm
from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.part_name import PartName, Watermark
from siterig.rpc import directory
from siterig.rpc.trust import storage_tls
from siterig.testing.testbed import Testbed
from tests.crash.role_load import DISKS, Load, Still, first_difference

pytestmark = pytest.mark.system

KILLS = int(os.environ.get("SITERIG_ROLE_KILLS", "8"))
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
ROLES = ("site", "agent", "azurite", "applier", "vault", "azure")
FORK_SERVER = "fork server"
"""It is killed once: after five ends within a minute, the supervisor would not start a role again."""
VM = "web01"
DISK_BYTES = 128 << 20
"""A size for which no log is abandoned: that happens at half of it, far more than the load writes while a role is down."""
INTERVAL_S = 1.0
KILL_EVERY_S_MAX = 3.0
MORE_KILLS_MAX = 40
"""The largest number of further kills, until a test failover has succeeded under kills and its disks were compared."""
FIRST_KILLS, FIRST_KILL_EVERY_S_MAX = 3, 0.6
"""The first kills, which meet the initial replication."""
CATCH_UP_S_MAX = 60.0
STILL_S_MAX = 2.0
"""The longest pause of the load for a point: the kills must meet the load."""
POINTS_CHECKED = max(3, KILLS // 4)
"""The number of points of each kind that are failed over and compared."""

T = TypeVar("T")


@dataclass
class Run:
    """A rig with a protected VM under load, and everything that was observed of it."""

    rig: Testbed
    load: Load
    rng: random.Random
    stills: list[Still] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    """Errors that callers met because a role was down."""
    tests: Counter[str] = field(default_factory=Counter)
    """The results of test failovers that met kills."""
    compared: int = 0
    """The number of test failovers under kills that succeeded and whose disks were compared."""
    operating: trio.Lock = field(default_factory=trio.Lock)
    """The lock for operations: a VM has one at a time."""

    async def retry_until_ok(self, call: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it is answered: each failure that a kill causes must be marked as recoverable."""
        with trio.fail_after(CATCH_UP_S_MAX):
            while True:
                try:
                    return await call()
                except RigError as error:
                    assert error.recoverable, f"{error.code}: {error.message}"
                    self.refused[error.code] += 1
                await trio.sleep(0.2)

    def site_position(self) -> int:
        return read_position(self.rig.site_position)

    async def item(self) -> ProtectedItem:
        (item,) = await self.retry_until_ok(self.rig.vault.items)
        return item

    async def points(self) -> list[RecoveryPoint]:
        return await self.retry_until_ok(lambda: self.rig.vault.points(vm=VM))

    async def finished(self, job: Job) -> Job:
        """Wait until a job has ended, and return it."""
        with trio.fail_after(CATCH_UP_S_MAX):
            while job.endTime is None:
                await trio.sleep(0.1)
                job = await self.retry_until_ok(lambda: self.rig.vault.job(name=job.name))  # noqa: B023
        return job

    async def succeeded(self, job: Job) -> Job:
        job = await self.finished(job)
        assert job.state == "Succeeded", job
        return job

    async def new_point(self, position: int) -> RecoveryPoint:
        """Wait until a point with everything up to ``position`` is available."""
        with trio.fail_after(CATCH_UP_S_MAX):
            while True:
                points = await self.points()
                if points and points[0].position >= position:
                    return points[0]
                await trio.sleep(0.2)

    async def kill(self, role: str) -> None:
        if role == FORK_SERVER:
            await self._kill_fork_server()
        else:
            await self.rig.supervisor.kill_role(name=role)
        self.kills[role] += 1

    async def _kill_fork_server(self) -> None:
        """Kill the process that started the roles, and with it all of them."""
        while True:
            pids = [role.pid for role in (await self.rig.supervisor.status()).roles if role.pid is not None]
            with suppress(FileNotFoundError, IndexError):  # no role runs, or it has just ended
                parent = Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[1]
                assert b"siterig.supervisor.fork_server" in Path(f"/proc/{parent}/cmdline").read_bytes()
                os.kill(int(parent), signal.SIGKILL)
                return
            await trio.sleep(0.1)


@asynccontextmanager
async def protected(folder: Path) -> AsyncIterator[Run]:
    """Run a rig whose VM is protected under load; both end with the block."""
    rng = random.Random(SEED)
    async with Testbed.up(folder) as rig:
        vm = await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name=name, size_bytes=DISK_BYTES) for name in DISKS])
        load = Load(Path(vm.disks[0].path).parent, rig.site_position, rng.getrandbits(32))
        await trio.to_thread.run_sync(load.fill)
        run = Run(rig, load, rng)
        with load.running():
            await run.succeeded(await rig.vault.enable_protection(vm=VM, interval_s=INTERVAL_S))
            try:
                yield run
            finally:
                print(f"pairs {load.acknowledged()}, kills {dict(run.kills)}, refused {dict(run.refused)}")
                print(f"test failovers under kills {dict(run.tests)}")
                print(f"writers reopened {[writer.reopened for writer in load.writers]}, {len(run.stills)} stills")


async def quiesce_and_check(run: Run, *, until_caught_up: bool) -> None:
    """Pause the load, check the site's disks, take a point (``until_caught_up``: without a short limit), and continue."""
    await trio.to_thread.run_sync(run.load.pause)
    try:
        still = run.load.still()
        for disk in DISKS:
            path = run.rig.layout.site_mount / VM / f"{disk}.img"
            found = await trio.to_thread.run_sync(read_disk, path, DISK_BYTES if until_caught_up else run.load.area_bytes)
            assert first_difference(found[: run.load.area_bytes], still.images[disk]) is None, f"site's disk {disk}"
            assert not until_caught_up or run.load.rest_is_as_it_was(found), f"site's disk {disk}"
        with trio.move_on_after(CATCH_UP_S_MAX if until_caught_up else STILL_S_MAX) as patience:
            await run.retry_until_ok(lambda: run.rig.vault.create_point(vm=VM, kind="CrashConsistent", name="still"))
        assert not (until_caught_up and patience.cancelled_caught)
        run.load.end_still(still)
        run.stills.append(still)
    finally:
        run.load.resume()


def read_disk(path: Path, length: int = DISK_BYTES) -> bytes:
    """Read the beginning of a disk, and repeat that if the server was killed meanwhile."""
    deadline = time.monotonic() + CATCH_UP_S_MAX
    while True:
        try:
            with path.open("rb") as disk:
                data = disk.read(length)
        except OSError:
            data = b""
        if len(data) == length:
            return data
        assert time.monotonic() < deadline, f"{path} cannot be read"
        time.sleep(0.05)


async def kill_at_random(run: Run, kills: int) -> None:
    """Kill random roles, and once the fork server, so many times, and then until a test failover has succeeded meanwhile."""
    for number in range(kills + MORE_KILLS_MAX):
        if number >= kills and run.compared:
            break
        every_s_max = FIRST_KILL_EVERY_S_MAX if number < FIRST_KILLS else KILL_EVERY_S_MAX
        await trio.sleep(run.rng.random() * every_s_max)  # the random moment of the kill
        await run.kill(FORK_SERVER if number == kills // 2 else run.rng.choice(ROLES))


async def quiesce_now_and_then(run: Run) -> None:
    rng = random.Random(SEED + 1)
    while True:
        await trio.sleep(rng.random() * 4)
        async with run.operating:
            await quiesce_and_check(run, until_caught_up=False)


async def fail_over_now_and_then(run: Run) -> None:
    """Repeat test failovers under kills: they may fail, but not hang, show a wrong disk, or block later operations."""
    rng = random.Random(SEED + 2)
    while True:
        await trio.sleep(rng.random() * 4)
        async with run.operating:
            await fail_over_whatever_happens(run)


async def fail_over_whatever_happens(run: Run) -> None:
    """Run one test failover.  It is not retried: a request whose answer was lost may have started a job already."""
    try:
        await run.rig.vault.test_failover(vm=VM, point="LatestProcessed")
    except RigError as error:
        assert error.recoverable or error.code == "NoSuchPoint", f"{error.code}: {error.message}"
    newest = (await run.retry_until_ok(run.rig.vault.jobs))[0]
    job = await run.finished(newest)
    if job.scenarioName == "TestFailover" and job.state == "Succeeded":
        assert job.result is not None
        assert job.recovery_point is not None
        await trio.to_thread.run_sync(check_images, run, job.result, job.recovery_point.position)
        run.compared += 1
    run.tests[f"{job.scenarioName} {job.state} {' '.join(error.code for error in job.errors)}".strip()] += 1
    while (await run.item()).testFailoverState != "None":
        with suppress(RigError):
            await run.rig.vault.cleanup_test_failover(vm=VM)
        await run.finished((await run.retry_until_ok(run.rig.vault.jobs))[0])


async def check_recovered_by_itself(run: Run) -> None:
    """Check that all roles are ready, that replication has caught up, and that no resync is required."""
    with trio.fail_after(CATCH_UP_S_MAX):
        while not all(role.state == "ready" for role in (await run.rig.supervisor.status()).roles):  # noqa: ASYNC110 (another process's state)
            await trio.sleep(0.1)
    await run.new_point(run.site_position())
    item = await run.item()
    assert (item.protectionState, item.resynchronizationRequired) == ("Protected", None), item
    assert item.replicationHealth != "Critical", item
    disks = await run.rig.site.list_disks(vm=VM)
    assert [(disk.generation, disk.needs_resync) for disk in disks] == [(1, None)] * len(DISKS)
    for job in await run.retry_until_ok(run.rig.vault.jobs):
        await run.finished(job)


def check_images(run: Run, vm: Vm, position: int) -> None:
    """Check that a failed-over VM's disks hold exactly the writes up to ``position``."""
    images = {disk.name: read_disk(Path(disk.path)) for disk in vm.disks}
    assert run.load.check_cut(images, position) == []
    for disk, image in images.items():
        assert run.load.rest_is_as_it_was(image), f"disk {disk}: changed outside of the written area"
        for still in run.stills:
            if still.first <= position <= still.last:
                difference = first_difference(image[: run.load.area_bytes], still.images[disk])
                assert difference is None, f"disk {disk} at position {position}: {difference}"


async def check_point(run: Run, point: str) -> None:
    job = await run.succeeded(await run.rig.vault.test_failover(vm=VM, point=point))
    assert job.result is not None
    assert job.recovery_point is not None
    await trio.to_thread.run_sync(check_images, run, job.result, job.recovery_point.position)
    await run.succeeded(await run.rig.vault.cleanup_test_failover(vm=VM))


async def check_points(run: Run) -> None:
    """Check some points from pauses of the load and some others."""
    points = await run.points()
    still = [point for point in points if any(s.first <= point.position <= s.last for s in run.stills)]
    moving = [point for point in points if point not in still]
    assert still
    assert moving
    chosen = [
        *run.rng.sample(still, min(len(still), POINTS_CHECKED)),
        *run.rng.sample(moving, min(len(moving), POINTS_CHECKED)),
    ]
    for point in chosen:
        await check_point(run, point.id)
    print(f"checked {len(chosen)} of {len(points)} points")


async def test_any_role_can_be_killed_at_any_moment(tmp_path: Path) -> None:
    print(f"{KILLS} kills, SITERIG_SEED={SEED}")
    async with protected(tmp_path / "rig") as run:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(quiesce_now_and_then, run)
            nursery.start_soon(fail_over_now_and_then, run)
            await kill_at_random(run, KILLS)
            async with run.operating:
                nursery.cancel_scope.cancel()
        assert run.compared, f"no test failover succeeded under kills: {dict(run.tests)}"
        await quiesce_and_check(run, until_caught_up=True)
        await check_recovered_by_itself(run)
        assert run.load.acknowledged() > KILLS, "there was no load"
        await check_points(run)

        await run.rig.kill_site()
        job = await run.succeeded(await run.rig.vault.unplanned_failover(vm=VM, point="Latest"))
        assert job.result is not None
        assert job.recovery_point is not None
        await trio.to_thread.run_sync(check_images, run, job.result, job.recovery_point.position)


def is_applied(part: PartName, mark: Watermark) -> bool:
    assert part.generation == mark.generation == 1
    return part.first <= mark.sync_parts if part.stream == "sync" else part.last <= mark.log_seq


async def test_parts_that_a_killed_azurite_loses_are_sent_again(tmp_path: Path) -> None:
    async with protected(tmp_path / "rig") as run:
        layout = run.rig.layout
        await run.new_point(1)
        ids = [disk.disk_id for disk in await run.rig.site.list_disks(vm=VM)]
        cache = BlobCacheAccount(connection_string(layout.azurite, layout.keys), tls=storage_tls(layout))
        try:

            async def parts() -> set[PartName]:
                found = [(await run.retry_until_ok(lambda: cache.list(disk_id))).parts for disk_id in ids]  # noqa: B023
                return {part for some in found for part in some}

            async def needed() -> set[PartName]:
                """Return the parts in the account that are not applied; a killed applier leaves applied ones, too."""
                marks = await run.retry_until_ok(lambda: directory.vault_link(layout).watermarks(vm=VM))
                applied = {mark.disk_id: mark for mark in marks}
                return {part for part in await parts() if not is_applied(part, applied[part.disk_id])}

            await run.rig.supervisor.kill_role(name="applier", hold=True)
            forgotten: set[PartName] = set()
            with trio.fail_after(CATCH_UP_S_MAX):
                while not forgotten:  # Azurite may have written its metadata just before the kill
                    before = await needed()
                    while len(await needed()) < len(before) + 2 * len(ids):  # noqa: ASYNC110 (another process's state)
                        await trio.sleep(0.1)
                    await run.rig.supervisor.kill_role(name="agent", hold=True)
                    acknowledged = await needed()
                    await run.kill("azurite")
                    forgotten = acknowledged - await parts()
                    await run.rig.supervisor.start_role(name="agent")
            print(f"{len(forgotten)} of {len(acknowledged)} parts were forgotten: {sorted(forgotten)}")
            with trio.fail_after(CATCH_UP_S_MAX):
                while not forgotten <= await parts():  # noqa: ASYNC110 (another process's state)
                    await trio.sleep(0.1)
        finally:
            cache.close()
        await run.rig.supervisor.start_role(name="applier")
        await quiesce_and_check(run, until_caught_up=True)
        await check_recovered_by_itself(run)
        await check_points(run)
