"""The disk host of the site: the disks of source VMs as files; a change log has every write."""

from __future__ import annotations

import sys
from functools import partial

import trio

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.host.disk_host import DiskHost
from siterig.core.fuse_options import FuseOptions
from siterig.core.limits import Limits
from siterig.core.paths import Layout
from siterig.roles.entry import Health, run_role
from siterig.roles.fault_injection import ServedDisks
from siterig.roles.hosting import clear_stale, host_disks


async def run(
    layout: Layout,
    *,
    limits: Limits,
    fuse_options: FuseOptions,
    clock: Clock,
    health: Health,
    task_status: trio.TaskStatus[None],
) -> None:
    """Serve until cancelled."""
    await clear_stale(layout.site_mount)
    disks = ServedDisks(layout.site_disks, layout.site_mount)
    make_host = partial(
        DiskHost,
        disks.root,
        disks.mountpoint,
        policy=limits.log_policy,
        snapshot_share_max=limits.snapshot_share_max,
        report_opened=disks.opened,
        clock=clock,
    )
    await host_disks("site", layout, disks, make_host, task_status, fuse_options=fuse_options, clock=clock)


def main() -> None:
    """Run the role in this process."""
    run_role("site", partial(run, limits=Limits.of_words(sys.argv), fuse_options=FuseOptions.of_words(sys.argv)))


if __name__ == "__main__":
    main()
