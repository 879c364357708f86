"""A process that serves the disks of one folder: what the tests of real mounts talk to.

``python -m tests.system.disk_server ROOT MOUNT BYTES``: makes VM ``web01`` with tracked disks ``os`` and ``data`` of so
many bytes if it is not there, prints ``ready``, then answers a line of JSON on stdin with one on stdout:
``["cut", {"vm": "web01", ...}]`` is :meth:`blockfs.control.DiskHostControl.cut`, and so on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
import trio
from pydantic_core import to_json

from blockfs.host import DiskHost
from blockfs.serving import serve

DISK_BYTES = 512 << 20


async def lines(stream: trio.lowlevel.FdStream) -> AsyncIterator[bytes]:
    """What a stream says, line by line."""
    rest = b""
    async for piece in stream:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line


async def main(root: Path, mountpoint: Path, disk_bytes: int) -> None:
    """Serve until stdin ends."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for answers
    host = DiskHost(root, mountpoint)
    if "web01" not in host.vms:
        for name in ("os", "data"):
            await host.create_disk(vm="web01", name=name, size_bytes=disk_bytes)
        await host.start_tracking(vm="web01")
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, host, mountpoint)
        print("ready", flush=True)
        async for line in lines(trio.lowlevel.FdStream(0)):
            method, arguments = json.loads(line)
            print(to_json(await getattr(host, method)(**arguments)).decode(), flush=True)
        nursery.cancel_scope.cancel()
    host.close()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
