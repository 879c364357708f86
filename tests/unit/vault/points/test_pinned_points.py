"""Pinned points survive retention and restarts; a point is deleted only if nothing needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

HOUR_NS = 3600 * 10**9


async def take(vault: Vault, name: str) -> RecoveryPoint:
    return await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name=name)


async def names(vault: Vault) -> list[str]:
    return [point.name for point in await vault.recovery_points.points(vm="web01")]


async def test_a_pinned_point_survives_retention_and_restarts_until_it_is_unpinned(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        before = await take(vault, "before upgrade")
        pinned = await vault.recovery_points.pin_point(vm="web01", point="before upgrade", pinned=True)
        assert (pinned.pinned, before.pinned) == (True, False)
    async with running(world, tmp_path) as vault:
        world.now_ns += 100 * HOUR_NS
        await take(vault, "now")
        await vault.retention.round()
        assert await names(vault) == ["now", "before upgrade"]
        assert (await vault.status.items())[0].pinned_points == 1
        assert set(world.retained.values()) == {before.position}  # compaction leaves everything from there on
        await vault.recovery_points.pin_point(vm="web01", point=before.id, pinned=False)
        await vault.retention.round()
        assert await names(vault) == ["now"]
        codes = [event.eventCode for event in await vault.status.events()]
        assert [codes.count(code) for code in ("RecoveryPointPinned", "RecoveryPointUnpinned")] == [1, 1]


async def test_a_point_is_deleted_and_does_not_come_back(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await take(vault, "a")
        deleted = await vault.recovery_points.delete_point(vm="web01", point="first")
        assert deleted.name == "first"
        await take(vault, "b")
        assert await names(vault) == ["b", "a"]
        assert "RecoveryPointDeleted" in [event.eventCode for event in await vault.status.events()]
    async with running(world, tmp_path) as vault:
        assert await names(vault) == ["b", "a"]


async def test_a_point_that_is_needed_is_not_deleted(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        a, b = await take(vault, "a"), await take(vault, "b")
        for choice in ("b", "LatestProcessed", b.id):
            with pytest.raises(RigError, match=rf"recovery point {b.id} \('b'\) of VM 'web01' is the newest one") as caught:
                await vault.recovery_points.delete_point(vm="web01", point=choice)
            assert caught.value.code == "InvalidState"
        await vault.recovery_points.pin_point(vm="web01", point="a", pinned=True)
        with pytest.raises(
            RigError, match=rf"is pinned and stays; to delete it, first run siterig point unpin web01 {a.id}"
        ):
            await vault.recovery_points.delete_point(vm="web01", point="a")
        await vault.recovery_points.pin_point(vm="web01", point="a", pinned=False)
        await ended(vault, await vault.failovers.test_failover(vm="web01", point="a"))
        with pytest.raises(RigError, match="is in use: VM 'web01-test' lies over it") as caught:
            await vault.recovery_points.delete_point(vm="web01", point="a")
        assert caught.value.code == "RecoveryInUse"
        await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
        mounted = await vault.mounts.mount_point(vm="web01", point="a")
        with pytest.raises(RigError, match=f"is in use: it is mounted as '{mounted.name}'"):
            await vault.recovery_points.delete_point(vm="web01", point="a")
        assert await names(vault) == ["b", "a", "first"]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("nope", "latest-app, the id or the name of one of its 1 points$"),
        ("@10", "'@10' selects a state, not a recovery point; allowed: the id or the name of a recovery point"),
        ("2026-11-21T22:13:17Z", "selects a state, not a recovery point"),
    ],
)
async def test_a_choice_without_a_point_names_the_allowed_ones(tmp_path: Path, choice: str, message: str) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        for call in (
            vault.recovery_points.pin_point(vm="web01", point=choice, pinned=True),
            vault.recovery_points.delete_point(vm="web01", point=choice),
        ):
            with pytest.raises(RigError, match=message) as caught:
                await call
            assert caught.value.code == "NoSuchPoint"
