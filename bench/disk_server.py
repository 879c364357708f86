"""Serves one disk of VM ``bench``, tracked or not.  ``python -m bench.disk_server ROOT MOUNT BYTES (tracked|untracked)``."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from blockfs.host import DiskHost
from blockfs.serving import serve


async def main(root: Path, mountpoint: Path, size_bytes: int, *, tracked: bool) -> None:
    """Serve until unmounted; what is logged counts as applied now and then, as in a rig that keeps up."""
    host = DiskHost(root, mountpoint)
    info = await host.create_disk(vm="bench", name="os", size_bytes=size_bytes)
    if tracked:
        await host.start_tracking(vm="bench")
    async with trio.open_nursery() as nursery:

        async def until_unmounted(task_status: trio.TaskStatus[None]) -> None:
            await serve(host, mountpoint, task_status=task_status)
            nursery.cancel_scope.cancel()

        await nursery.start(until_unmounted)
        while tracked:
            await trio.sleep(1)
            cut = await host.cut(vm="bench", kind="CrashConsistent", name="bench")
            for segment in await host.segments(vm="bench"):
                if segment.complete_position <= cut.position:
                    await host.applied(disk_id=info.disk_id, generation=1, last_seq=segment.last_seq)
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(lambda: main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), tracked=sys.argv[4] == "tracked"))
