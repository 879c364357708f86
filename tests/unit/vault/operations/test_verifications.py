"""The result of a verification is an event, and a difference makes a resync due."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.verification import DifferingRange, Verification, VerifiedDisk
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running


def verification(*offsets: int) -> Verification:
    differing = [DifferingRange(offset=offset, length=65536) for offset in offsets]
    disk = VerifiedDisk(
        name="data", size_bytes=1 << 30, data_bytes=5000, differing_bytes=65536 * len(offsets), differing=differing
    )
    return Verification(vm="web01", position=77, time_ns=0, disks=[disk])


async def last_event(vault: Vault) -> tuple[str, str, str]:
    event = (await vault.status.events())[0]
    return event.eventCode, event.severity, event.description


async def due(vault: Vault) -> str | None:
    return (await vault.status.items())[0].resynchronizationRequired


async def test_equal_sides_are_an_event(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.verification = verification()
        assert await vault.verifications.verify(vm="web01") == world.verification
        text = "VM 'web01': both sides are equal at position 77; 5000 bytes of data were compared"
        assert await last_event(vault) == ("VerificationSucceeded", "OK", text)
        assert await due(vault) is None


async def test_a_difference_makes_a_resync_due_until_one_succeeded(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.verification = verification(*range(0, 7 << 20, 1 << 20))
        await vault.verifications.verify(vm="web01")
        text = (
            "VM 'web01': 458752 bytes differ at position 77 (disk offset+length): data 0+65536, data 1048576+65536, "
            "data 2097152+65536, data 3145728+65536, data 4194304+65536, ..."
        )
        assert await last_event(vault) == ("VerificationDiffers", "Critical", text)
        assert await due(vault) == Code.VerificationDiffers
        job = await ended(vault, await vault.protection.resync(vm="web01"))
        assert job.state == "Succeeded"
        assert await due(vault) is None


async def test_a_verification_that_fails_is_an_event_and_no_resync(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["site.verify"] = RigError(Code.SnapshotFailed, "it is full")
        with pytest.raises(RigError, match="it is full"):
            await vault.verifications.verify(vm="web01")
        text = "VM 'web01' could not be verified: it is full (SnapshotFailed)"
        assert await last_event(vault) == ("VerificationFailed", "Warning", text)
        world.failing["site.verify"] = RigError(Code.VmBusy, "another one is running")
        with pytest.raises(RigError, match="another one is running"):
            await vault.verifications.verify(vm="web01")
        assert await last_event(vault) == ("VerificationFailed", "Warning", text)
        assert await due(vault) is None


async def test_only_a_replicated_vm_is_verified(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        with pytest.raises(RigError) as caught:
            await vault.verifications.verify(vm="web01")
        assert caught.value.code == "InvalidState"
        assert "site.verify" not in world.calls
        await vault.verifications.stop_verification(vm="web01")
        assert "site.stop_verification" in world.calls
