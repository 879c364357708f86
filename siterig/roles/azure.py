"""The disk host of the recovery side: the disks of recovered VMs, each an overlay over a recovery point."""

from __future__ import annotations

import sys
from functools import partial

import trio

from siterig.azure_emu.applier.changed_vm_disks import ChangedVmDisks
from siterig.azure_emu.applier.disk_keys import DiskKeys
from siterig.azure_emu.disks.view_provider import ManagedDiskViews
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.host.disk_host import DiskHost
from siterig.core.fuse_options import FuseOptions
from siterig.core.limits import Limits
from siterig.core.paths import Layout
from siterig.roles.entry import Health, run_role
from siterig.roles.fault_injection import ServedDisks
from siterig.roles.hosting import clear_stale, host_disks
from siterig.rpc import directory


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
    await clear_stale(layout.azure_mount)
    keys = DiskKeys(layout.managed_disks, layout.azure_vms, directory.data_keys(layout, "azure"), health.waits, clock)
    await keys.load_all()
    views, changed = ManagedDiskViews(layout.managed_disks, clock, keys), ChangedVmDisks(clock)
    disks = ServedDisks(layout.azure_vms, layout.azure_mount)

    def make_host() -> DiskHost:
        return DiskHost(
            disks.root,
            disks.mountpoint,
            views=views,
            policy=limits.log_policy,
            snapshot_share_max=limits.snapshot_share_max,
            waits=health.waits,
            clock=clock,
            report_changed=changed.note,
            report_opened=disks.opened,
        )

    async with trio.open_nursery() as nursery:
        nursery.start_soon(views.watch, directory.damage_reports(layout, "azure"))
        nursery.start_soon(changed.report, directory.damage_reports(layout, "azure"))
        await host_disks("azure", layout, disks, make_host, task_status, fuse_options=fuse_options, clock=clock)
        nursery.cancel_scope.cancel()


def main() -> None:
    """Run the role in this process."""
    work = partial(run, limits=Limits.of_words(sys.argv), fuse_options=FuseOptions.of_words(sys.argv))
    run_role("azure", work, holds_keys=True)


if __name__ == "__main__":
    main()
