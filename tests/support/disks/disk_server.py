"""A process that serves the disks of one folder, for tests of real mounts.

``python -m tests.support.disks.disk_server ROOT MOUNT BYTES FRONT_END [UID]`` creates the VM ``web01`` with tracked disks
``os`` and ``data`` of this size, if it does not exist, and prints ``ready``.  Then it answers each line of JSON on stdin
with one on stdout, until stdin ends or the mount is gone: ``["cut", {"vm": "web01", ...}]`` calls
:meth:`siterig.blockfs.contracts.control.DiskHostControl.cut`; also ``stall``, ``remember`` and the calls on
faults of this module.  With UID the process runs as this ordinary user.  Managed disks are in ``managed`` beside the mount.
"""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import structlog
import trio
from pydantic_core import to_json

from siterig.azure_emu.disks.view_provider import ManagedDiskViews
from siterig.blockfs.contracts import fault_effects
from siterig.blockfs.contracts.control import MountedPointSource
from siterig.blockfs.contracts.fault_effects import DiskFault
from siterig.blockfs.disk import disk_faults
from siterig.blockfs.fuse import filesystem
from siterig.blockfs.fuse.server import serve
from siterig.blockfs.host.disk_host import DiskHost
from siterig.cext.fuse_server import FuseServerOptions

DISK_BYTES = 64 << 20
_VM = "web01"
STALL_MAX_S = 60.0
"""The longest stall, in seconds; a test that waits for longer has failed."""
FRONT_ENDS = {
    "server": FuseServerOptions(over_io_uring=False),
    "io_uring": FuseServerOptions(over_io_uring=True),
    "pyfuse3": None,
}
"""The front ends, which answer the kernel's requests on disks."""


def stall() -> str:
    """Block Python until the next line arrives."""
    print(json.dumps("stalled"), flush=True)
    select.select([0], [], [], STALL_MAX_S)  # blocks the one thread that runs Python
    return "back"


def remember() -> str:
    """Let the kernel cache attributes of files for an hour, so that no test passes because they expire."""
    filesystem.ATTRIBUTE_TIMEOUT_S = 3600.0
    return "done"


async def arm(host: DiskHost, disks: list[str], effect: str, operations: list[Any], **values: Any) -> list[int]:
    """Arm a fault, whose effect is named by its class, on disks of ``web01`` at one position; return the ids."""
    fault = DiskFault(effect, getattr(fault_effects, effect)(**values), tuple(operations))
    rules, _ = await disk_faults.attach_all([host.disk(_VM, name).faults for name in disks], fault)
    return rules


async def disarm(host: DiskHost) -> None:
    """Remove all faults."""
    for disk in host.vms[_VM].values():
        await disk.faults.clear()


async def fired(host: DiskHost, disk: str, rule: int, times: int) -> int:
    """Wait until a rule has fired so often; return how often it has."""
    return (await host.disk(_VM, disk).faults.wait_fired(rule, times)).fired


async def keep_unsynced(host: DiskHost) -> None:
    """Keep the old bytes of unsynced writes of all disks."""
    for disk in host.vms[_VM].values():
        disk.faults.keep_unsynced()


async def lose_power(host: DiskHost) -> int:
    """Lose all unsynced writes of all disks; return their number."""
    lost, _ = await disk_faults.lose_power([disk.faults for disk in host.vms[_VM].values()])
    return sum(row.lost for row in lost)


WITH_HOST = {call.__name__: call for call in (arm, disarm, fired, keep_unsynced, lose_power)}


async def answer(host: DiskHost, method: str, arguments: dict[str, Any]) -> object:
    """Call a method of the disk host or of this module, and return its answer."""
    if method == "open_mounted_point":
        arguments["disks"] = [MountedPointSource(**source) for source in arguments["disks"]]
    if method in WITH_HOST:
        return await WITH_HOST[method](host, **arguments)
    ours = {"stall": stall, "remember": remember}
    return ours[method]() if method in ours else await getattr(host, method)(**arguments)


async def lines(stream: trio.lowlevel.FdStream) -> AsyncIterator[bytes]:
    """Yield the lines of a stream."""
    rest = b""
    async for piece in stream:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line


async def serve_folder(root: Path, mountpoint: Path, disk_bytes: int, front_end: str) -> None:
    """Serve until stdin ends or the mount is gone."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # stdout is for answers
    host = DiskHost(root, mountpoint, views=ManagedDiskViews(mountpoint.parent / "managed"))
    if "web01" not in host.vms:
        for name in ("os", "data"):
            await host.create_disk(vm="web01", name=name, size_bytes=disk_bytes)
        await host.start_tracking(vm="web01")
    async with trio.open_nursery() as nursery:

        async def until_unmounted(*, task_status: trio.TaskStatus[None]) -> None:
            await serve(host, mountpoint, fuse_server=FRONT_ENDS[front_end], task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(until_unmounted)
        print("ready", flush=True)
        async for line in lines(trio.lowlevel.FdStream(0)):
            if line:
                print(to_json(await answer(host, *json.loads(line))).decode(), flush=True)
        nursery.cancel_scope.cancel()
    host.close()


def main() -> None:
    """Serve the folder that the command line names."""
    if len(sys.argv) > 5:
        uid = int(sys.argv[5])
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    trio.run(serve_folder, Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])


if __name__ == "__main__":
    main()
