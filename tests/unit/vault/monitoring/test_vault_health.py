"""replicationHealth: from None over Warning to Critical and back."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.azure_emu.vault.service import Vault
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, protected, running

SECOND_NS = 1_000_000_000
_positions = itertools.count(1000)


async def only_item(vault: Vault) -> ProtectedItem:
    (item,) = await vault.status.items()
    return item


async def cycle(world: World, vault: Vault, at_s: float) -> None:
    world.now_ns = START_NS + int(at_s * SECOND_NS)
    position = next(_positions)
    await vault.reports.point_sent(
        vm="web01", tag_id=str(position), kind="CrashConsistent", name="cycle", position=position, time_ns=world.now_ns
    )


@pytest.mark.slow
async def test_a_fifth_of_the_cycles_missed_is_a_warning(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)  # interval 30 s; its first cycle was at second 0
        for n in range(1, 8):
            await cycle(world, vault, n * 30)
        for at_s, texts in ((270, []), (300, ["20% of the replication cycles of the last hour were missed (limit 20%)"])):
            world.now_ns = START_NS + at_s * SECOND_NS  # 8 of 9, and then 8 of 10
            await vault.watch.round()
            item = await only_item(vault)
            missed = [each for each in item.healthErrors if each.errorCode == "ReplicationCyclesMissed"]
            assert [each.summaryMessage for each in missed] == texts
        assert item.replicationHealth == "Warning"


@pytest.mark.slow
async def test_a_log_unsent_for_over_an_hour_is_a_warning(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.now_ns = START_NS + 3601 * SECOND_NS
        await vault.watch.round()
        codes = {error.errorCode for error in (await only_item(vault)).healthErrors}
        assert codes == {"ReplicationCyclesMissed", "LogUnsent", "RpoAboveThreshold", "NoRecentRecoveryPoint"}


async def test_a_recoverable_error_warns_until_replication_recovers(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for attempt in (1, 2):
            await vault.reports.replication_error(
                vm="web01", code="CacheUnreachable", message="no route", recoverable=True, attempt=attempt, next_try_s=60
            )
        item = await only_item(vault)
        assert item.replicationHealth == "Warning"
        (error,) = item.healthErrors
        assert (error.attempt, error.next_try_time) == (2, "2027-01-15T08:01:00.000000Z")
        await vault.reports.replication_recovered(vm="web01")
        assert (await only_item(vault)).replicationHealth == "Normal"
        codes = [event.eventCode for event in await vault.status.events() if event.eventType == "VmHealth"]
        assert codes == ["ReplicationRecovered", "CacheUnreachable"]  # newest first, an attempt is no event of its own


async def test_a_sent_point_ends_an_error_from_before_an_agent_restart(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        await vault.reports.replication_error(
            vm="web01", code="CacheUnreachable", message="no route", recoverable=True, attempt=1, next_try_s=60
        )
        for position in (100, 200):
            await vault.reports.point_sent(
                vm="web01", tag_id=f"t{position}", kind="CrashConsistent", name="n", position=position, time_ns=START_NS
            )
        assert (await only_item(vault)).replicationHealth == "Normal"
        codes = [event.eventCode for event in await vault.status.events() if event.eventType == "VmHealth"]
        assert codes == ["ReplicationRecovered", "CacheUnreachable"]


async def test_an_error_that_nobody_retries_is_critical(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        await vault.reports.replication_error(
            vm="web01", code="CacheForbidden", message="key refused", recoverable=False, attempt=1, next_try_s=None
        )
        assert (await only_item(vault)).replicationHealth == "Critical"
        event = (await vault.status.events())[0]
        assert (event.eventCode, event.severity, event.affectedObject) == ("CacheForbidden", "Critical", "web01")


@pytest.mark.slow
async def test_a_refused_part_is_critical_until_that_disk_is_applied_again(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        disk_id = world.site["web01"]["os"].disk_id
        await vault.reports.apply_failed(disk_id=disk_id, code="PartCorrupt", message="checksum", recoverable=False)
        await vault.reports.replication_recovered(vm="web01")  # the agent's success says nothing about the applier
        assert (await only_item(vault)).replicationHealth == "Critical"
        await world.report(disk_id)
        assert (await only_item(vault)).replicationHealth == "Normal"


async def test_a_point_lets_the_applier_try_refused_parts_again(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        disk_id = world.site["web01"]["os"].disk_id
        await vault.reports.apply_failed(disk_id=disk_id, code="CacheAuthentication", message="old key", recoverable=False)
        world.apply = False
        before = world.calls.count("recovery.process_latest")
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="new key")
        assert world.calls.count("recovery.process_latest") == before + 1
        world.apply = True
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="later")
        assert world.calls.count("recovery.process_latest") == before + 1


@pytest.mark.slow
async def test_an_applier_that_waits_for_room_is_a_warning(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        disk_id = world.site["web01"]["os"].disk_id
        await vault.reports.apply_failed(disk_id=disk_id, code="DiskFull", message="no room", recoverable=True)
        assert (await only_item(vault)).replicationHealth == "Warning"
        assert (await vault.status.events())[0].severity == "Warning"


async def test_reports_about_a_vm_that_is_not_protected_are_ignored(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await vault.reports.replication_error(vm="x", code="E", message="m", recoverable=True, attempt=1, next_try_s=1)
        await vault.reports.resync_required(vm="x", reason="PowerLoss")
        await vault.reports.replication_recovered(vm="x")
        await vault.reports.apply_failed(disk_id="d", code="E", message="m", recoverable=False)
        await vault.reports.applied(watermark=world.mark("d", 1, 5, 5), tags=[])
        await vault.reports.point_sent(vm="x", tag_id="t", kind="CrashConsistent", name="n", position=1, time_ns=1)
        assert await vault.reports.watermarks(vm="x") == []
        assert await vault.status.events() == []
