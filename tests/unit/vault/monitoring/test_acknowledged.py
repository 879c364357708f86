"""An acknowledged reason is hidden as long as it lasts, also over a restart, and is shown when it occurs again."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running


async def item_of(vault: Vault) -> ProtectedItem:
    (item,) = await vault.status.items()
    return item


async def codes(vault: Vault) -> tuple[str, list[str], list[str]]:
    item = await item_of(vault)
    return (
        item.replicationHealth,
        [error.errorCode for error in item.healthErrors],
        [error.errorCode for error in item.acknowledged_errors],
    )


async def fails(vault: Vault, code: str = "CacheUnreachable", *, attempt: int = 1, recoverable: bool = True) -> None:
    await vault.reports.replication_error(
        vm="web01", code=code, message=f"{code} again", recoverable=recoverable, attempt=attempt, next_try_s=60
    )


async def test_a_retried_error_stays_hidden_until_it_ends_and_occurs_again(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await fails(vault)
        assert await codes(vault) == ("Warning", ["CacheUnreachable"], [])
        (known,) = await vault.health.resolve_health_errors(vm="web01", code="CacheUnreachable")
        assert (known.errorId, known.summaryMessage) == ("replication", "CacheUnreachable again")
        assert await codes(vault) == ("Normal", [], ["CacheUnreachable"])
    async with running(world, tmp_path) as vault:
        await fails(vault, attempt=2)
        await vault.watch.round()
        assert await codes(vault) == ("Normal", [], ["CacheUnreachable"])
        await vault.reports.replication_recovered(vm="web01")
        assert await codes(vault) == ("Normal", [], [])
        await fails(vault)
        assert await codes(vault) == ("Warning", ["CacheUnreachable"], [])
        events = [event.eventCode for event in await vault.status.events()]
        assert events.count("HealthErrorAcknowledged") == 1


async def test_another_error_or_severity_of_the_same_source_is_shown(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        await fails(vault)
        await vault.health.resolve_health_errors(vm="web01", code="replication")
        await fails(vault, "DiskFull")
        assert await codes(vault) == ("Warning", ["DiskFull"], [])
        await vault.health.resolve_health_errors(vm="web01", code="DiskFull")
        await fails(vault, "DiskFull", recoverable=False)
        assert await codes(vault) == ("Critical", ["DiskFull"], [])
        await fails(vault)
        assert await codes(vault) == ("Warning", ["CacheUnreachable"], [])


async def test_a_derived_reason_is_hidden_until_it_ends(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        for _ in range(2):
            await ended(vault, await vault.protection.pause_replication(vm="web01"))
            assert await codes(vault) == ("Warning", ["ReplicationPaused"], [])
            await vault.health.resolve_health_errors(vm="web01", code="ReplicationPaused")
            await vault.watch.round()
            assert await codes(vault) == ("Normal", [], ["ReplicationPaused"])
            await ended(vault, await vault.protection.resume_replication(vm="web01"))
            await vault.watch.round()


async def test_a_resync_that_is_due_for_another_reason_is_shown(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        await vault.health.resolve_health_errors(vm="web01", code="ResynchronizationRequired")
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        assert (await codes(vault))[1:] == ([], ["ResynchronizationRequired"])
        await vault.reports.resync_required(vm="web01", reason="PowerLoss")
        assert (await codes(vault))[1:] == (["ResynchronizationRequired"], [])


async def test_the_use_of_an_old_primary_is_hidden_until_it_ends(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        world.written_bytes["os"] = 4096
        await vault.sources.round()
        await vault.health.resolve_health_errors(vm="web01", code="SourceInUse")
        await vault.watch.round()
        await vault.sources.round()
        assert (await codes(vault))[1:] == ([], ["SourceInUse"])
        world.written_bytes["os"] = 0
        await vault.sources.round()
        world.written_bytes["os"] = 4096
        await vault.sources.round()
        assert (await codes(vault))[1:] == (["SourceInUse"], [])


async def test_a_code_that_is_not_there_names_the_present_ones(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match="VM 'web01' has no health error 'X'; health errors now: none") as caught:
            await vault.health.resolve_health_errors(vm="web01", code="X")
        assert caught.value.code == "HealthErrorNotFound"
        await fails(vault)
        with pytest.raises(RigError, match="health errors now: CacheUnreachable"):
            await vault.health.resolve_health_errors(vm="web01", code="X")
