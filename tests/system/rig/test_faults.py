"""Faults in a running rig: of disks, host files, processes and hosts; the director is killed.  One rig for all steps."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import random
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.guests import loop_devices
from siterig.cli import power
from siterig.cli.power import PowerTarget
from siterig.core.fault_contract import FaultControl
from siterig.scenarios.faults.atlas import ATLAS_REGION_BYTES
from siterig.scenarios.faults.records import RuleStatus
from siterig.scenarios.faults.rules import read_rule
from siterig.supervisor.role_faults import children_of
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended

pytestmark = pytest.mark.system

VM = "web01"
DISK_BYTES = 8 << 20
KEPT_BYTES, CHUNK_BYTES = 64 << 10, 64 << 10
"""Bytes of each region that random writes leave to the other steps, and of a random write."""
WITHIN_S = 60
"""The time limit of a wait, far beyond the promised times."""


async def until(what: str, check: Callable[[], Awaitable[bool]]) -> None:
    with trio.move_on_after(WITHIN_S):
        while not await check():  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.1)
        return
    pytest.fail(f"{what}: not within {WITHIN_S} s")


class Steps:
    """The rig, its director, and its disks as a guest without a file system."""

    def __init__(self, rig: Testbed, director: FaultControl) -> None:
        self.rig, self.director = rig, director

    async def role(self, name: str) -> RoleStatus:
        return next(role for role in (await self.rig.supervisor.status()).roles if role.name == name)

    async def ready(self, name: str, *, not_pid: int | None = None) -> RoleStatus:
        async def is_ready() -> bool:
            role = await self.role(name)
            return role.state == "ready" and role.pid != not_pid

        await until(f"{name} ready", is_ready)
        return await self.role(name)

    async def add(self, *lines: str) -> None:
        await self.director.add_faults(rules=[read_rule(line).document() for line in lines])

    async def rules(self) -> dict[str, RuleStatus]:
        return {rule.name: rule for rule in (await self.director.list_faults()).rules}

    def path(self, disk: str) -> Path:
        return self.rig.layout.site_mount / VM / f"{disk}.img"

    def write(self, disk: str, data: bytes, offset: int, *, sync: bool) -> None:
        fd = os.open(self.path(disk), os.O_RDWR)
        try:
            os.pwrite(fd, data, offset)
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)

    def read(self, disk: str, offset: int) -> bytes:
        fd = os.open(self.path(disk), os.O_RDONLY)
        try:
            return os.pread(fd, 4096, offset)
        finally:
            os.close(fd)


async def test_faults_of_a_rig_are_in_force_recorded_and_undone(tmp_path: Path) -> None:
    async with Testbed.up(tmp_path / "rig") as rig:
        await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name=name, size_bytes=DISK_BYTES) for name in ("os", "data")])
        steps = Steps(rig, await rig.start_faults())
        await steps.add("process mark=protected after=event:InitialReplicationStarted/web01 name=event")
        await ended(rig, await rig.vault.enable_protection(vm=VM, interval_s=30))
        await a_guest_meets_an_error_once(steps)
        await a_change_log_without_room_refuses_a_write(steps)
        await a_managed_disk_that_fails_once_takes_the_next_point(steps)
        await random_damage_leaves_each_block_a_copy(steps, random.randrange(10**9))
        await a_killed_director_continues(steps)
        await the_first_operation_of_a_killed_disk_host_meets_the_rules(steps)
        await a_rule_kills_a_disk_host_once_while_it_starts(steps)
        await roles_are_killed_and_limited(steps)
        await the_storage_account_stops_with_its_role(steps)
        await two_disks_lose_power_at_one_position(steps)
        await a_host_that_is_off_stays_off(steps)
        await the_verdict_names_the_rule_that_never_fired(steps)
        await a_frozen_disk_does_not_keep_the_rig_up(steps)


async def a_guest_meets_an_error_once(steps: Steps) -> None:
    assert (await steps.rules())["event"].fired == 1
    with pytest.raises(RigError, match="vm = 'web09' matches no disk of this rig"):
        await steps.add("disk web09 write error=EIO")
    await steps.add("disk web01/data write start=4KiB length=4KiB error=ENOSPC times=1 name=full")
    steps.write("data", b"a" * 4096, 0, sync=True)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        steps.write("data", b"a" * 4096, 4096, sync=True)
    steps.write("data", b"b" * 4096, 4096, sync=True)
    assert (await steps.director.wait_fired(name="full", times=1)).matched == 2
    (found,) = [each for each in await steps.director.injections(after=0) if each.rule == "full"]
    assert (found.done, found.ranges) == ("failed with ENOSPC", ((4096, 4096),))
    assert found.operation == "write web01/data, 4096 bytes at 4096"


async def a_change_log_without_room_refuses_a_write(steps: Steps) -> None:
    with pytest.raises(RigError, match="vm = 'web09' matches no disk of this rig"):
        await steps.add("log web09 append error=ENOSPC")
    await steps.add("log web01/data append error=ENOSPC times=1 name=log")
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        steps.write("data", b"c" * 4096, 12288, sync=True)
    assert steps.read("data", 12288) == bytes(4096), "not logged, but written"
    steps.write("data", b"c" * 4096, 12288, sync=True)
    (found,) = [each for each in await steps.director.injections(after=0) if each.rule == "log"]
    assert found.done == "failed with ENOSPC"
    assert found.operation.startswith("append web01/data/segment, ")
    assert {disk.needs_resync for disk in await steps.rig.site.list_disks()} == {None}


async def a_managed_disk_that_fails_once_takes_the_next_point(steps: Steps) -> None:
    with pytest.raises(RigError, match="vm = 'web09' matches no managed disk: a VM has them from its protection on"):
        await steps.add("store web09 write error=EIO")
    await steps.add("store web01/data write part=journal error=EIO times=1 name=store")
    steps.write("data", b"d" * 4096, 20480, sync=True)
    with pytest.raises(RigError, match=r"\.journal: Input/output error"):
        await steps.rig.vault.create_point(vm=VM, kind="CrashConsistent", name="refused")
    (found,) = [each for each in await steps.director.injections(after=0) if each.rule == "store"]
    assert found.done == "failed with EIO"
    assert found.operation.startswith("write web01/data/journal, ")
    made = await steps.rig.vault.create_point(vm=VM, kind="CrashConsistent", name="later")
    assert made.position in {point.position for point in await steps.rig.vault.points(vm=VM)}
    (item,) = await steps.rig.vault.items()
    assert item.resynchronizationRequired is None


async def random_damage_leaves_each_block_a_copy(steps: Steps, seed: int) -> None:
    print(f"seed of the random damage: {seed}")
    rng, guest = random.Random(seed), {disk: bytearray(steps.path(disk).read_bytes()) for disk in ("os", "data")}

    async def add(*rules: str) -> None:
        documents = [read_rule(f"{rule} recoverable=true fired=any").document() for rule in rules]
        await steps.director.add_faults(rules=documents, seed=seed)

    def write() -> None:
        for disk, data in guest.items():
            for region in range(0, DISK_BYTES, ATLAS_REGION_BYTES):  # so each kind of region has new bytes
                at = region + rng.randrange(KEPT_BYTES, ATLAS_REGION_BYTES - CHUNK_BYTES, 4096)
                data[at : at + CHUNK_BYTES] = rng.randbytes(CHUNK_BYTES)
                steps.write(disk, bytes(data[at : at + CHUNK_BYTES]), at, sync=True)

    await add(
        "store web01/* write flip.bits=3 name=bits",
        "blob */log/* PutBlob flip=true times=1 name=blob",
    )
    write()
    await steps.rig.vault.create_point(vm=VM, kind="CrashConsistent", name="damaged")
    await add("disk web01/* start=2MiB length=2MiB bad_sectors=true name=sectors")
    hurt = await damage_of(steps, guest, "damaged")
    assert all(hurt[side, disk] for side in ("site", "recovery") for disk in guest), "every copy of every disk is damaged"
    rules = await steps.rules()
    assert all(rules[name].fired for name in ("bits", "blob"))
    assert rules["bits"].spared, "headers and checksums"

    await add("log web01/* append flip=true times=1 name=record")
    write()
    await steps.director.wait_fired(name="record", times=1)

    async def needs_resync() -> bool:
        return (await steps.rig.vault.items())[0].resynchronizationRequired is not None

    async def is_readable() -> bool:
        return not any(unreadable(steps.path(disk), bytes(data)) for disk, data in guest.items())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(steps.rig.vault.create_point, vm=VM, kind="CrashConsistent", name="never"))
        await until("a record that the agent does not send", needs_resync)
        await until("the end of the bad sectors while the recovery side lacks a record", is_readable)
        nursery.cancel_scope.cancel()
    for name in ("bits", "blob", "sectors", "record"):
        await steps.director.remove_fault(name=name)
    await ended(steps.rig, await steps.rig.vault.resync(vm=VM))
    await steps.rig.vault.create_point(vm=VM, kind="CrashConsistent", name="whole")
    assert not any((await damage_of(steps, guest, "whole")).values())


async def damage_of(steps: Steps, guest: dict[str, bytearray], point: str) -> dict[tuple[str, str], set[int]]:
    """Return the blocks that a side cannot read; the others are right, and no block is damaged on both sides."""
    mounted = await steps.rig.vault.mount_point(vm=VM, point=point)
    found: dict[tuple[str, str], set[int]] = {}
    for disk in mounted.disks:
        for side, path in (("site", steps.path(disk.name)), ("recovery", Path(disk.path))):
            found[side, disk.name] = await trio.to_thread.run_sync(unreadable, path, bytes(guest[disk.name]))
        both = found["site", disk.name] & found["recovery", disk.name]
        assert not both, f"{disk.name} has lost the blocks at {sorted(both)}"
    await steps.rig.vault.unmount_point(vm=VM, name=mounted.name)
    return found


def unreadable(path: Path, wanted: bytes, start: int = 0, length: int = DISK_BYTES, step: int = 64 << 10) -> set[int]:
    """Return the offsets of the blocks that cannot be read, and check the others."""
    found = set[int]()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        for at in range(start, start + length, step):
            try:
                data = os.pread(fd, step, at)
            except OSError as error:
                assert error.errno == errno.EIO
                data = b""
            assert data == wanted[at : at + len(data)], f"{path}: wrong bytes at {at}"
            if len(data) < step:  # some block of these
                found |= unreadable(path, wanted, at, step, 4096) if step > 4096 else {at}
    finally:
        os.close(fd)
    return found


async def a_killed_director_continues(steps: Steps) -> None:
    await steps.add("process applier pause=true name=stop", "disk web01/data read error=EIO after=mark:late name=late")
    before = await steps.rules()
    director = await steps.role("faults")
    assert director.pid is not None
    os.kill(director.pid, signal.SIGKILL)
    await steps.ready("faults", not_pid=director.pid)
    assert await steps.rules() == before
    applier = await steps.role("applier")
    assert (applier.state, applier.detail) == ("hung", "stopped by fault 'stop'")
    await steps.director.note_mark(name="late")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        steps.read("data", 1 << 20)
    await steps.director.remove_fault(name="stop")
    assert (await steps.role("applier")).state == "ready"
    await steps.director.remove_fault(name="late")
    assert steps.read("data", 0) == b"a" * 4096
    injections = await steps.director.injections(after=0)
    assert [each.sequence for each in injections] == list(range(1, len(injections) + 1))


async def the_first_operation_of_a_killed_disk_host_meets_the_rules(steps: Steps) -> None:
    """Read as soon as the disk is there again, also before its role counts as ready."""
    await steps.add(
        "disk web01/data read error=EIO start=1MiB length=4KiB name=always",
        "disk web01/data read error=EIO start=2MiB length=4KiB times=1 name=once",
        "log web01/data open part=segment mark=opened times=1 name=opening",
    )
    assert first_read(steps.path("data"), 2 << 20) == os.strerror(errno.EIO)
    await steps.director.wait_fired(name="once", times=1)
    for _ in range(2):
        site = await steps.role("site")
        await steps.rig.supervisor.kill_role(name="site")  # with SIGKILL, and it counts as no failure
        assert first_read(steps.path("data"), 1 << 20) == os.strerror(errno.EIO)
        await steps.ready("site", not_pid=site.pid)
        assert first_read(steps.path("data"), 2 << 20) == "no error", "the rule has fired as often as it may"
    found = await steps.rules()
    assert (found["always"].fired, found["once"].fired) == (2, 1)
    assert found["opening"].fired == 1, "the change log was opened before the rule was armed"
    for name in ("always", "once", "opening"):
        await steps.director.remove_fault(name=name)


async def a_rule_kills_a_disk_host_once_while_it_starts(steps: Steps) -> None:
    """The process that the rule kills serves nothing yet: its last report is left for the next process."""
    await steps.add("log web01/data open part=segment kill=SIGKILL times=1 name=end")
    site = await steps.role("site")
    await steps.rig.supervisor.kill_role(name="site")
    await steps.ready("site", not_pid=site.pid)
    assert (await steps.rules())["end"].fired == 1
    assert [each.done for each in await steps.director.injections(after=0) if each.rule == "end"] == [
        "sent SIGKILL to the process"
    ]
    await steps.director.remove_fault(name="end")


def first_read(path: Path, offset: int) -> str:
    """Read 4 KiB without the page cache, as soon as a disk host serves the disk, and return the error of the read."""
    deadline = time.monotonic() + WITHIN_S
    while time.monotonic() < deadline:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:  # the mount is dead, or there is none
            time.sleep(0.001)
            continue
        try:
            os.preadv(fd, [mmap.mmap(-1, 4096)], offset)
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                return os.strerror(error.errno or 0)
        else:
            return "no error"
        finally:
            with contextlib.suppress(OSError):  # the mount is dead
                os.close(fd)
    return f"no disk within {WITHIN_S} s"


async def roles_are_killed_and_limited(steps: Steps) -> None:
    agent = await steps.role("agent")
    await steps.add("process agent files_max=200 after=event:RoleReady/agent name=few", "process agent kill=KILL name=end")
    again = await steps.ready("agent", not_pid=agent.pid)
    assert again.restarts == agent.restarts
    await steps.director.wait_fired(name="few", times=1)
    assert again.pid is not None
    assert resource.prlimit(again.pid, resource.RLIMIT_NOFILE)[0] == 200
    assert "at most 200 open files by fault 'few'" in (await steps.role("agent")).detail
    await steps.director.remove_fault(name="few")
    assert resource.prlimit(again.pid, resource.RLIMIT_NOFILE)[0] > 200


async def the_storage_account_stops_with_its_role(steps: Steps) -> None:
    role = await steps.role("azurite")
    assert role.pid is not None
    (node,) = children_of(role.pid)
    stat = Path(f"/proc/{node}/stat")
    await steps.add("process azurite pause=true name=account")
    assert stat.read_text().rpartition(")")[2].split()[0] == "T"
    await steps.director.remove_fault(name="account")
    assert stat.read_text().rpartition(")")[2].split()[0] != "T"


async def two_disks_lose_power_at_one_position(steps: Steps) -> None:
    site = await steps.role("site")
    await steps.add("machine site power=loss after=mark:cut name=cut")
    for disk in ("os", "data"):
        steps.write(disk, b"durable!" * 512, 8192, sync=True)
        steps.write(disk, b"unsynced" * 512, 16384, sync=False)
    await steps.director.note_mark(name="cut")
    (found,) = [each for each in await steps.director.injections(after=0) if each.rule == "cut"]
    assert found.done.startswith("site: power loss of 2 disks at position ")
    assert "2 of 2 unsynced writes lost" in found.done
    assert found.done.endswith(" lost; site: started again in a new boot")
    await steps.ready("site", not_pid=site.pid)
    await steps.ready("agent")
    for disk in ("os", "data"):
        assert steps.read(disk, 8192) == b"durable!" * 512
        assert steps.read(disk, 16384) == bytes(4096)
    assert {disk.needs_resync for disk in await steps.rig.site.list_disks()} == {"PowerLoss"}


async def a_host_that_is_off_stays_off(steps: Steps) -> None:
    target = PowerTarget.site("site")
    assert await power.prepare(steps.director, target, "all", 7) == 7
    steps.write("data", b"unsynced" * 512, 32768, sync=False)
    with pytest.raises(RigError, match="--tear had to be given with --prepare"):
        await power.lose(steps.director, target, "torn", None)
    lost, seed = await power.lose(steps.director, target, "random", None)
    assert seed is None, "it is that of the preparation"
    assert "1 of 1 unsynced writes lost" in lost.done
    assert lost.done.endswith("; site: off")
    with pytest.raises(RigError, match="held down by fault 'power loss of site'"):
        await steps.rig.supervisor.start_role(name="site")
    assert (await steps.rig.supervisor.status()).faults == len(await steps.rules())
    await steps.director.remove_fault(name=target.rule_name)
    await steps.ready("site")
    assert steps.read("data", 32768) == bytes(4096)


async def the_verdict_names_the_rule_that_never_fired(steps: Steps) -> None:
    await steps.add("disk web01/os flush error=EIO occurrence=1000 name=never")
    failed = [verdict.text for verdict in await steps.director.verdicts() if not verdict.ok]
    assert failed == ["fault 'never' fired never; expected: >=1; no operation matched it"]
    assert await steps.director.clear_faults() == len({"event", "full", "log", "store", "end", "cut", "never"})
    assert (await steps.rig.supervisor.status()).faults == 0


async def a_frozen_disk_does_not_keep_the_rig_up(steps: Steps) -> None:
    where = steps.rig.layout.root.parent / "guest"
    loop = await loop_devices.attach(steps.path("os"))
    await loop_devices.mkfs(loop, "ext4", "guest")
    await loop_devices.mount(loop, where, "ext4")
    (where / "file").write_bytes(b"in the cache of the guest")
    await steps.add("disk web01/os pause=true name=ice")
    with trio.fail_after(WITHIN_S):
        done = await steps.rig.supervisor.stop_all()
    assert done[:2] == [f"unmounted {where}", f"detached {loop} from {steps.path('os')}"]
