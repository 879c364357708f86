"""What the two disk hosts, site and azure, have in common."""

from __future__ import annotations

from pathlib import Path

import structlog
import trio

from blockfs import serving
from blockfs.control import DiskHostControl
from blockfs.host import DiskHost
from siterig import cleanup, rpc_server
from siterig.front_end import FrontEnd


async def host_disks(
    host: DiskHost, mount: Path, socket: Path, task_status: trio.TaskStatus[None], *, front_end: FrontEnd
) -> None:
    """Serve the host's disks as files below ``mount`` and its control on ``socket``, until cancelled or unmounted."""
    try:
        async with trio.open_nursery() as nursery:

            async def serve_files(*, task_status: trio.TaskStatus[None]) -> None:
                await serving.serve(host, mount, pump=front_end.pump, task_status=task_status)
                nursery.cancel_scope.cancel()

            await nursery.start(serve_files)
            await nursery.start(rpc_server.serve, {"DiskHostControl": (DiskHostControl, host)}, socket)
            task_status.started()
    finally:
        host.close()


async def clear_stale(mount: Path) -> None:
    """Take away what a killed predecessor left: guests on a dead mount can only be cut off."""
    log = structlog.get_logger()
    for line in [*await cleanup.release_guests(mount), *await cleanup.unmount_stale(mount)]:
        log.info("found from an earlier run", did=line)
