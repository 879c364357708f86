"""The site's disk host: the source VMs' disks as files, every write to them in a change log."""

from __future__ import annotations

import trio

from blockfs.host import DiskHost
from siterig.layout import Layout
from siterig.roles.entry import main
from siterig.roles.hosting import clear_stale, host_disks


async def run(layout: Layout, *, task_status: trio.TaskStatus[None]) -> None:
    """Serve until cancelled."""
    await clear_stale(layout.site_mount)
    host = DiskHost(layout.site_disks, layout.site_mount)
    await host_disks(host, layout.site_mount, layout.socket("site"), task_status)


if __name__ == "__main__":
    main(run)
