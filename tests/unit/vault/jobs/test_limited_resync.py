"""The vault lets a resync trust the dirty bitmap only if nothing else can differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.vault.service import Vault
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running


async def disk_id_of(vault: Vault) -> str:
    return (await vault.status.managed_disks())[0].disk_id


@pytest.mark.parametrize(
    ("reasons", "limited"),
    [
        ([], False),
        (["LogOverflow"], True),
        (["LogFull"], True),
        (["PowerLoss"], False),
        (["PartUnusable", "LogOverflow"], False),
        (["LogOverflow", "PartUnusable"], False),
    ],
)
async def test_only_an_abandoned_log_limits_a_resync(tmp_path: Path, reasons: list[str], limited: bool) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        for reason in reasons:
            await vault.reports.resync_required(vm="web01", reason=reason)
        await ended(vault, await vault.protection.resync(vm="web01"))
        assert world.limited == [limited]
        await ended(vault, await vault.protection.resync(vm="web01"))
        assert world.limited == [limited, False]


async def test_damage_makes_a_resync_compare_everything(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        damage = Damage(path="/disks/x/base.img", offset=0, what="wrong", first_position=1)
        await vault.reports.scrubbed(disk_id=await disk_id_of(vault), damages=[damage])
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        await ended(vault, await vault.protection.resync(vm="web01"))
        assert world.limited == [False]
