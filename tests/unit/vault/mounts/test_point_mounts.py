"""Mounting points, positions and times through the vault: what is selected, what is refused, what a kill leaves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from siterig.azure_emu.contracts.recovery_side import ChangeStep
from siterig.azure_emu.vault.model.resources import MountedPoint
from siterig.azure_emu.vault.mounts.mounts import parse_time, time_name
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, FakeRecovery, ended, protected, running

GIB = 1 << 30


async def refused(vault: Vault, **choice: object) -> tuple[str, str]:
    with pytest.raises(RigError) as caught:
        await vault.mounts.mount_point(vm="web01", **choice)  # type: ignore[arg-type]
    return caught.value.code, caught.value.message


@pytest.mark.slow
async def test_a_point_a_position_and_a_time_are_mounted_at_once_and_shown(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        point = await vault.recovery_points.create_point(vm="web01", kind="ApplicationConsistent", name="app")
        for disk, at in zip(world.site["web01"].values(), (13, 17), strict=True):
            world.times[disk.disk_id] = {10: START_NS, at: START_NS + at}
        by_point = await vault.mounts.mount_point(vm="web01", point="LatestApplicationConsistent")
        by_position = await vault.mounts.mount_point(vm="web01", position=15)
        by_time = await vault.mounts.mount_point(vm="web01", time="2027-01-15T09:00:00.000000018+01:00")
        assert (by_point.name, by_point.position, by_point.recovery_point) == (point.id, 20, point)
        assert (by_position.name, by_position.position, by_position.recovery_point) == ("@15", 15, None)
        assert (by_time.name, by_time.position) == ("2027-01-15T08:00:00.000000018Z", 17)  # the later of both disks
        assert [disk.path for disk in by_position.disks] == [
            "/mnt/recovery/web01/@15/data.img",
            "/mnt/recovery/web01/@15/os.img",
        ]
        assert [state.name for state in await vault.mounts.mounted_points(vm="web01")] == [point.id, by_time.name, "@15"]
        assert await vault.mounts.mount_point(vm="web01", position=15) == by_position  # again is no error
        await vault.mounts.unmount_point(vm="web01", name="@15")
        assert await refused_unmount(vault, "@15") == (
            "NotMounted",
            f"VM 'web01' has no mounted point '@15'; mounted are: {', '.join(sorted([by_time.name, point.id]))}",
        )
        assert sorted(name for _, name in world.mounted_points) == sorted([point.id, by_time.name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "same"),
    [("@15", {"position": 15}), ("2027-01-15T08:00:00.000000017Z", {"time": "2027-01-15T08:00:00.000000017Z"})],
)
async def test_a_position_or_a_time_may_be_written_as_a_point(tmp_path: Path, point: str, same: dict[str, Any]) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="later")
        for disk in world.site["web01"].values():
            world.times[disk.disk_id] = {10: START_NS, 17: START_NS + 17}
        made = await vault.mounts.mount_point(vm="web01", point=point)
        assert made.position in (15, 17)
        await vault.mounts.unmount_point(vm="web01", name=made.name)
        assert await vault.mounts.mount_point(vm="web01", **same) == made


async def refused_failover(vault: Vault, point: str) -> tuple[str, str]:
    with pytest.raises(RigError) as caught:
        await vault.failovers.test_failover(vm="web01", point=point)
    return caught.value.code, caught.value.message


async def refused_unmount(vault: Vault, name: str) -> tuple[str, str]:
    with pytest.raises(RigError) as caught:
        await vault.mounts.unmount_point(vm="web01", name=name)
    return caught.value.code, caught.value.message


@pytest.mark.slow
async def test_a_time_is_one_mount_in_any_spelling(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for disk in world.site["web01"].values():
            world.times[disk.disk_id] = {10: START_NS}
        spellings = ["2027-01-15 08:00:00Z", "2027-01-15T09:00:00+01:00", "2027-01-15T08:00:00.000z"]
        made = [await vault.mounts.mount_point(vm="web01", time=text) for text in spellings]
        assert {(state.name, state.time) for state in made} == {("2027-01-15T08:00:00Z", "2027-01-15T08:00:00Z")}
        assert len(world.mounted_points) == 1
        for text in spellings:
            await vault.mounts.mount_point(vm="web01", point=text)
            await vault.mounts.unmount_point(vm="web01", name=text)
        assert world.mounted_points == {}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("2027-01-15 09:00:00.500+01:00", "2027-01-15T08:00:00.5Z"),
        ("2027-01-15T08:00:00.000000Z", "2027-01-15T08:00:00Z"),
        ("2027-01-15T08:00:00.000000000Z", "2027-01-15T08:00:00.000000000Z"),
        ("2027-01-15T08:00:00.0000001Z", "2027-01-15T08:00:00.000000199Z"),
        ("1969-12-31T23:59:59.25Z", "1969-12-31T23:59:59.25Z"),
    ],
)
def test_a_time_has_one_name_which_means_it(text: str, name: str) -> None:
    assert time_name(parse_time(text)) == name
    assert parse_time(name) == parse_time(text)


@pytest.mark.slow
async def test_a_position_and_a_point_are_unmounted_by_the_words_of_their_mount(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="mine")
        for text in ("@0015", "mine"):
            await vault.mounts.mount_point(vm="web01", point=text)
            await vault.mounts.unmount_point(vm="web01", name=text)
        assert await vault.mounts.mounted_points(vm="web01") == []


@pytest.mark.slow
async def test_of_two_equal_mounts_at_once_the_second_waits_and_gets_the_same(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        opening = world.held["azure.open_mounted_point"] = trio.Event()
        made: list[MountedPoint] = []

        async def mount() -> None:
            made.append(await vault.mounts.mount_point(vm="web01", point="LatestProcessed"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(mount)
            await reach(world, "azure.open_mounted_point")
            await begun(nursery, mount)
            assert world.calls.count("azure.open_mounted_point") == 1, "the host is not asked for what it is opening"
            opening.set()
        assert made[0] == made[1]
        assert [state.name for state in await vault.mounts.mounted_points(vm="web01")] == [made[0].name]


@pytest.mark.slow
async def test_a_refused_mount_names_the_states_that_can_be_mounted(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for disk in world.site["web01"].values():
            world.floors[disk.disk_id] = 4
        assert await refused(vault, position=3) == (
            "InvalidPosition",
            "VM 'web01': position 3 cannot be read; allowed: 4 to 10",
        )
        assert (await refused(vault, position=11))[0] == "InvalidPosition"
        span = "allowed: 2027-01-15T08:00:00.000000Z to 2027-01-15T08:00:00.000000Z"
        for time in ("2026-01-15T08:00:00Z", "2028-01-15T08:00:00Z"):
            assert await refused(vault, time=time) == ("InvalidTime", f"VM 'web01': time {time} cannot be read; {span}")
        for time in ("yesterday", "2026-11-21T22:13:17", "2026-13-21T22:13:17Z", "9999-12-31T23:59:59-23:59"):
            assert await refused(vault, time=time) == (
                "InvalidTime",
                f"time '{time}' is not understood: write RFC 3339, e.g. 2026-11-21T22:13:17Z or ...:17.25+01:00",
            )
        for time in ("2026-11-21T22:13:17", "2026-13-21 22:13:17Z"):
            for refusal in (refused(vault, point=time), refused_failover(vault, time)):
                code, message = await refusal
                assert (code, message.partition(":")[0]) == ("InvalidTime", f"time '{time[:13]}")
        for refusal in (refused(vault, point="nope"), refused_failover(vault, "nope")):
            code, message = await refusal
            assert code == "NoSuchPoint"
            assert message.endswith("latest-app, the id or the name of one of its 1 points, @POSITION, or a time")
        assert (await refused(vault, position=10, time="2027-01-15T08:00:00Z"))[0] == "BadRequest"
        await vault.mounts.mount_point(vm="web01", position=10, name="mine")
        assert await refused(vault, position=9, name="mine") == (
            "RecoveryExists",
            "VM 'web01': mine is mounted already, at position 10, not 9; unmount it first",
        )
        assert list(world.mounted_points) == [("web01", "mine")]


def test_times_are_read_to_the_nanosecond() -> None:
    assert parse_time("2027-01-15t09:30:00.000000001+01:30") == START_NS + 1
    assert parse_time("2027-01-15 08:00:00.500000000z") == START_NS + 500_000_000


def test_a_time_as_it_is_shown_means_the_point_it_is_shown_of() -> None:
    assert parse_time("2027-01-15T08:00:00Z") == START_NS + 999
    assert parse_time(rfc3339(START_NS + 123_456_789)) == START_NS + 123_456_999


@pytest.mark.slow
async def test_latest_applies_cached_parts_and_latest_processed_does_not(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.apply = False
        await vault.context.site.replicate_now(vm="web01", kind="CrashConsistent", name="waiting")  # in the cache only
        assert (await vault.mounts.mount_point(vm="web01", point="LatestProcessed")).position == 10
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point="LatestProcessed"))
        assert job.recovery_point is not None
        assert job.recovery_point.position == 10
        assert "recovery.process_latest" not in world.calls
        latest = await vault.mounts.mount_point(vm="web01", point="Latest")
        assert "recovery.process_latest" in world.calls
        assert latest.position == 20
        assert latest.recovery_point is not None
        assert latest.recovery_point.name == "waiting"
        assert (await vault.mounts.mount_point(vm="web01", point="LatestProcessed")).name == latest.name


@pytest.mark.slow
async def test_a_mount_that_fails_leaves_nothing_and_one_that_was_there_stays(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        broken = RigError(Code.StoreCorrupt, "journal/00000001.journal: byte 17")
        world.failing_once["azure.open_mounted_point"] = broken
        assert (await refused(vault, position=10))[0] == "StoreCorrupt"
        assert await vault.mounts.mounted_points(vm="web01") == []
        await vault.mounts.mount_point(vm="web01", position=10)
        world.failing_once["azure.open_mounted_point"] = broken
        assert (await refused(vault, position=10))[0] == "StoreCorrupt"
        assert [state.name for state in await vault.mounts.mounted_points(vm="web01")] == ["@10"]


@pytest.mark.slow
async def test_a_half_mounted_point_is_listed_and_can_be_repeated_or_removed(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for position in (8, 9):
            await vault.mounts.mount_point(vm="web01", position=position)
    world.mounted_points.clear()  # killed before the host had opened them
    async with running(world, tmp_path) as vault:
        assert [state.broken for state in await vault.mounts.mounted_points(vm="web01")] == [
            "the recovery host does not have it: unmount it"
        ] * 2
        assert (await vault.mounts.mount_point(vm="web01", position=8)).broken is None
        await vault.mounts.unmount_point(vm="web01", name="@9")
        assert [(state.name, state.broken) for state in await vault.mounts.mounted_points(vm="web01")] == [("@8", None)]


async def reach(world: World, call: str) -> None:
    """Until somebody is held in this call."""
    while call not in world.calls:
        await trio.lowlevel.checkpoint()
    await wait_all_tasks_blocked()


async def begun(nursery: trio.Nursery, call: Callable[[], Awaitable[object]]) -> None:
    """Started, and ended unless it waits for another."""
    ended = trio.Event()

    async def run() -> None:
        await call()
        ended.set()

    nursery.start_soon(run)
    with trio.move_on_after(0.3):
        await ended.wait()


@pytest.mark.slow
async def test_a_state_that_is_being_mounted_is_unmounted_afterwards(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        opening = world.held["azure.open_mounted_point"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: vault.mounts.mount_point(vm="web01", position=10))
            await reach(world, "azure.open_mounted_point")
            await begun(nursery, lambda: vault.mounts.unmount_point(vm="web01", name="@10"))
            opening.set()
        assert (await vault.mounts.mounted_points(vm="web01"), world.mounted_points) == ([], {})


@pytest.mark.slow
async def test_a_mount_that_fails_takes_nothing_from_the_next_of_its_name(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        opening = world.held["azure.open_mounted_point"] = trio.Event()

        async def fail() -> None:
            assert (await refused(vault, position=10))[0] == "StoreCorrupt"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            await reach(world, "azure.open_mounted_point")
            del world.held["azure.open_mounted_point"]
            await begun(nursery, lambda: vault.mounts.mount_point(vm="web01", position=10))
            world.failing_once["azure.open_mounted_point"] = RigError(Code.StoreCorrupt, "journal/00000001.journal: byte 17")
            opening.set()
        assert [(state.name, state.broken) for state in await vault.mounts.mounted_points(vm="web01")] == [("@10", None)]


@pytest.mark.slow
async def test_nothing_is_mounted_while_protection_is_disabled(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        deleting = world.held["recovery.delete_managed_disk"] = trio.Event()
        job = await vault.protection.disable_protection(vm="web01")
        await reach(world, "recovery.delete_managed_disk")
        assert await refused(vault, position=10) == (
            "InvalidState",
            "a point of VM 'web01' cannot be mounted: protectionState is DisablingProtection",
        )
        deleting.set()
        assert ((await ended(vault, job)).state, world.mounted_points) == ("Succeeded", {})


@pytest.mark.slow
async def test_disabling_protection_unmounts_unless_something_uses_it(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.mount_point(vm="web01")
        world.failing_once["azure.close_mounted_point"] = RigError(Code.RecoveryInUse, "recovery/web01/x/os is in use")
        job = await ended(vault, await vault.protection.disable_protection(vm="web01"))
        assert (job.state, job.errors[0].code) == ("Failed", "RecoveryInUse")
        assert len(world.mounted_points) == 1
        job = await ended(vault, await vault.protection.disable_protection(vm="web01"))
        assert job.state == "Succeeded"
        assert (world.mounted_points, world.managed) == ({}, {})


# --- sizes of disks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "gib", "message"),
    [
        ("data", 32_768, "disk 'data' of VM 'web01' has 32,768 GiB; a managed disk may have 32,767 GiB"),
        ("os", 4_096, "disk 'os' of VM 'web01' has 4,096 GiB; the operating system's disk may have 4,095 GiB"),
    ],
)
async def test_a_disk_that_is_too_large_for_the_service_is_refused(
    tmp_path: Path, name: str, gib: int, message: str
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        sizes = {"os": GIB, "data": GIB} | {name: gib * GIB}
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name=n, size_bytes=size) for n, size in sizes.items()])
        job = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        assert [(error.code, error.message) for error in job.errors] == [("DiskSizeUnsupported", message)]
        assert world.managed == {}


async def test_a_disk_that_is_not_whole_mib_is_replicated_and_reported(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=(1 << 20) + 512)])
        job = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30))
        assert (job.state, job.stateDescription) == ("Succeeded", "CompletedWithInformation")
        texts = [event.description for event in await vault.status.events()]
        assert any(text.startswith("disk 'os' of VM 'web01' has 1049088 bytes, not whole MiB") for text in texts)


@pytest.mark.slow
async def test_a_vm_can_be_made_from_a_state_between_points(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        point = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="later")
        for disk in world.site["web01"].values():
            world.times[disk.disk_id] = {10: START_NS, 15: START_NS + 15}
        for choice, position, name in (
            ("@15", 15, "@15"),
            ("2027-01-15T08:00:00.000000015Z", 15, "@15"),
            (f"@{point.position}", point.position, point.id),
        ):
            job = await ended(vault, await vault.failovers.test_failover(vm="web01", point=choice))
            assert (job.state, job.errors) == ("Succeeded", [])
            assert job.recovery_point is not None
            assert (job.recovery_point.position, job.recovery_point.id) == (position, name)
            assert world.opened_at == {"web01-test/os": position, "web01-test/data": position}
            await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
            world.opened_at.clear()
        with pytest.raises(RigError, match=r"position 9999 cannot be read; allowed: 1\d* to \d+") as caught:
            await vault.failovers.test_failover(vm="web01", point="@9999")
        assert caught.value.code == "InvalidPosition"
        with pytest.raises(RigError, match="time 1999-01-01T00:00:00Z cannot be read") as caught:
            await vault.failovers.unplanned_failover(vm="web01", point="1999-01-01T00:00:00Z")
        assert caught.value.code == "InvalidTime"
        assert [item.testFailoverState for item in await vault.status.items()] == ["None"]


@pytest.mark.slow
async def test_a_failover_to_a_position_continues_while_older_states_are_compacted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        asked = []

        async def change_steps(_self: FakeRecovery, *, disk_id: str, after: int, upto: int) -> list[ChangeStep]:
            asked.append(after)
            if len(asked) == 1:  # of the floor as it was
                world.floors = dict.fromkeys(world.managed, 4)
                raise RigError(Code.InvalidPosition, f"disk {disk_id} has no state at position {after}")
            return [ChangeStep(position=upto, time_ns=START_NS + upto, count=1)]

        monkeypatch.setattr(FakeRecovery, "change_steps", change_steps)
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point="@7"))
        assert (job.state, asked) == ("Succeeded", [1, 4, 4])
        assert job.recovery_point is not None
        assert (job.recovery_point.position, job.recovery_point.time_ns) == (7, START_NS + 7)


@pytest.mark.slow
async def test_a_failover_to_a_position_that_is_compacted_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)

        async def change_steps(_self: FakeRecovery, *, disk_id: str, after: int, upto: int) -> list[ChangeStep]:
            world.floors = dict.fromkeys(world.managed, 8)
            raise RigError(Code.InvalidPosition, f"disk {disk_id} has no state at position {after} or {upto}")

        monkeypatch.setattr(FakeRecovery, "change_steps", change_steps)
        with pytest.raises(RigError) as caught:
            await vault.failovers.test_failover(vm="web01", point="@7")
        assert caught.value.message == "VM 'web01': position 7 cannot be read; allowed: 8 to 10"


@pytest.mark.slow
async def test_of_two_equal_unmounts_at_once_neither_fails(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.mount_point(vm="web01", position=10)
        closing = world.held["azure.close_mounted_point"] = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: vault.mounts.unmount_point(vm="web01", name="@10"))
            await reach(world, "azure.close_mounted_point")
            await begun(nursery, lambda: vault.mounts.unmount_point(vm="web01", name="@10"))
            closing.set()
        assert (await vault.mounts.mounted_points(vm="web01"), world.mounted_points) == ([], {})
