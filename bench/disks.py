"""A benchmark of writes and reads through the mount and its peers in one run; it prints ratios and the targets they meet.

``python -m bench.disks [--pin] [--seconds 2] [--rounds 3] [--subjects tracked,naive] [--columns randwrite] [--json FILE]``

Needs root, /dev/fuse, fio and, for the peer in C, gcc and Debian's source archive.  Compare only the ratios of one run:
an idle core's wake-up costs more than the work, so figures differ threefold with what else the machine does.

How: all subjects work on one and the same backing file.  For each subject, in each round, the host's cache of it is
dropped; then 1 GiB is written to it *through the subject*, in direct writes of ``--fill-kib``, and synced: so the host's
cache is warm, and its folios are as this subject's way of writing makes them.  The cost of a later small write depends
most on their size: with ``--fill-kib 64`` they are small for every subject, and only the rest is compared.
Then the columns in turn, after a sync(2) each.  The order of subjects rotates from round to round.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import fio, subjects, targets
from bench.fio import AREA_BYTES, COLUMNS, Figure
from bench.servers import passthrough_ll
from bench.subjects import Ours, Place

Start = Callable[[Place], contextlib.AbstractContextManager[Path]]
SUBJECTS: dict[str, tuple[str, Start]] = {
    "bare": ("bare file", subjects.bare_file),
    "loop": ("loop device on it", subjects.loop_device),
    "ptll": ("libfuse passthrough_ll", subjects.libfuse_example),
    "naive": ("naive pyfuse3", subjects.naive_pyfuse3),
    "untracked": ("siterig untracked", Ours("untracked", "server")),
    "tracked": ("siterig tracked", Ours("tracked", "server")),
    "untracked-uring": ("siterig untracked, over io_uring", Ours("untracked", "uring")),
    "armed": ("siterig tracked, with a fault rule that does not match", Ours("armed", "server")),
    "tracked-uring": ("siterig tracked, over io_uring", Ours("tracked", "uring")),
    "untracked-py": ("siterig untracked, pyfuse3 alone", Ours("untracked", "pyfuse3")),
    "tracked-py": ("siterig tracked, pyfuse3 alone", Ours("tracked", "pyfuse3")),
}
_URING = Path("/sys/module/fuse/parameters/enable_uring")


def _drop_cache(image: Path) -> None:
    """Let the host forget what it has cached of the backing file."""
    fd = os.open(image, os.O_RDONLY)
    os.fdatasync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def _prewrite(disk: Path, piece_bytes: int) -> None:
    """Fill the area by direct writes, and sync it."""
    buffer = mmap.mmap(-1, piece_bytes)
    buffer[:] = os.urandom(len(buffer))
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    for offset in range(0, AREA_BYTES, len(buffer)):
        os.pwrite(fd, buffer, offset)
    os.fsync(fd)
    os.close(fd)


def _measure(place: Place, start: Start, options: argparse.Namespace) -> dict[str, Figure]:
    found = {}
    with start(place) as disk:
        _drop_cache(place.image)
        _prewrite(disk, options.fill_kib << 10)
        for name in options.columns:
            os.sync()
            if COLUMNS[name].cold:
                _drop_cache(place.image)
            found[name] = fio.run(COLUMNS[name], disk, seconds=options.seconds, launcher=place.launcher)
    return found


def _run(options: argparse.Namespace, console: Console) -> targets.Values:
    results: targets.Values = {subject: {column: [] for column in options.columns} for subject in options.subjects}
    with tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder) as folder:
        place = Place(Path(folder), ["taskset", "-c", str(options.cpu)] if options.pin else [])
        place.make()
        for index in range(options.rounds):
            turn = index % len(options.subjects)
            for subject in options.subjects[turn:] + options.subjects[:turn]:
                console.print(f"round {index + 1}/{options.rounds}: {SUBJECTS[subject][0]}", style="dim")
                for column, figure in _measure(place, SUBJECTS[subject][1], options).items():
                    results[subject][column].append(figure)
    return results


def _default_subjects() -> list[str]:
    """All, but for what the host does not have on."""
    has_uring = _URING.exists() and _URING.read_text().strip() == "Y"
    return [name for name in SUBJECTS if has_uring or not name.endswith("-uring")]


# --- reporting --------------------------------------------------------------------------------------------------


def _machine() -> dict[str, str | int]:
    cpu = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "name" in line), ""
    )
    return {"kernel": platform.release(), "cpu": cpu, "cpus": os.cpu_count() or 0}


def _versions(chosen: list[str]) -> dict[str, str]:
    found = {"fio": subprocess.run(["fio", "--version"], capture_output=True, text=True, check=True).stdout.strip()}
    found |= {name: version(name) for name in ("pyfuse3", "siterig")}
    if "ptll" in chosen:
        found["passthrough_ll"] = passthrough_ll.build()[1]
    return found


def _median(figures: list[Figure]) -> float:
    return statistics.median(figure.value for figure in figures)


def _p50(figures: list[Figure]) -> float:
    return statistics.median(figure.p50_us for figure in figures)


def _print_table(console: Console, results: targets.Values, columns: list[str], peer: str) -> None:
    table = Table(f"median (ratio to {SUBJECTS[peer][0]})\nand an operation's p50, µs")
    for name in columns:
        table.add_column(f"{COLUMNS[name].title}\n{COLUMNS[name].unit}", justify="right")
    for subject, row in results.items():
        cells = [
            f"{_median(row[c]):,.0f} ({_median(row[c]) / _median(results[peer][c]):.2f})\n{_p50(row[c]):.1f}"
            for c in columns
        ]
        table.add_row(SUBJECTS[subject][0], *cells)
    console.print(table)


def _print_verdicts(console: Console, verdicts: list[targets.TargetResult]) -> None:
    table = Table("target", "at least", "found", "of single rounds", "by p50 latency", "")
    for verdict in verdicts:
        target = verdict.target
        table.add_row(
            f"{SUBJECTS[target.subject][0]} vs {SUBJECTS[target.peer][0]}, {COLUMNS[target.column].title}",
            f"{target.at_least:g}x",
            f"{verdict.found:.2f}x",
            f"{verdict.lowest:.2f} to {verdict.highest:.2f}",
            f"{verdict.by_latency:.2f}x",
            "holds" if verdict.holds else "[bold]does not hold[/bold]",
        )
    console.print(table)


def _options() -> argparse.Namespace:
    def chosen(known: list[str]) -> Callable[[str], list[str]]:
        def parse(text: str) -> list[str]:
            if unknown := set(text.split(",")) - set(known):
                raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}; there are: {','.join(known)}")
            return [name for name in known if name in text.split(",")]

        return parse

    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--before", type=Path, help="another checkout with its .venv, for subject 'before'")
    before = early.parse_known_args()[0].before
    if before is not None:
        SUBJECTS["before"] = (f"siterig tracked, engine of {before}", Ours("tracked", "server", before.resolve()))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[early]
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure (reading cold: once through)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--subjects", type=chosen(list(SUBJECTS)), default=_default_subjects(), help=",".join(SUBJECTS))
    parser.add_argument("--columns", type=chosen(list(COLUMNS)), default=list(COLUMNS), help=",".join(COLUMNS))
    parser.add_argument(
        "--fill-kib", type=int, choices=(4, 64, 1024), default=1024, help="size of the writes that fill the area"
    )
    parser.add_argument("--pin", action="store_true", help="fio and the server on one core (a loop device's worker is not)")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="which, with --pin")
    parser.add_argument("--folder", type=Path, help="where the disk and its log are; default: the temporary folder")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser.parse_args()


def main() -> None:
    """Run the measurements, print the figures, and write them to a file."""
    options = _options()
    console = Console(width=200)
    began = time.time()
    about = {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)),
        "wake_ups": f"fio and server pinned to core {options.cpu}" if options.pin else "default, nothing pinned",
        "fill_kib": options.fill_kib,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "machine": _machine(),
        "versions": _versions(options.subjects),
    }
    results = _run(options, console)
    verdicts = targets.judge(results)
    console.print(
        f"wake-ups: {about['wake_ups']}; filled by {options.fill_kib} KiB; {options.rounds} rounds; "
        f"{about['machine']} {about['versions']}"
    )
    _print_table(console, results, options.columns, "naive" if "naive" in results else options.subjects[0])
    _print_verdicts(console, verdicts)
    console.print(f"took {time.time() - began:.0f} s")
    if options.json:
        figures = {s: {c: [asdict(f) for f in fs] for c, fs in row.items()} for s, row in results.items()}
        judged = [asdict(verdict) | {"holds": verdict.holds} for verdict in verdicts]
        options.json.write_text(json.dumps(about | {"figures": figures, "verdicts": judged}, indent=1) + "\n")


if __name__ == "__main__":
    main()
