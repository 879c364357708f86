"""The policy of a protected VM changes while it replicates, or stays as it was; also with a kill in between."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running


async def policy(vault: Vault) -> tuple[float, float | None, int]:
    (item,) = await vault.status.items()
    return _policy(item)


def _policy(item: ProtectedItem) -> tuple[float, float | None, int]:
    return item.policy_interval_s, item.app_consistent_every_s, item.recoveryPointHistoryDuration


async def test_values_that_are_given_change_and_the_others_stay(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        job = await ended(vault, await vault.protection.change_policy(vm="web01", interval_s=300))
        assert (job.state, job.scenarioName) == ("Succeeded", "ModifyProtectionProfile")
        assert await policy(vault) == (300, None, 24)
        await ended(vault, await vault.protection.change_policy(vm="web01", app_consistent_every_s=3600, history_hours=48))
        assert await policy(vault) == (300, 3600, 48)
        await ended(vault, await vault.protection.change_policy(vm="web01", app_consistent_every_s=0))
        assert await policy(vault) == (300, None, 48)
        assert [call for call in world.calls if "change_schedule " in call] == [
            "site.change_schedule 300 None",
            "site.change_schedule 300 3600",
            "site.change_schedule 300 None",
        ]
        events = await vault.status.events()
        assert [event.description for event in events if event.eventCode == "PolicyChanged"][1] == (
            "the policy of VM 'web01' is now: interval 300 s, retention 48 h, application-consistent points every 3600 s"
        )
        assert "RigOnlyPolicy" in [event.eventCode for event in events]


async def test_a_change_of_the_retention_needs_no_site(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.lose_site()
        job = await ended(vault, await vault.protection.change_policy(vm="web01", history_hours=2))
        assert job.state == "Succeeded"
        assert await policy(vault) == (30, None, 2)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"interval_s": 0.5}, r"interval_s is 0\.5; allowed: 30, 300 or 900 .* any value from 1 to 86400"),
        ({"app_consistent_every_s": 10}, r"app_consistent_every_s is 10; allowed: from interval_s \(30\) to 86400"),
        ({"history_hours": 361}, r"recoveryPointHistoryDuration is 361; allowed: 1 to 360 hours"),
        ({}, r"the policy of VM 'web01': no value to change; allowed: interval_s, app_consistent_every_s, history_hours"),
    ],
)
async def test_a_value_that_is_not_allowed_changes_nothing(tmp_path: Path, values: dict[str, float], message: str) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)
        with pytest.raises(RigError, match=message):
            await vault.protection.change_policy(vm="web01", **values)  # type: ignore[arg-type]
        assert await policy(vault) == (30, None, 24)


async def test_a_longer_interval_leaves_no_missed_cycles(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.protection.change_policy(vm="web01", interval_s=900))
        world.now_ns += 200 * 10**9
        await ended(vault, await vault.protection.change_policy(vm="web01", interval_s=30))
        (item,) = await vault.status.items()
        assert item.healthErrors == []


async def test_a_kill_while_the_policy_changes_is_continued(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held["site.change_schedule"] = trio.Event()
        await vault.protection.change_policy(vm="web01", interval_s=300)
        while "site.change_schedule" not in world.calls:
            await trio.lowlevel.checkpoint()
    world.held.clear()
    async with running(world, tmp_path) as vault:
        settings = await vault.reports.settings(vm="web01")
        assert settings is not None and settings.interval_s == 300  # for an agent that was killed as well
        await idle(vault)
        assert await policy(vault) == (300, None, 24)
        assert world.calls.count("site.change_schedule") == 2


async def test_a_refusal_of_the_site_leaves_the_policy_as_it_was(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["site.change_schedule"] = RigError(Code.VmNotProtected, "not here")
        job = await ended(vault, await vault.protection.change_policy(vm="web01", interval_s=300, history_hours=3))
        assert (job.state, [error.message for error in job.errors]) == ("Failed", ["not here"])
        assert await policy(vault) == (30, None, 24)
