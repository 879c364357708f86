"""The storage account: Azurite on a free loopback port, with a key of its own."""

from __future__ import annotations

import contextlib
import os

import trio

from siterig.azure_emu.storage.azurite import run_azurite
from siterig.blockfs.core.clock import Clock
from siterig.core.paths import Layout
from siterig.roles.entry import Health, run_role
from siterig.rpc.trust import storage_tls

NICE = -5
"""The account of the service has machines of its own.  Here it has the cores before the roles that wait for it."""


async def run(layout: Layout, *, clock: Clock, health: Health, task_status: trio.TaskStatus[None]) -> None:
    """Serve until cancelled; ready means that the container for replication exists."""
    async with trio.open_nursery() as nursery:
        azurite = await nursery.start(run_azurite, layout.azurite, layout.keys)
        # Azurite takes longest of all processes of a rig to start, so it is started before this is loaded.
        from siterig.azure_emu.storage.blob_cache import BlobCacheAccount  # noqa: PLC0415

        health.probe = azurite.check
        cache = BlobCacheAccount(azurite.connection_string, tls=storage_tls(layout, clock))
        try:
            await cache.ensure_container()
        finally:
            cache.close()
        task_status.started()


def main() -> None:
    """Run the role in this process."""
    with contextlib.suppress(PermissionError):  # only a privileged user may do so
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    run_role("azurite", run, holds_keys=True)


if __name__ == "__main__":
    main()
