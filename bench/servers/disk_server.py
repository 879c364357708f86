"""Serves the disks of a disk host for a benchmark.

``python bench/servers/disk_server.py ROOT MOUNT (tracked|untracked|armed) (server|uring|pyfuse3)``; an ``armed``
disk is tracked, and has a fault rule that no operation of the benchmark matches.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from siterig.blockfs.fuse.server import serve
from siterig.blockfs.host.disk_host import DiskHost
from siterig.cext.fuse_server import FuseServerOptions

APPLIED_EVERY_S = 5.0
"""The rig's own replication interval: so often all disks are cut, and what is logged so far counts as applied."""


PATHS = {"server": FuseServerOptions(over_io_uring=False), "uring": FuseServerOptions(over_io_uring=True), "pyfuse3": None}
"""How requests are answered; ``uring`` is ``server`` where the host does not have FUSE over io_uring on."""


async def _arm(host: DiskHost) -> None:
    from siterig.blockfs.contracts.fault_effects import DiskFault, FailEffect  # noqa: PLC0415 (an engine before has none)

    for disk in host.registry.disks("bench"):
        last = disk.size_bytes - 4096
        await disk.faults.attach(DiskFault("elsewhere", FailEffect(), operations=("read", "write"), start=last))


async def main(root: Path, mountpoint: Path, *, tracked: bool, armed: bool, fuse_server: FuseServerOptions | None) -> None:
    """Serve until unmounted, like a rig whose recovery side keeps up; raise an error if a log was abandoned."""
    host = DiskHost(root, mountpoint)
    if tracked:
        await host.start_tracking(vm="bench")
    if armed:
        await _arm(host)
    async with trio.open_nursery() as nursery:

        async def until_unmounted(task_status: trio.TaskStatus[None]) -> None:
            await serve(host, mountpoint, fuse_server=fuse_server, task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(until_unmounted)
        while tracked:
            await trio.sleep(APPLIED_EVERY_S)
            await host.cut(vm="bench", kind="CrashConsistent", name="bench")
            for segment in await host.segments(vm="bench"):
                await host.trim_log(disk_id=segment.disk_id, generation=segment.generation, last_seq=segment.last_seq)
        await trio.sleep_forever()
    abandoned = [f"{disk.vm}/{disk.name}: {disk.needs_resync}" for disk in await host.list_disks() if disk.needs_resync]
    if tracked:
        await host.stop_tracking(vm="bench")
    host.close()
    if abandoned:
        raise SystemExit(f"a log was abandoned, so the figures are not of a tracked disk: {abandoned}")


if __name__ == "__main__":
    _root, _mount, _log, _path = sys.argv[1:]
    trio.run(
        lambda: main(Path(_root), Path(_mount), tracked=_log != "untracked", armed=_log == "armed", fuse_server=PATHS[_path])
    )
