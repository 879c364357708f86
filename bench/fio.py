"""The measurements: one fio job for each column, and the figure that is read from its output."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AREA_BYTES = 1 << 30
"""The number of bytes from the start of the disk that are written and read."""


@dataclass(frozen=True, slots=True)
class Column:
    """One job; with ``cold`` it reads once, from no cache of the mount or the host."""

    title: str
    arguments: tuple[str, ...]
    unit: str = "IOPS"
    cold: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """Operations a second, or MB (10^6 bytes) a second; latency of an operation, at the median and the 99th percentile."""

    value: float
    p50_us: float
    p99_us: float


_SMALL = ("--bs=4k", "--direct=1", "--norandommap")
_LARGE = ("--bs=1M",)
COLUMNS: dict[str, Column] = {
    "randwrite": Column("4K randwrite q1", ("--rw=randwrite", *_SMALL)),
    "randwrite4": Column("4K randwrite 4 jobs", ("--rw=randwrite", "--numjobs=4", *_SMALL)),
    "randread": Column("4K randread q1", ("--rw=randread", *_SMALL)),
    "randread4": Column("4K randread 4 jobs", ("--rw=randread", "--numjobs=4", *_SMALL)),
    "fsync": Column("4K write + fsync", ("--rw=randwrite", "--fsync=1", *_SMALL)),
    "seqwrite": Column("1M write direct", ("--rw=write", "--direct=1", *_LARGE), "MB/s"),
    "buffered": Column("1M write buffered", ("--rw=write", "--direct=0", *_LARGE), "MB/s"),
    "coldread": Column("1M read cold", ("--rw=read", "--direct=0", *_LARGE), "MB/s", cold=True),
}
"""In the order in which they are run: reading cold changes what the host has cached, so it comes last."""


def run(column: Column, disk: Path, *, seconds: float, launcher: list[str]) -> Figure:
    """Run one job on ``disk``; ``launcher`` is put before the command (to pin it)."""
    length = [] if column.cold else ["--time_based", f"--runtime={seconds * 1000:.0f}ms"]
    command = ["fio", "--name=job", f"--filename={disk}", f"--size={AREA_BYTES}", "--ioengine=psync", "--group_reporting"]
    command += ["--allow_file_create=0", "--output-format=json", *length, *column.arguments]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"fio on {disk} ({column.title}): exit status {done.returncode}: {done.stderr or done.stdout}")
    return read_figure(column, json.loads(done.stdout[done.stdout.index("{") :]))


def read_figure(column: Column, report: dict[str, Any]) -> Figure:
    """Return the figure of a job in fio's JSON."""
    part = report["jobs"][0]["read" if "read" in column.arguments[0] else "write"]
    value, latency = part["iops" if column.unit == "IOPS" else "bw_bytes"], part["clat_ns"]
    if value == 0:
        raise SystemExit(f"fio did nothing ({column.title}): {report}")
    percentiles = latency["percentile"]
    return Figure(
        value=value if column.unit == "IOPS" else value / 1e6,
        p50_us=percentiles["50.000000"] / 1000,
        p99_us=percentiles["99.000000"] / 1000,
    )
