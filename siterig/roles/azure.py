"""The recovery side's disk host: failed-over VMs' disks, each a writable top over a recovery point."""

from __future__ import annotations

import trio

from azure_emu.managed_disk import open_view
from blockfs.host import DiskHost
from siterig.layout import Layout
from siterig.roles.entry import main
from siterig.roles.hosting import clear_stale, host_disks


async def run(layout: Layout, *, task_status: trio.TaskStatus[None]) -> None:
    """Serve until cancelled."""
    await clear_stale(layout.azure_mount)
    host = DiskHost(layout.azure_vms, layout.azure_mount, open_view=open_view)
    await host_disks(host, layout.azure_mount, layout.socket("azure"), task_status)


if __name__ == "__main__":
    main(run)
