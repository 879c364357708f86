"""Tests with a real Azurite that loses the data of listed blobs, and with a stopped applier.

Replication recovers, or it reports the fault.  One rig is used for all steps, in the order of a real outage.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from azure.storage.blob import BlobServiceClient

from siterig.azure_emu.storage.azurite import CONTAINER, connection_string
from siterig.azure_emu.vault.model.resources import ProtectedItem
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended
from tests.support.rigs.protected_vm import is_healthy

pytestmark = pytest.mark.system

VM = "web01"
DISK_BYTES = 16 << 20
INTERVAL_S = 3
WITHIN_S = 120
"""The time limit of a wait, far beyond the promised times: a loaded machine is slow, and no test asserts a duration."""


async def until(what: str, check: Callable[[], Awaitable[bool]]) -> None:
    with trio.move_on_after(WITHIN_S):
        while not await check():  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.5)
        return
    pytest.fail(f"{what}: not within {WITHIN_S} s")


async def item_of(rig: Testbed) -> ProtectedItem:
    (item,) = await rig.vault.items()
    return item


async def newest(rig: Testbed) -> int:
    return (await rig.vault.points(vm=VM, limit=1))[0].position


async def new_points_come(rig: Testbed) -> None:
    seen = await newest(rig)

    async def more() -> bool:
        return await newest(rig) > seen

    await until(f"a point after {seen}", more)


async def healthy(rig: Testbed) -> None:
    await until("Normal health", partial(is_healthy, rig, VM))


async def pid_of(rig: Testbed, name: str) -> int:
    (pid,) = [role.pid for role in (await rig.supervisor.status()).roles if role.name == name]
    assert pid is not None
    return pid


async def test_lost_data_a_stopped_applier_and_foreign_blobs_are_survived(tmp_path: Path) -> None:
    async with Testbed.up(tmp_path / "rig") as rig:
        await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=DISK_BYTES)])
        await ended(rig, await rig.vault.enable_protection(vm=VM, interval_s=INTERVAL_S))
        disk = rig.layout.site_mount / VM / "os.img"

        applier = await pid_of(rig, "applier")
        os.kill(applier, signal.SIGSTOP)
        try:
            with disk.open("r+b") as file:
                file.write(os.urandom(3 << 20))

            async def noticed() -> bool:
                item = await item_of(rig)
                codes = {error.errorCode for error in item.healthErrors}
                return item.replicationHealth != "Normal" and "RoleHung" in codes and (item.unapplied_bytes or 0) > 2 << 20

            await until("an applier that stands still", noticed)
            item = await item_of(rig)
            assert item.applied_lag_s is not None
            assert item.applied_lag_s > 0

            for extent in (rig.layout.azurite / "__blobstorage__").iterdir():
                extent.unlink()
            os.kill(await pid_of(rig, "azurite"), signal.SIGKILL)
        finally:
            os.kill(applier, signal.SIGCONT)

        await new_points_come(rig)
        await healthy(rig)
        codes = {(event.eventCode, event.severity) for event in await rig.vault.events()}
        assert {("RoleHung", "Warning"), ("RoleHung", "OK"), ("ApplyRecovered", "OK")} <= codes
        assert (await item_of(rig)).resynchronizationRequired is None

        await stray_blobs(rig)


async def stray_blobs(rig: Testbed) -> None:
    """Add two blobs under the disk's prefix: one is not a part, the other has the name of a later generation's part."""
    (managed,) = await rig.vault.managed_disks()
    names = [f"{managed.disk_id}/notes.txt", f"{managed.disk_id}/00000009/sync/{1:020d}-{1:020d}.hrl.zst"]
    text, trusted = connection_string(rig.layout.azurite, rig.layout.keys), str(rig.layout.authority_certificate)
    with BlobServiceClient.from_connection_string(text, connection_verify=trusted) as service:
        container = service.get_container_client(CONTAINER)
        for name in names:
            container.upload_blob(name, b"what somebody left here")

        async def reported() -> bool:
            errors = (await item_of(rig)).healthErrors
            return any(error.errorCode == "BlobsSkipped" and "2 blobs" in error.summaryMessage for error in errors)

        await until("blobs that are passed over", reported)
        await new_points_come(rig)
        for name in names:
            container.delete_blob(name)
    await healthy(rig)
    events = [event.severity for event in await rig.vault.events() if event.eventCode == "BlobsSkipped"]
    assert events == ["OK", "Warning"]
