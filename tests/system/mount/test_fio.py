"""Tests with fio, which writes at random, in mixed and overlapping sizes, through the page cache and past it.

In the first test fio reads back its newest writes (``verify=crc32c``, each job in its own area).  The second test
shows that overlapping writes *in flight* reach the disk in the order in which they reach the log: at its end every
place still shows which of its overlapping writes was the last, and the replay of the log must agree.

``SITERIG_FIO_BYTES`` (default 256 MiB) is the total size of all writes.  They are made in slices; each slice is
replayed, compared and forgotten before the next.  ``SITERIG_SPOTS`` (default 4000) is the number of places where
writes overlap; ``SITERIG_SEED`` repeats a run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.disks.disk_server_process import StartServer
from tests.support.disks.shadowed_disk import ShadowedDisk
from tests.support.needs import needs_program

pytestmark = [pytest.mark.system, needs_program("fio")]

TOTAL_BYTES = int(os.environ.get("SITERIG_FIO_BYTES", str(256 << 20)))
SPOTS = int(os.environ.get("SITERIG_SPOTS", "4000"))
SLICE_BYTES_MAX = 2 << 30
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
DISK_BYTES = 64 << 30
"""A sparse size, so large that the log of a slice stays below half of it."""
SPOT_BYTES = 16 << 10
WRITES_A_SPOT = 5
KINDS_OF_JOB = {
    "direct": "direct=1\nioengine=libaio\niodepth=8\nserialize_overlap=1",
    "contested": "direct=1\nioengine=libaio\niodepth=8",
    "buffered": "direct=0\nioengine=psync\nfsync=64",
}


def job_file(disk: Path, *, seed: int, area_bytes: int, verify: bool) -> str:
    """Return four jobs for fio, two of them direct; each writes as many bytes as its area has.

    Without ``verify`` all jobs share one area, and their writes overlap at random.
    """
    common = f"""
        [global]
        filename={disk}
        rw=randwrite
        bssplit=512/25:4k/30:12k/10:64k/15:200k/5:256k/5:1m/10
        blockalign=512
        size={area_bytes}
        norandommap
        numjobs=2
        allow_file_create=0
        group_reporting
        randseed={seed}
    """
    if verify:
        common += f"verify=crc32c\nverify_fatal=1\noffset_increment={area_bytes}\n"
    offsets = {"direct" if verify else "contested": 0, "buffered": 2 * area_bytes if verify else 0}
    sections = [f"[{kind}]\noffset={offset}\n{KINDS_OF_JOB[kind]}" for kind, offset in offsets.items()]
    return "\n".join(line.strip() for line in [*common.splitlines(), *"\n".join(sections).splitlines()])


def run_fio(folder: Path, jobs: list[str]) -> list[tuple[int, int]]:
    """Run all jobs concurrently, and return the bytes that each wrote and verified."""
    running = []
    for number, text in enumerate(jobs):
        file = folder / f"{number}.fio"
        file.write_text(text)
        report = file.with_suffix(".json")
        running.append((report, subprocess.Popen(["fio", "--output-format=json", f"--output={report}", file], cwd=folder)))
    assert [process.wait(timeout=3600) for _, process in running] == [0] * len(jobs)
    found = []
    for report, _ in running:
        _warnings, brace, rest = report.read_text().partition("{")
        groups = json.loads(brace + rest)["jobs"]
        assert [group["error"] for group in groups] == [0] * len(groups)
        found.append((sum(g["write"]["io_bytes"] for g in groups), sum(g["read"]["io_bytes"] for g in groups)))
    return found


def test_fio_reads_back_its_writes_and_the_log_replays_to_the_disk(start_server: StartServer, tmp_path: Path) -> None:
    print(f"SITERIG_FIO_BYTES={TOTAL_BYTES} SITERIG_SEED={SEED}")
    server = start_server(DISK_BYTES)
    checked, contested = (ShadowedDisk(server, name) for name in ("os", "data"))
    written, seed = 0, SEED
    while written < TOTAL_BYTES:
        area_bytes = max(min(TOTAL_BYTES - written, SLICE_BYTES_MAX) // 8, 16 << 20)
        jobs = [
            job_file(server.os_disk, seed=seed, area_bytes=area_bytes, verify=True),
            job_file(server.data_disk, seed=seed, area_bytes=area_bytes, verify=False),
        ]
        (verified_slice, read_back), (contested_slice, _) = run_fio(tmp_path, jobs)
        assert read_back > verified_slice // 10, "fio did not read back its writes"
        for disk in (checked, contested):
            disk.check()
            disk.forget()
        written, seed = written + verified_slice + contested_slice, seed + 1
        print(f"{written / (1 << 30):.2f} GiB written, replayed and compared", flush=True)
    assert checked.model.written_bytes + contested.model.written_bytes == written


def meetings(disk: Path, rng: random.Random) -> str:
    """Return an I/O log for fio to replay: a few overlapping writes at each place, next to one another in the queue."""
    lines = ["fio version 2 iolog", f"{disk} add", f"{disk} open"]
    for spot in range(SPOTS):
        begin = spot * SPOT_BYTES
        for _ in range(WRITES_A_SPOT):
            offset, length = 512 * rng.randrange(4), 512 * rng.randrange(8, 28)
            lines.append(f"{disk} write {begin + offset} {length}")
    return "\n".join([*lines, f"{disk} close", ""])


def test_overlapping_writes_have_the_same_order_in_the_log_and_on_disk(start_server: StartServer, tmp_path: Path) -> None:
    print(f"SITERIG_SPOTS={SPOTS} SITERIG_SEED={SEED}")
    server = start_server(DISK_BYTES)
    disk = ShadowedDisk(server, "os")
    log = tmp_path / "iolog"
    log.write_text(meetings(server.os_disk, random.Random(SEED)))
    job = f"[in flight]\nread_iolog={log}\nioengine=libaio\niodepth=32\ndirect=1\nrefill_buffers\nrandseed={SEED}\n"
    run_fio(tmp_path, [job])
    disk.check()
    assert disk.model.counts["WRITE"] == SPOTS * WRITES_A_SPOT
