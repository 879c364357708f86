"""Writes and reads through the mount, beside the bare file and a naive pyfuse3 passthrough, in turn in one run.

``python -m bench.disks [--seconds 3] [--rounds 3]``; needs root and /dev/fuse.  Wake-ups are the machine's default
(nothing pinned): compare only the ratios of one run (MEASURED: an idle core's wake-up costs more than the work).
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

DISK_BYTES = 16 << 30
"""Sparse; so large only that its log, which counts as unsent for a second, stays below half of it."""
AREA_BYTES = 1 << 30
"""What is written and read, from the disk's start."""
PAGE_BYTES = 4096
SEQUENTIAL_BYTES = 1 << 20
PEER = "naive pyfuse3"


@contextlib.contextmanager
def bare_file(folder: Path) -> Iterator[Path]:
    """The host's file system, nothing between."""
    path = folder / "bare.img"
    path.touch()
    os.truncate(path, DISK_BYTES)
    yield path


@contextlib.contextmanager
def mounted(folder: Path, command: list[str], name: str) -> Iterator[Path]:
    """A server process, and the file in its mount."""
    mountpoint = folder / "mnt"
    mountpoint.mkdir(exist_ok=True)
    server = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.PIPE)
    disk = mountpoint / name
    try:
        while not disk.exists():
            if server.poll() is not None:
                raise SystemExit(f"{command[0]} ended with exit status {server.returncode}")
            time.sleep(0.05)
        yield disk
    finally:
        subprocess.run(["umount", str(mountpoint)], check=False)
        server.terminate()
        server.communicate(timeout=30)


@contextlib.contextmanager
def naive(folder: Path) -> Iterator[Path]:
    """The peer."""
    with (
        bare_file(folder) as path,
        mounted(folder, ["bench.naive_passthrough", str(path), str(folder / "mnt")], "os.img") as disk,
    ):
        yield disk


def ours(kind: str) -> Callable[[Path], contextlib.AbstractContextManager[Path]]:
    """A disk of a disk host."""

    def start(folder: Path) -> contextlib.AbstractContextManager[Path]:
        command = ["bench.disk_server", str(folder / "root"), str(folder / "mnt"), str(DISK_BYTES), kind]
        return mounted(folder, command, "bench/os.img")

    return start


SUBJECTS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Path]]] = {
    "bare file": bare_file,
    PEER: naive,
    "untracked": ours("untracked"),
    "tracked": ours("tracked"),
}


def rate(fd: int, buffer: mmap.mmap, seconds: float, *, write: bool, sync: bool, sequential: bool) -> float:
    """Operations a second, one at a time."""
    rng, size, done = random.Random(1), len(buffer), 0  # noqa: S311 (a repeatable pattern)
    end = time.perf_counter() + seconds
    began = time.perf_counter()
    while time.perf_counter() < end:
        at = (done * size) % AREA_BYTES if sequential else rng.randrange(AREA_BYTES // size) * size
        if write:
            os.pwrite(fd, buffer, at)
        else:
            os.preadv(fd, [buffer], at)
        if sync:
            os.fdatasync(fd)
        done += 1
    return done / (time.perf_counter() - began)


def measure(disk: Path, seconds: float) -> dict[str, float]:
    """All columns for one subject; O_DIRECT, so that each operation is a request."""
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    small, large = mmap.mmap(-1, PAGE_BYTES), mmap.mmap(-1, SEQUENTIAL_BYTES)
    small[:], large[:] = os.urandom(PAGE_BYTES), os.urandom(SEQUENTIAL_BYTES)
    try:
        return {
            "4K randwrite q1": rate(fd, small, seconds, write=True, sync=False, sequential=False),
            "4K randread q1": rate(fd, small, seconds, write=False, sync=False, sequential=False),
            "4K write + fsync": rate(fd, small, seconds, write=True, sync=True, sequential=False),
            "1M seq write": rate(fd, large, seconds, write=True, sync=False, sequential=True),
            "1M seq read": rate(fd, large, seconds, write=False, sync=False, sequential=True),
        }
    finally:
        os.close(fd)


def main() -> None:
    """Measure in turn, round by round; medians, and the ratio to the peer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each figure")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in SUBJECTS}
    for _ in range(options.rounds):
        for name, start in SUBJECTS.items():
            with tempfile.TemporaryDirectory(prefix="siterig-bench-") as folder, start(Path(folder)) as disk:
                results[name].append(measure(disk, options.seconds))
    columns = list(results[PEER][0])
    medians = {name: {c: statistics.median(r[c] for r in rounds) for c in columns} for name, rounds in results.items()}
    table = Table("operations a second (ratio to naive pyfuse3)", *columns)
    for name, row in medians.items():
        table.add_row(name, *(f"{row[c]:,.0f} ({row[c] / medians[PEER][c]:.2f})" for c in columns))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
