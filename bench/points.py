"""Recovery points of one disk: made, opened and read by siterig, by a chain of qcow2 files, and by btrfs snapshots.

``python -m bench.points [--points 100] [--writes 500] [--rounds 3] [--folder DIR] [--json FILE]``; needs root, FUSE, fio
(with its nbd engine), qemu-utils and btrfs-progs.

A disk of 2 GiB with 1 GiB of data; before each point so many 4 KiB blocks of it change at random.  Then, in turn:

- *create*: a point, when all that was written before is there (of 100 the median and the longest);
- *open*: the oldest and the newest point, from the wish to the first block of it.  siterig's host and btrfs are up already;
  a qemu-nbd is started for each, which is how such a file is read;
- *read*: 4 KiB at random places of the 1 GiB, directly, one reader, from the oldest and the newest point.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.point_subjects import Btrfs, QcowChain, Siterig, Subject

SIZE_BYTES = 2 << 30
DATA_BYTES = 1 << 30
SUBJECTS: dict[str, tuple[str, Callable[[Path, int, int], Subject]]] = {
    "siterig": ("siterig", Siterig),
    "qcow2": ("qcow2 chain", QcowChain),
    "btrfs": ("btrfs snapshots", Btrfs),
}
COLUMNS = ("create ms", "open oldest ms", "open newest ms", "read oldest IOPS", "read newest IOPS")
Figures = dict[str, dict[str, list[float]]]


def _read_iops(arguments: tuple[str, ...], seconds: float) -> float:
    command = ["fio", "--name=job", f"--size={DATA_BYTES}", "--rw=randread", "--bs=4k", "--norandommap", "--time_based"]
    command += [f"--runtime={seconds}", "--output-format=json", "--thread", "--allow_file_create=0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout[done.stdout.index("{") :])["jobs"][0]["read"]["iops"])


def _run(options: argparse.Namespace, console: Console) -> Figures:
    found: Figures = {name: defaultdict(list) for name in options.subjects}
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder)))
        subjects: dict[str, Subject] = {}
        for name in options.subjects:
            console.print(f"{SUBJECTS[name][0]}: {options.points} points", style="dim")
            folder = root / name
            folder.mkdir()
            subjects[name] = subject = SUBJECTS[name][1](folder, SIZE_BYTES, DATA_BYTES)
            stack.callback(subject.close)
            for index in range(options.points):
                subject.write(options.writes)
                found[name]["create ms"].append(subject.create(index) * 1000)
        for index in range(options.rounds):
            turn = index % len(options.subjects)
            for name in options.subjects[turn:] + options.subjects[:turn]:
                console.print(f"round {index + 1}/{options.rounds}: {SUBJECTS[name][0]}", style="dim")
                for age, point in (("oldest", 0), ("newest", options.points - 1)):
                    with subjects[name].opened(point) as opened:
                        found[name][f"open {age} ms"].append(opened.took_s * 1000)
                        found[name][f"read {age} IOPS"].append(_read_iops(opened.fio, options.seconds))
    return found


def _print(console: Console, measured: Figures) -> None:
    table = Table("median", *COLUMNS)
    for name, figures in measured.items():
        cells = [f"{statistics.median(figures[column]):,.1f}" for column in COLUMNS]
        cells[0] += f" (longest {max(figures['create ms']):,.1f})"
        table.add_row(SUBJECTS[name][0], *cells)
    console.print(table)


def main() -> None:
    """Run the measurements, print the figures, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--writes", type=int, default=500, help="before each point")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of reading, for each figure")
    parser.add_argument("--subjects", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    parser.add_argument("--folder", type=Path, help="where the disks are; default: the temporary folder")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    console = Console(width=160)
    found = _run(options, console)
    _print(console, found)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
