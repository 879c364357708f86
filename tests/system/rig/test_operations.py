"""Operations on protected VMs show their effects on a rig: pause, policy, points, bandwidth, cancelled jobs, fences, keys.

One rig is used for all steps.  Its clock is controlled, so that hours pass at once.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.storage.azurite import connection_string, load_or_create_account
from siterig.azure_emu.storage.blob_cache import BlobCacheAccount
from siterig.azure_emu.vault.model.resources import ProtectedItem, RecoveryPoint
from siterig.blockfs.clocks.rig_clock_control import RigClockControl
from siterig.blockfs.contracts.bandwidth import DAY_S, WEEKDAYS, BandwidthLimit
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import RigError
from siterig.rpc import directory
from siterig.rpc.trust import storage_tls
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended

pytestmark = pytest.mark.system

VM, SECOND_VM = "web01", "db01"
DISKS = {VM: "os", SECOND_VM: "data"}
EXCLUDED, REMOVED, NEW = "swap", "scratch", "new"
DISK_BYTES = 8 << 20
PART_BYTES = 1 << 20
RATE = 384 << 10
LONG_S = 900
HOUR_NS = 3600 * SECOND_NS
WITHIN_S = 180
"""The time limit of all steps together, far beyond their usual time: a loaded machine is slow."""


async def item_of(rig: Testbed, vm: str = VM) -> ProtectedItem:
    return next(item for item in await rig.vault.items() if item.name == vm)


async def disk_of(rig: Testbed, vm: str = VM, name: str | None = None) -> DiskInfo:
    """Return a disk, by default the VM's one that the steps write to."""
    return next(disk for disk in await rig.site.list_disks(vm=vm) if disk.name == (name or DISKS[vm]))


async def write(rig: Testbed, vm: str = VM, size: int = PART_BYTES, at: int = 0, disk: str | None = None) -> None:
    """Write random bytes, which cannot be compressed, and sync."""
    fd = os.open((await disk_of(rig, vm, disk)).path, os.O_RDWR)
    try:
        os.pwrite(fd, os.urandom(size), at)
        os.fsync(fd)
    finally:
        os.close(fd)


async def take(rig: Testbed, name: str, vm: str = VM) -> RecoveryPoint:
    return await rig.vault.create_point(vm=vm, kind="CrashConsistent", name=name)


async def names(rig: Testbed) -> set[str]:
    return {point.name for point in await rig.vault.points(vm=VM)}


async def test_operations_on_protected_vms_have_their_effects(tmp_path: Path) -> None:
    with trio.fail_after(WITHIN_S):
        async with Testbed.up(tmp_path / "rig") as rig:
            with RigClockControl(rig.layout.clock) as clock:
                await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=DISK_BYTES)])
                await ended(rig, await rig.vault.enable_protection(vm=VM, interval_s=1))
                await pause_and_resume(rig)
                await a_longer_interval(rig)
                await the_bandwidth_in_work_hours(rig, clock)
                await a_cancelled_copy_that_continues(rig)
                await points_and_retention(rig, clock)
                await a_fence(rig)
                await new_account_keys(rig)


async def pause_and_resume(rig: Testbed) -> None:
    await ended(rig, await rig.vault.pause_replication(vm=VM))
    paused_at, generation = await rig.site.position(), (await disk_of(rig)).generation
    await write(rig)
    while ((await item_of(rig)).lastRpoInSeconds or 0) < 4:  # noqa: ASYNC110 (three cycles would have been due)
        await trio.sleep(0.2)
    item, disk = await item_of(rig), await disk_of(rig)
    assert [error.errorCode for error in item.healthErrors] == ["ReplicationPaused"]
    assert max(point.position for point in await rig.vault.points(vm=VM)) <= paused_at
    assert disk.unsent_log_bytes > PART_BYTES
    await ended(rig, await rig.vault.resume_replication(vm=VM))
    while (await rig.vault.points(vm=VM, limit=1))[0].position <= disk.last_position:  # noqa: ASYNC110
        await trio.sleep(0.2)
    item = await item_of(rig)
    assert (item.healthErrors, item.resynchronizationRequired) == ([], None)
    assert (await disk_of(rig)).generation == generation
    assert "RepairVMReplication" not in [job.scenarioName for job in await rig.vault.jobs()]


async def a_longer_interval(rig: Testbed) -> None:
    """After this step no cycle runs by itself."""
    await ended(rig, await rig.vault.change_policy(vm=VM, interval_s=LONG_S, history_hours=1))
    while ((await item_of(rig)).lastRpoInSeconds or 0) < 3:  # noqa: ASYNC110 (with the former interval a cycle comes first)
        await trio.sleep(0.2)


async def the_bandwidth_in_work_hours(rig: Testbed, clock: RigClockControl) -> None:
    now_s = SYSTEM_CLOCK.wall_ns() // SECOND_NS
    begin_s = (now_s + 3600) % DAY_S
    limit = BandwidthLimit(
        work_days=list(WEEKDAYS),
        work_begin_s=begin_s,
        work_end_s=(begin_s + 7200) % DAY_S,
        work_bytes_s=RATE,
        other_bytes_s=None,
    )
    await rig.vault.set_bandwidth(limit=limit)
    await clock.jump(2 * HOUR_NS)
    began_s = trio.current_time()
    for name in ("kept", "second", "third"):
        await write(rig)
        await take(rig, name)
    # Nothing was sent in these hours before the first part, so only the two after it wait.
    assert trio.current_time() - began_s >= 2 * PART_BYTES / RATE
    await clock.jump(-2 * HOUR_NS)
    await rig.vault.set_bandwidth(limit=None)


async def limited(rig: Testbed) -> bool:
    waits = [wait for role in (await rig.supervisor.status()).roles for wait in role.waits]
    return "BandwidthLimited" in [wait.code for wait in waits]


async def a_cancelled_copy_that_continues(rig: Testbed) -> None:
    disks = [DiskSpec(name="data", size_bytes=4 * DISK_BYTES)]
    disks += [DiskSpec(name=name, size_bytes=PART_BYTES) for name in (EXCLUDED, REMOVED)]
    await rig.vault.create_vm(vm=SECOND_VM, disks=disks)
    await write(rig, SECOND_VM, 4 * DISK_BYTES)
    slow = BandwidthLimit(
        work_days=list(WEEKDAYS), work_begin_s=0, work_end_s=DAY_S, work_bytes_s=64 << 10, other_bytes_s=64 << 10
    )
    await rig.vault.set_bandwidth(limit=slow)
    job = await rig.vault.enable_protection(vm=SECOND_VM, interval_s=LONG_S, exclude=[EXCLUDED])
    while not await limited(rig):  # noqa: ASYNC110
        await trio.sleep(0.1)
    cancelled = await rig.vault.cancel_job(name=job.name)
    assert (cancelled.state, cancelled.errors[0].code) == ("Cancelled", "Cancelled")
    assert (await item_of(rig, SECOND_VM)).protectionState == "InitialReplicationFailed"
    assert not (await disk_of(rig, SECOND_VM)).snapshot
    await rig.vault.set_bandwidth(limit=None)
    await ended(rig, await rig.vault.enable_protection(vm=SECOND_VM, interval_s=LONG_S, exclude=[EXCLUDED]))
    assert (await item_of(rig, SECOND_VM)).protectionState == "Protected"
    await an_excluded_disk(rig)


async def an_excluded_disk(rig: Testbed) -> None:
    disk = await disk_of(rig, SECOND_VM, EXCLUDED)
    assert (disk.tracked, disk.unsent_log_bytes) == (False, 0)
    managed = [(d.vm, d.name) for d in await rig.vault.managed_disks()]
    assert managed == [(SECOND_VM, "data"), (SECOND_VM, REMOVED), (VM, "os")]
    test = await ended(rig, await rig.vault.test_failover(vm=SECOND_VM, point="LatestProcessed"))
    assert test.result is not None
    assert ([made.name for made in test.result.disks], test.result.lacking_disks) == (["data", REMOVED], (EXCLUDED,))
    await ended(rig, await rig.vault.cleanup_test_failover(vm=SECOND_VM))
    await a_removed_disk(rig)


async def contents(rig: Testbed, point: str) -> dict[str, bytes]:
    """Return the bytes of the disks that a point of the second VM has."""
    mounted = await rig.vault.mount_point(vm=SECOND_VM, point=point)
    try:
        return {disk.name: await trio.Path(disk.path).read_bytes() for disk in mounted.disks}
    finally:
        await rig.vault.unmount_point(vm=SECOND_VM, name=mounted.name)


async def at_site(rig: Testbed, *names: str) -> dict[str, bytes]:
    return {name: await trio.Path((await disk_of(rig, SECOND_VM, name)).path).read_bytes() for name in names}


async def a_removed_disk(rig: Testbed) -> None:
    await write(rig, SECOND_VM, PART_BYTES // 4, disk=REMOVED)
    before = await at_site(rig, "data", REMOVED)
    await take(rig, "before", SECOND_VM)
    job = await ended(rig, await rig.vault.remove_disks(vm=SECOND_VM, disks=[REMOVED]))
    assert job.scenarioName == "RemoveDisks"
    await write(rig, SECOND_VM)
    await write(rig, SECOND_VM, PART_BYTES // 4, disk=REMOVED)
    after = await at_site(rig, "data")
    await take(rig, "after", SECOND_VM)
    lacking = {point.name: point.lacking_disks for point in await rig.vault.points(vm=SECOND_VM)}
    assert (lacking["before"], lacking["after"]) == ((EXCLUDED,), (REMOVED, EXCLUDED))
    assert (await contents(rig, "before"), await contents(rig, "after")) == (before, after)
    disk = await disk_of(rig, SECOND_VM, REMOVED)
    assert (disk.tracked, disk.unsent_log_bytes) == (False, 0)
    await a_removed_disk_and_a_new_one_join(rig, before)


async def a_removed_disk_and_a_new_one_join(rig: Testbed, before: dict[str, bytes]) -> None:
    """They join while the VM writes; points before the join are as they were."""
    await rig.vault.attach_disk(vm=SECOND_VM, disk=DiskSpec(name=NEW, size_bytes=PART_BYTES))
    item = await item_of(rig, SECOND_VM)
    assert [error.errorCode for error in item.healthErrors] == ["DisksAvailableForProtection"]
    await write(rig, SECOND_VM, PART_BYTES // 4, disk=NEW)
    without = await at_site(rig, "data")
    await take(rig, "without", SECOND_VM)
    job = await rig.vault.add_disks(vm=SECOND_VM, disks=[NEW, REMOVED])
    written = 0
    while (await rig.vault.job(name=job.name)).endTime is None:
        for name in ("data", NEW, REMOVED):
            await write(rig, SECOND_VM, 4096, at=written % 8 * 4096, disk=name)
        written += 1
        await trio.sleep(0.2)  # more would fill the logs of these small disks
    assert (await ended(rig, job)).stateDescription == "Completed"
    assert written
    joined = await at_site(rig, "data", NEW, REMOVED)
    await take(rig, "joined", SECOND_VM)
    lacking = {point.name: point.lacking_disks for point in await rig.vault.points(vm=SECOND_VM)}
    assert (lacking["before"], lacking["without"]) == ((EXCLUDED,), (NEW, REMOVED, EXCLUDED))
    assert (lacking["disks-added"], lacking["joined"]) == ((EXCLUDED,), (EXCLUDED,))
    for point, expected in (("before", before), ("without", without), ("joined", joined)):
        assert await contents(rig, point) == expected
    item = await item_of(rig, SECOND_VM)
    assert (item.healthErrors, item.excluded_disks) == ([], [EXCLUDED])
    verified = await rig.site.list_disks(vm=SECOND_VM)
    assert [disk.name for disk in verified if disk.needs_resync] == []


async def points_and_retention(rig: Testbed, clock: RigClockControl) -> None:
    await rig.vault.pin_point(vm=VM, point="kept", pinned=True)
    await rig.vault.delete_point(vm=VM, point="second")
    assert {"kept", "third"} <= await names(rig)
    assert "second" not in await names(rig)
    await clock.advance(2 * HOUR_NS)
    await take(rig, "new")
    await clock.advance(6 * 60 * SECOND_NS)  # to the next round of the retention
    while "third" in await names(rig):  # noqa: ASYNC110
        await trio.sleep(0.2)
    assert {"kept", "new"} <= await names(rig)


async def a_fence(rig: Testbed) -> None:
    path = (await disk_of(rig)).path
    fd = os.open(path, os.O_RDWR | os.O_DSYNC)
    try:
        await rig.vault.fence_source(vm=VM)
        with pytest.raises(OSError) as caught:
            os.pwrite(fd, bytes(4096), 0)
        assert caught.value.errno == errno.EROFS
    finally:
        os.close(fd)
    await rig.supervisor.kill_role(name="site")
    await rig.supervisor.start_role(name="site")
    while not await is_there(rig):  # noqa: ASYNC110
        await trio.sleep(0.1)
    with pytest.raises(OSError) as caught:
        os.open(path, os.O_RDWR)
    assert caught.value.errno == errno.EROFS
    assert "SourceFenced" in [error.errorCode for error in (await item_of(rig)).healthErrors]
    await rig.vault.unfence_source(vm=VM)
    await write(rig)


async def is_there(rig: Testbed) -> bool:
    try:
        return (await disk_of(rig)).fenced
    except RigError:
        return False


async def new_account_keys(rig: Testbed) -> None:
    """Replication continues with an interval of one second while both keys are replaced, twice."""
    await ended(rig, await rig.vault.change_policy(vm=VM, interval_s=1))
    keys = set()
    for _ in range(2):
        account = load_or_create_account(rig.layout.keys)
        keys |= {account.key, account.other_key} - {""}
        former = BlobCacheAccount(connection_string(rig.layout.azurite, rig.layout.keys), tls=storage_tls(rig.layout))
        try:
            await directory.account_keys(rig.layout).rotate_account_keys()
            with pytest.raises(RigError) as caught:
                await former.ensure_container()
            assert caught.value.code == "CacheAuthentication"
        finally:
            former.close()
        await write(rig)
        position = await rig.site.position()
        while (await rig.vault.points(vm=VM, limit=1))[0].position < position:  # noqa: ASYNC110
            await trio.sleep(0.1)
    account = load_or_create_account(rig.layout.keys)
    keys |= {account.key, account.other_key}
    assert len(keys) == 5
    codes = [event.eventCode for event in await rig.vault.events()]
    assert (codes.count("AccountKeysRotated"), codes.count("CacheAuthentication")) == (2, 0)
    assert (await item_of(rig)).healthErrors == []
    shown = "".join(path.read_text() for path in rig.layout.log("").parent.glob("*.log"))
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            shown += process.read_text(errors="replace")
    assert [key for key in keys if key in shown] == []
