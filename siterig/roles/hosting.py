"""The common part of the two disk hosts, site and azure."""

from __future__ import annotations

from pathlib import Path

import structlog
import trio

from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.fuse.server import serve
from siterig.blockfs.host.disk_host import DiskHost
from siterig.core.fault_contract import FaultInjector
from siterig.core.fuse_options import FuseOptions
from siterig.roles.fault_injection import RoleInjector
from siterig.rpc import server
from siterig.supervisor import cleanup


async def host_disks(
    host: DiskHost,
    mount: Path,
    socket: Path,
    task_status: trio.TaskStatus[None],
    *,
    fuse_options: FuseOptions,
    injector: RoleInjector,
) -> None:
    """Serve the host's disks as files below ``mount`` and its control on ``socket``, until cancelled or unmounted."""
    try:
        async with trio.open_nursery() as nursery:

            async def serve_files(*, task_status: trio.TaskStatus[None]) -> None:
                await serve(host, mount, fuse_server=fuse_options.fuse_server, task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(serve_files)
            nursery.start_soon(injector.run)
            faces = {"DiskHostControl": (DiskHostControl, host), "FaultInjector": (FaultInjector, injector)}
            await nursery.start(server.serve, faces, socket)
            task_status.started()
    finally:
        host.close()


async def clear_stale(mount: Path) -> None:
    """Release the mounts of a killed predecessor; guests on a dead mount lose their disks."""
    log = structlog.get_logger()
    for line in [*await cleanup.release_guests(mount), *await cleanup.unmount_stale(mount)]:
        log.info("leftover_removed", action=line)
