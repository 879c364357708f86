"""A disk host of a recovery side, for a benchmark.

``python -m bench.servers.point_server ROOT MOUNT STORES``: prints ``"ready"``, then answers a line of JSON with one, until
stdin ends:
``["mount", NAME, DISK_ID, POSITION]`` with the path of the disk's file, ``["unmount", NAME]``,
``["plain", BYTES]`` with that of a raw disk, which is not tracked.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
import trio

from siterig.azure_emu.disks.view_provider import ManagedDiskViews
from siterig.blockfs.contracts.control import MountedPointSource
from siterig.blockfs.fuse.server import serve
from siterig.blockfs.host.disk_host import DiskHost

VM = "bench"


def answers(host: DiskHost) -> dict[str, Callable[..., Awaitable[object]]]:
    """Return the requests that the server answers."""

    async def mount(name: str, disk_id: str, position: int) -> str:
        source = MountedPointSource(name="os", disk_id=disk_id)
        info = await host.open_mounted_point(vm=VM, name=name, position=position, disks=[source])
        return info.disks[0].path

    async def unmount(name: str) -> None:
        await host.close_mounted_point(vm=VM, name=name)

    async def plain(size_bytes: int) -> str:
        return (await host.create_disk(vm="plain", name="os", size_bytes=size_bytes)).path

    return {"mount": mount, "unmount": unmount, "plain": plain}


async def main(root: Path, mountpoint: Path, stores: Path) -> None:
    """Serve until stdin ends."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for answers
    host = DiskHost(root, mountpoint, views=ManagedDiskViews(stores))
    known = answers(host)
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, host, mountpoint)
        line: Any = "ready"
        print(json.dumps(line), flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            word, *arguments = json.loads(line)
            print(json.dumps(await known[word](*arguments)), flush=True)
        nursery.cancel_scope.cancel()
    host.close()


if __name__ == "__main__":
    _root, _mount, _stores = (Path(argument) for argument in sys.argv[1:])
    trio.run(main, _root, _mount, _stores)
