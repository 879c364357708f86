"""One subject of :mod:`bench.engine`, by the engine of the environment that runs this file.

``python bench/engine_process.py FOLDER SUBJECT REQUESTS`` prints the microseconds of processor time of a request as JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import trio

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.cext._core import ffi, lib

DISK_BYTES = 256 << 20
BLOCK_BYTES = 4096


def measure(folder: Path, subject: str, requests: int) -> dict[str, float]:
    """Return the microseconds of processor time of a request, by kind."""
    paths = DiskPaths(folder, "bench", "os")
    make_raw(paths, DISK_BYTES)
    positions = PositionCounter(folder / "position")
    disk = Disk.open(paths, DiskOptions(positions, policy=LogPolicy(kept_share_max=None)), None)
    handle = lib.sr_handle_open(disk.c, lib.SR_HANDLE_DISK, 1, b"", -1, 0)
    buffer = ffi.from_buffer(bytearray(b"siterig!" * (BLOCK_BYTES // 8)))
    for offset in range(0, DISK_BYTES, BLOCK_BYTES):
        lib.sr_handle_write(handle, buffer, BLOCK_BYTES, offset)
    if subject in ("armed", "matched"):
        _arm(disk, matches=subject == "matched")
    rng = random.Random(2)  # noqa: S311 (it chooses places)
    offsets = [rng.randrange(DISK_BYTES // BLOCK_BYTES) * BLOCK_BYTES for _ in range(requests)]
    found = {}
    for kind, request in (("randwrite", lib.sr_handle_write), ("randread", lib.sr_handle_read)):
        began = time.process_time_ns()
        for offset in offsets:
            request(handle, buffer, BLOCK_BYTES, offset)
        found[kind] = (time.process_time_ns() - began) / requests / 1000
    lib.sr_handle_close(handle)
    disk.abandon()
    positions.close()
    return found


def _arm(disk: Disk, *, matches: bool) -> None:
    """Arm a rule that never fires, in the range of the requests or after it."""
    # An engine before has none of this.
    from siterig.blockfs.contracts.fault_effects import DiskFault, FailEffect  # noqa: PLC0415
    from siterig.blockfs.core.fault_decisions import Turns  # noqa: PLC0415

    start = 0 if matches else DISK_BYTES
    trio.run(disk.faults.attach, DiskFault("rule", FailEffect(), start=start, turns=Turns(1, threshold=0)))


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
