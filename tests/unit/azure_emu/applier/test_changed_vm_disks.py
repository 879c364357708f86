"""A change of a recovered VM's disk by another program is a warning of that VM, and an event."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.azure_emu.applier.changed_vm_disks import ChangedVmDisks
from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.views import PlainViews
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.layers.layer import Layer, RawLayer
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import idle, protected, running

SIZE = 1 << 20


class Reports:
    """A vault that does not answer the first time."""

    def __init__(self) -> None:
        self.away = 1
        self.changed: list[tuple[str, str, str]] = []

    async def vm_disk_changed(self, *, vm: str, disk: str, what: str) -> None:
        await trio.lowlevel.checkpoint()
        self.away -= 1
        if self.away >= 0:
            raise RigError(Code.RoleUnavailable, "nobody answers", recoverable=True)
        self.changed.append((vm, disk, what))

    async def damage_met(self, *, disk_id: str, path: str, offset: int, position: int) -> None:
        raise AssertionError(path)

    async def scrubbed(self, *, disk_id: str, damages: list[Damage]) -> None:
        raise AssertionError(damages)


class Files(PlainViews):
    """Plain files in ``folder`` in place of managed disks."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, managed_disk: str, _position: int, _holder: str, *, stored: bool = False) -> Layer:
        return RawLayer(self._folder / managed_disk)

    def release(self, managed_disk: str, holder: str) -> None:
        pass

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        pass


async def reported(changed: ChangedVmDisks) -> list[tuple[str, str, str]]:
    reports = Reports()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(changed.report, reports)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    return reports.changed


async def test_changes_found_at_start_are_reported_until_the_vault_has_them(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    (tmp_path / "below").write_bytes(os.urandom(SIZE))
    changed = ChangedVmDisks()

    def host() -> DiskHost:
        return DiskHost(tmp_path / "vms", tmp_path / "mnt", views=Files(tmp_path), report_changed=changed.note)

    disks = host()
    for name in ("a", "b", "c"):
        await disks.create_disk_from_point(vm="web01-test", name=name, managed_disk="below", position=1)
        disks.disk("web01-test", name).write(0, b"guest" * 1000)
    disks.close()
    with (tmp_path / "vms/web01-test/a.top").open("r+b") as file:
        file.write(b"OFFLINE-EDIT")
    os.truncate(tmp_path / "vms/web01-test/b.top", 0)
    disks = host()
    found = await reported(changed)
    assert [(vm, disk) for vm, disk, _ in found] == [("web01-test", "a"), ("web01-test", "b")]
    assert "was written to, or replaced" in found[0][2]
    assert "cannot be opened" in found[1][2]
    disks.close()


async def failed_over(vault: Vault) -> None:
    await protected(vault)
    await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="p")
    await idle(vault)
    await vault.failovers.test_failover(vm="web01", point="Latest")
    await idle(vault)


@pytest.mark.slow
async def test_it_is_a_warning_and_an_event_until_the_vm_is_gone(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await failed_over(vault)
        for _ in range(2):
            await vault.reports.vm_disk_changed(vm="web01-test", disk="os", what="os.top was cut")
        await vault.reports.vm_disk_changed(vm="nobody", disk="os", what="nothing")
        (item,) = await vault.status.items()
        assert item.replicationHealth == "Warning"
        (error,) = item.healthErrors
        assert (error.errorCode, error.summaryMessage) == (
            "ImageChanged",
            "disk 'os' of VM 'web01-test' on the recovery side: os.top was cut",
        )
        assert [event.eventCode for event in await vault.status.events()].count("ImageChanged") == 1
        await vault.failovers.cleanup_test_failover(vm="web01")
        await idle(vault)
        (item,) = await vault.status.items()
        assert item.replicationHealth == "Normal"
