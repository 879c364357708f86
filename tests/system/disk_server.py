"""A process that serves the disks of one folder: what the mount and kill tests talk to.

``python -m tests.system.disk_server ROOT MOUNT``: makes VM ``web01`` with tracked disks ``os`` and ``data`` of
512 MiB if it is not there, prints ``ready``, then answers lines on stdin: ``cut`` prints a position.
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from blockfs.host import DiskHost
from blockfs.serving import serve

DISK_BYTES = 512 << 20


async def main(root: Path, mountpoint: Path) -> None:
    """Serve until stdin ends."""
    host = DiskHost(root, mountpoint)
    if "web01" not in host.vms:
        for name in ("os", "data"):
            await host.create_disk(vm="web01", name=name, size_bytes=DISK_BYTES)
        await host.start_tracking(vm="web01")
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, host, mountpoint)
        print("ready", flush=True)
        async for _ in trio.lowlevel.FdStream(0):
            cut = await host.cut(vm="web01", kind="CrashConsistent", name="test")
            print(cut.position, flush=True)
        nursery.cancel_scope.cancel()
    host.close()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), Path(sys.argv[2]))
