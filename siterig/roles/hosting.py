"""The common part of the two disk hosts, site and azure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
import trio

from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.fuse.server import serve
from siterig.blockfs.host.disk_host import DiskHost
from siterig.core.fault_contract import FaultInjector
from siterig.core.fuse_options import FuseOptions
from siterig.core.paths import Layout
from siterig.roles.fault_injection import RoleInjector, ServedDisks, of_disk_host
from siterig.rpc import server
from siterig.supervisor import cleanup


async def host_disks(
    role: str,
    layout: Layout,
    disks: ServedDisks,
    make_host: Callable[[], DiskHost],
    task_status: trio.TaskStatus[None],
    *,
    fuse_options: FuseOptions,
    clock: Clock,
) -> None:
    """Open disks, and serve them as files and their control on the socket of the role, until cancelled or unmounted.

    Args:
        role: the name of the role.
        layout: the rig.
        disks: gets the host.
        make_host: opens the disks, after the fault rules of the role were armed.
        task_status: gets the start, when the disks are served.
        fuse_options: the options of the FUSE server.
        clock: the clock of the role.
    """
    injector = RoleInjector(partial(of_disk_host, disks, layout, role, clock))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(injector.run)
            await injector.begin(layout, role, clock)
            host = disks.host = make_host()
            await injector.files_opened()

            async def serve_files(*, task_status: trio.TaskStatus[None]) -> None:
                await serve(host, disks.mountpoint, fuse_server=fuse_options.fuse_server, task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(serve_files)
            faces = {"DiskHostControl": (DiskHostControl, host), "FaultInjector": (FaultInjector, injector)}
            await nursery.start(server.serve, faces, layout.socket(role))
            task_status.started()
    finally:
        if disks.host is not None:
            disks.host.close()


async def clear_stale(mount: Path) -> None:
    """Release the mounts of a killed predecessor; guests on a dead mount lose their disks."""
    log = structlog.get_logger()
    for line in [*await cleanup.release_guests(mount), *await cleanup.unmount_stale(mount)]:
        log.info("leftover_removed", action=line)
