"""A benchmark of the time that a tag, and a switch of segments, block the writers of a disk.

``python -m bench.tags [--disks 3] [--seconds 5] [--every 0.02] [--json FILE]``; needs root, /dev/fuse and fio.

fio writes 4 KiB at random places of each disk, directly, one write at a time a disk; first undisturbed, then while all
disks are cut every so often (a position, a TAG in each disk's log and a new segment) and synced once a second.

- *tag*: the engine's call that appends the TAG and begins the segment, with its wait for the disk's lock;
- *longest hold*: the engine's own counters, while the disk's lock is held.  On a busy machine the holder may lose its
  core meanwhile, and then this shows it;
- *write latency*: as fio sees it; during the syncs it shares the host's disk with the synced data.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio
from rich.console import Console
from rich.table import Table

from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.changelog.tags import TagSeen, encode_tag
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.fuse.server import serve
from siterig.blockfs.host.disk_host import DiskHost
from siterig.cext._core import ffi, lib

DISK_BYTES = 16 << 30
AREA_BYTES = 256 << 20
"""The bytes of each disk that are used; they are written once before the measurement."""
TAG_STALL_MAX_US = 100.0
SWITCH_STALL_MAX_US = 1000.0


@dataclass(frozen=True, slots=True)
class Writers:
    """The result of fio: writes per second over all disks, and the latency of a write."""

    iops: float
    p50_us: float
    p99_us: float
    p999_us: float
    max_us: float


@dataclass(frozen=True, slots=True)
class TagResults:
    """The result of a whole run."""

    calm: Writers
    cut: Writers
    cuts: int
    tags_us: list[float]
    longest_tag_us: float
    segments_switched: int
    longest_switch_us: float


async def _write(disks: list[Path], seconds: float) -> Writers:
    common = ["--ioengine=psync", "--rw=randwrite", "--bs=4k", "--direct=1", "--norandommap", f"--size={AREA_BYTES}"]
    common += ["--group_reporting", "--time_based", f"--runtime={seconds * 1000:.0f}ms", "--percentile_list=50:99:99.9"]
    jobs = [argument for disk in disks for argument in (f"--name={disk.stem}", f"--filename={disk}")]
    command = ["fio", "--output-format=json", "--allow_file_create=0", *common, *jobs]
    done = await trio.run_process(command, capture_stdout=True)
    write: dict[str, Any] = json.loads(done.stdout)["jobs"][0]["write"]
    latency = write["clat_ns"]
    found = latency["percentile"]
    return Writers(
        iops=write["iops"],
        p50_us=found["50.000000"] / 1000,
        p99_us=found["99.000000"] / 1000,
        p999_us=found["99.900000"] / 1000,
        max_us=latency["max"] / 1000,
    )


async def _fill(disk: Path) -> None:
    command = ["fio", "--name=fill", f"--filename={disk}", "--rw=write", "--bs=1M", "--direct=1", f"--size={AREA_BYTES}"]
    await trio.run_process([*command, "--end_fsync=1", "--allow_file_create=0"], capture_stdout=True)


def _counters(disk: Disk) -> Any:
    counters = ffi.new("struct sr_counters *")
    lib.sr_disk_counters(disk.c, counters)
    return counters


async def _cut_all(host: DiskHost, disks: list[Disk], name: str, tags_us: list[float]) -> None:
    """Cut all disks like :meth:`DiskHost.cut`, without the sync, and measure the part of the engine."""
    for disk in disks:
        await trio.to_thread.run_sync(disk.tracking.log.provide_spare)
    tag = TagSeen(tag_id=name, kind="CrashConsistent", name=name, position=host.positions.draw(), time_ns=time.time_ns())
    payload, position = encode_tag(tag), ffi.new("uint64_t *")
    for disk in disks:
        began = time.perf_counter_ns()
        rc = lib.sr_log_append(disk.c, RecordType.TAG, 0, payload, len(payload), 1, position)
        took_us = (time.perf_counter_ns() - began) / 1000
        if rc == 0:
            tags_us.append(took_us)
        elif rc != -errno.EAGAIN:  # the writers have used the spare up meanwhile
            raise OSError(-rc, os.strerror(-rc))


async def _sync_and_apply(host: DiskHost, disks: list[Disk]) -> None:
    """Once a second; what is closed counts as applied."""
    while True:
        await trio.sleep(1)
        for disk in disks:
            await disk.flush()
        for segment in await host.segments(vm="bench"):
            await host.trim_log(disk_id=segment.disk_id, generation=segment.generation, last_seq=segment.last_seq)


async def measure(folder: Path, *, disks: int, seconds: float, every_s: float) -> TagResults:
    """Serve the disks, write to them, cut them."""
    host = DiskHost(folder / "root", folder / "mnt")
    names = [f"d{number}" for number in range(disks)]
    for name in names:
        await host.create_disk(vm="bench", name=name, size_bytes=DISK_BYTES)
    await host.start_tracking(vm="bench")
    served, paths = host.registry.disks("bench"), [folder / "mnt" / "bench" / f"{name}.img" for name in names]
    tags_us: list[float] = []
    cuts = 0
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, host, folder / "mnt")
        for path in paths:
            await _fill(path)
        calm = await _write(paths, seconds)
        await _cut_all(host, served, "first", [])
        async with trio.open_nursery() as cutting:

            async def cut_again_and_again() -> None:
                nonlocal cuts
                while True:
                    await _cut_all(host, served, f"cut-{cuts}", tags_us)
                    cuts += 1
                    await trio.sleep(every_s)

            cutting.start_soon(cut_again_and_again)
            cutting.start_soon(_sync_and_apply, host, served)
            cut = await _write(paths, seconds)
            cutting.cancel_scope.cancel()
        counters = [_counters(disk) for disk in served]
        nursery.cancel_scope.cancel()
    host.close()
    return TagResults(
        calm=calm,
        cut=cut,
        cuts=cuts,
        tags_us=sorted(tags_us),
        longest_tag_us=max(c.longest_append_ns for c in counters) / 1000,
        segments_switched=sum(c.segments_switched for c in counters),
        longest_switch_us=max(c.longest_switch_ns for c in counters) / 1000,
    )


def _print(console: Console, results: TagResults) -> None:
    table = Table("4K randwrite", "IOPS", "p50 µs", "p99 µs", "p99.9 µs", "max µs")
    for title, writers in (("undisturbed", results.calm), (f"{results.cuts} cuts meanwhile", results.cut)):
        table.add_row(title, *(f"{value:,.0f}" for value in asdict(writers).values()))
    console.print(table)
    tags = results.tags_us
    p50, p99 = statistics.median(tags), tags[int(len(tags) * 0.99)]
    table = Table("stall of a disk", "µs", "allowed", "")
    for title, value, allowed in (
        (f"tag, median of {len(tags)}", p50, TAG_STALL_MAX_US),
        ("tag, 99th percentile", p99, TAG_STALL_MAX_US),
        ("tag, longest hold of the lock", results.longest_tag_us, TAG_STALL_MAX_US),
        (f"segment, longest hold of {results.segments_switched} switches", results.longest_switch_us, SWITCH_STALL_MAX_US),
    ):
        table.add_row(
            title, f"{value:,.1f}", f"{allowed:,.0f}", "holds" if value < allowed else "[bold]does not hold[/bold]"
        )
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--disks", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each of the two runs")
    parser.add_argument("--every", type=float, default=0.02, help="seconds between two cuts")
    parser.add_argument("--folder", type=Path, help="where the disks and their logs are; default: the temporary folder")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder) as folder:

        async def run() -> TagResults:
            return await measure(Path(folder), disks=options.disks, seconds=options.seconds, every_s=options.every)

        found = trio.run(run)
    _print(console, found)
    if options.json:
        options.json.write_text(json.dumps(asdict(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
