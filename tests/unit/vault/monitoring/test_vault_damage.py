"""Damage of managed disks in the vault: health, events, and warnings for users of a state that is known to be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.vault.model.resources import Health, ProtectedItem
from siterig.azure_emu.vault.monitoring.damage import BY_READ_MAX
from siterig.azure_emu.vault.service import Vault
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

pytestmark = pytest.mark.slow


def damage(first: int | None, last: int | None = None, *, offset: int = 4096) -> Damage:
    return Damage(path="/m/d/base.img", offset=offset, what="rotten", first_position=first, last_position=last)


async def only_item(vault: Vault) -> ProtectedItem:
    (item,) = await vault.status.items()
    return item


def disk_id(world: World) -> str:
    return world.site["web01"]["os"].disk_id


HEAD = "the managed disk of web01/os is damaged in one place (/m/d/base.img: byte 4096: rotten): "


@pytest.mark.parametrize(
    ("found", "health", "why"),
    [
        (
            damage(5),
            "Critical",
            "states from position 5 on are damaged; a resync replaces the data, and the next scrub clears the damage",
        ),
        (damage(5, 9), "Warning", "states between positions 5 and 9 are damaged; retention removes them in time"),
        (damage(None), "Warning", "every state is readable; a repair rebuilds the file"),
    ],
)
async def test_damage_that_a_scrub_finds_is_in_the_health_until_a_scrub_misses_it(
    tmp_path: Path, found: Damage, health: Health, why: str
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        before = len(await vault.status.events())
        for _ in range(2):  # the same again is no news
            await vault.reports.scrubbed(disk_id=disk_id(world), damages=[found])
        item = await only_item(vault)
        assert item.replicationHealth == health
        assert [(error.errorCode, error.summaryMessage) for error in item.healthErrors] == [
            ("ManagedDiskDamaged", HEAD + why)
        ]
    async with running(world, tmp_path) as vault:
        assert (await only_item(vault)).replicationHealth == health, "it is remembered"
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="later")
        await vault.reports.scrubbed(disk_id=disk_id(world), damages=[])
        assert (await only_item(vault)).replicationHealth == "Normal"
        events = [(event.eventCode, event.severity) for event in await vault.status.events()][: -before or None]
        assert events == [("ManagedDiskWhole", "OK"), ("ManagedDiskDamaged", health)]


async def test_damage_that_reads_meet_is_reported_once_and_a_scrub_decides(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for position in (7, 7, 8):
            await vault.reports.damage_met(disk_id=disk_id(world), path="/m/d/base.img", offset=4096, position=position)
        item = await only_item(vault)
        assert item.replicationHealth == "Warning"
        assert item.healthErrors[0].summaryMessage == (
            "the managed disk of web01/os is damaged in 2 places (/m/d/base.img: byte 4096): a read of position "
            "7 found it; a scrub finds all damaged states"
        )
        told = [event.description for event in await vault.status.events() if event.eventCode == "ManagedDiskDamaged"]
        assert told == [
            f"a read of position {position} of web01/os failed: /m/d/base.img is damaged at byte 4096" for position in (8, 7)
        ]
        await vault.reports.scrubbed(disk_id=disk_id(world), damages=[damage(7)])
        await vault.reports.damage_met(disk_id=disk_id(world), path="/m/d/base.img", offset=4096, position=9)
        assert (await only_item(vault)).replicationHealth == "Critical"
        assert len([event for event in await vault.status.events() if event.eventCode == "ManagedDiskDamaged"]) == 3


async def test_the_kept_reports_of_damage_are_bounded(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for position in range(BY_READ_MAX + 3):
            await vault.reports.damage_met(disk_id=disk_id(world), path="/m/d/base.img", offset=0, position=position)
        assert f"damaged in {BY_READ_MAX} places" in (await only_item(vault)).healthErrors[0].summaryMessage


async def test_damage_of_a_disk_that_is_not_known_is_ignored_and_goes_with_protection(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await vault.reports.damage_met(disk_id="d", path="/m/d/base.img", offset=0, position=1)
        await vault.reports.scrubbed(disk_id="d", damages=[damage(1)])
        assert await vault.status.events() == []
        await protected(vault)
        await vault.reports.scrubbed(disk_id=disk_id(world), damages=[damage(1)])
        job = await ended(vault, await vault.protection.disable_protection(vm="web01"))
        assert (job.state, job.errors) == ("Succeeded", [])


async def test_the_user_of_a_state_that_is_known_to_be_damaged_gets_a_warning(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        whole = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="whole")
        await vault.reports.scrubbed(disk_id=disk_id(world), damages=[damage(5, whole.position - 1)])
        at = whole.position - 1
        text = (
            f"VM 'web01': position {at} is known to be damaged on disk os: reads of the damaged ranges return I/O errors "
            "(/m/d/base.img: byte 4096: rotten)"
        )
        assert (await vault.mounts.mount_point(vm="web01", position=at)).damage == text
        assert (await vault.mounts.mount_point(vm="web01", point=whole.id)).damage is None
        assert [state.damage for state in await vault.mounts.mounted_points(vm="web01")] == [None, text]
        for start in (vault.failovers.test_failover, vault.failovers.unplanned_failover):
            job = await ended(vault, await start(vm="web01", point=f"@{at}"))
            assert (job.state, job.stateDescription) == ("Succeeded", "CompletedWithInformation")
            assert [(error.code, error.message) for error in job.errors] == [("RecoveryPointDamaged", text)]
        job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point=whole.id))
        assert (job.state, job.stateDescription, job.errors) == ("Succeeded", "Completed", [])
