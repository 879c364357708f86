"""A benchmark of managed disks: apply, mount and compact, each compared with the least work of the host's file system.

``python -m bench.stores [--records 1000000] [--rounds 3] [--folder DIR] [--json FILE]``; takes some GiB of disk.

- *apply*: parts of 4096 writes of 4 KiB, packed as they come from the cache account, by the applier's call, with the
  checkpoints that are due; beside it the same bytes, unpacked, written to a file with an fdatasync after each part.  In
  turn, part by part.
- *mount*: opening a view of a disk whose journal has so many records, at its newest position and at random ones, each in a
  process that has not seen the disk before.
- *memory* of such a view: of an empty disk and one eight times as large, with a hundredth of the records and with all.
- *read*: 4 KiB at random places, directly, one reader and four, of the newest position through a recovery mount; beside it a
  raw disk of the same host, as large and as full, not tracked.  In turn; the ratio is the median of those of the rounds.
- *fold*: half of the journal into the base; beside it as many bytes as changed, written to a new file in order, and synced.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import zstandard
from rich.console import Console
from rich.table import Table

from bench import fio
from bench.fio import COLUMNS
from bench.point_subjects import PointServer
from bench.site_history import BLOCK_BYTES, SiteHistory
from siterig.azure_emu.contracts.recovery_side import Change
from siterig.azure_emu.disks.loader import load_history, query_consistently
from siterig.azure_emu.disks.queries import change_list
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import build_map

PART_WRITES = 4096
DISK_BYTES = 2 << 30
DATA_BYTES = DISK_BYTES
"""All of it: where a fold writes, the file has blocks already."""
OPENER = """
import resource, sys, time
from pathlib import Path
from siterig.azure_emu.disks.view import open_view
def rss():
    return int(next(l for l in open("/proc/self/status") if l.startswith("RssAnon")).split()[1])
before, began = rss(), time.perf_counter()
view = open_view(Path(sys.argv[1]), int(sys.argv[2]))
took = time.perf_counter() - began
view.pread(0, 4096)
print(took * 1000, rss() - before)
"""


@dataclass
class StoreResults:
    """Ratios are to the peer, beside which each was measured; ``*_mb_s``: 10^6 bytes a second."""

    apply_mb_s: float = 0.0
    apply_peer_mb_s: float = 0.0
    apply_ratios: list[float] = field(default_factory=list)
    mount_newest_ms: list[float] = field(default_factory=list)
    mount_random_ms: list[float] = field(default_factory=list)
    memory: list[tuple[int, int, int, float]] = field(default_factory=list)
    """Bytes of the disk, records, extents, KiB of the view."""
    read_iops: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """By column: of the point, of the raw disk."""
    fold_mb_s: float = 0.0
    fold_peer_mb_s: float = 0.0


def _apply(
    store: ManagedDiskStore, history: SiteHistory, options: argparse.Namespace, folder: Path, results: StoreResults
) -> None:
    """Grow the journal; the peer is measured beside it, part by part."""
    peer = os.open(folder / "peer", os.O_RDWR | os.O_CREAT | os.O_EXCL)
    at, ours_s, peer_s, total = 0, 0.0, 0.0, 0
    per_round: list[tuple[float, float]] = []
    parts = -(-options.records // PART_WRITES)
    for number in range(parts):
        part, data = history.log_part(PART_WRITES, within_bytes=DISK_BYTES)
        raw = zstandard.ZstdDecompressor().decompress(data)

        def ours(part: object = part, data: bytes = data) -> float:
            began = time.perf_counter()
            store.apply_part(part, data)  # type: ignore[arg-type]
            store.compactor.checkpoint()  # as the applier does behind itself, if it is due
            return time.perf_counter() - began

        def theirs(raw: bytes = raw) -> float:
            nonlocal at
            began = time.perf_counter()
            os.pwrite(peer, raw, at)
            os.fdatasync(peer)
            at += len(raw)
            return time.perf_counter() - began

        took = (ours(), theirs()) if number % 2 else tuple(reversed((theirs(), ours())))
        ours_s, peer_s, total = ours_s + took[0], peer_s + took[1], total + len(raw)
        if (number + 1) % max(parts // options.rounds, 1) == 0:
            per_round.append((ours_s, peer_s))
    os.close(peer)
    (folder / "peer").unlink()
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in zip([(0.0, 0.0), *per_round], per_round, strict=False)]
    results.apply_ratios = [theirs / ours for ours, theirs in steps]
    results.apply_mb_s, results.apply_peer_mb_s = total / ours_s / 1e6, total / peer_s / 1e6


def _mount(store: Path, position: int) -> tuple[float, float]:
    command = [sys.executable, "-c", OPENER, str(store), str(position)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    took, kib = map(float, done.stdout.split())
    return took, kib


def _changes(store: ManagedDiskStore, after: int, upto: int, limit: int) -> list[Change]:
    return query_consistently(store.folder, lambda state: change_list(state, after, upto, limit))


def _read(
    store: ManagedDiskStore, history: SiteHistory, folder: Path, options: argparse.Namespace, results: StoreResults
) -> None:
    server = PointServer(folder / "host", folder / "mnt", folder)
    plain = server.plain(DISK_BYTES)
    point = server.mount("p", history.disk_id, history.position)
    with plain.open("r+b", buffering=0) as disk:
        for _ in range(DISK_BYTES >> 20):
            disk.write(os.urandom(1 << 20))
        os.fsync(disk.fileno())
    for number in range(options.read_rounds):
        for name in ("randread", "randread4"):
            pair = {}
            for path in (point, plain) if number % 2 else (plain, point):
                pair[path] = fio.run(COLUMNS[name], path, seconds=options.seconds, launcher=[]).value
            results.read_iops.setdefault(name, []).append((pair[point], pair[plain]))
    server.unmount("p")
    server.close()


def _memory(options: argparse.Namespace, folder: Path, results: StoreResults) -> None:
    """Each figure is of a store of its own, whose disk is empty before."""
    for size_bytes in (DISK_BYTES, 8 * DISK_BYTES):
        for records in (options.records // 100, options.records):
            history = SiteHistory(size_bytes, options.seed)
            where = folder / "memory"
            store = ManagedDiskStore.create(where, disk_id=history.disk_id, size_bytes=size_bytes, created_ns=1)
            for part, data in history.initial(0):
                store.apply_part(part, data)
            for _ in range(0, records, PART_WRITES):
                store.apply_part(*history.log_part(PART_WRITES))
                store.compactor.checkpoint()
            store.close()
            history.forget()
            _, kib = _mount(where, history.position)
            extents = len(build_map(where, load_history(where).history, None).extents)
            results.memory.append((size_bytes, history.seq, extents, kib))
            shutil.rmtree(where)


def _sequential_mb_s(path: Path, length: int) -> float:
    data = os.urandom(1 << 20)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    began = time.perf_counter()
    for offset in range(0, length, len(data)):
        os.pwrite(fd, data, offset)
    os.fdatasync(fd)
    took = time.perf_counter() - began
    os.close(fd)
    path.unlink()
    return length / took / 1e6


def _run(options: argparse.Namespace, console: Console) -> StoreResults:
    results = StoreResults()
    history = SiteHistory(DISK_BYTES, options.seed)
    with tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder) as name:
        folder = Path(name)
        store = ManagedDiskStore.create(folder / "disk", disk_id=history.disk_id, size_bytes=DISK_BYTES, created_ns=1)
        console.print("initial replication", style="dim")
        for part, data in history.initial(DATA_BYTES):
            store.apply_part(part, data)
        first = history.position
        console.print(f"a journal of {options.records:,} records", style="dim")
        _apply(store, history, options, folder, results)
        dice = random.Random(options.seed)  # noqa: S311
        for _ in range(options.rounds):
            results.mount_newest_ms.append(_mount(folder / "disk", history.position)[0])
            results.mount_random_ms.append(_mount(folder / "disk", dice.randrange(first, history.position))[0])
        console.print("reading", style="dim")
        _read(store, history, folder, options, results)
        console.print("fold of half of it", style="dim")
        half = first + (history.position - first) // 2
        changed = len({change.offset for change in _changes(store, first, half, options.records)}) * BLOCK_BYTES
        os.sync()
        began = time.perf_counter()
        store.compactor.compact(half)
        results.fold_mb_s = changed / (time.perf_counter() - began) / 1e6
        os.sync()
        results.fold_peer_mb_s = _sequential_mb_s(folder / "peer", changed)
        store.close()
        history.forget()
        shutil.rmtree(folder / "disk")
        console.print("memory", style="dim")
        _memory(options, folder, results)
    return results


def _print(console: Console, results: StoreResults) -> None:
    table = Table("", "found", "beside it", "ratio", "target", "")

    def row(what: str, mb_s: float, peer: float, least: float) -> None:
        holds = "holds" if mb_s / peer >= least else "[bold]does not hold[/bold]"
        table.add_row(what, f"{mb_s:,.0f} MB/s", f"{peer:,.0f} MB/s", f"{mb_s / peer:.2f}x", f"{least:g}x", holds)

    row("apply, beside write + fdatasync", results.apply_mb_s, results.apply_peer_mb_s, 0.8)
    for name, pairs in results.read_iops.items():
        ours, plain = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratios = [a / b for a, b in pairs]
        ratio = statistics.median(ratios)
        holds = "holds" if ratio >= 0.7 else "[bold]does not hold[/bold]"
        table.add_row(
            f"{COLUMNS[name].title}, a point",
            f"{ours:,.0f} IOPS",
            f"{plain:,.0f} IOPS",
            f"{ratio:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})",
            "0.7x",
            holds,
        )
    row("fold, beside writing in order", results.fold_mb_s, results.fold_peer_mb_s, 0.5)
    for what, times in (("mount, newest", results.mount_newest_ms), ("mount, at random", results.mount_random_ms)):
        holds = "holds" if max(times) < 100 else "[bold]does not hold[/bold]"
        spread = f"{min(times):.1f} to {max(times):.1f}"
        table.add_row(what, f"{statistics.median(times):.1f} ms", "", spread, "100 ms", holds)
    for size_bytes, records, extents, kib in results.memory:
        what = f"memory of a view, {size_bytes >> 30} GiB, {records:,} records"
        table.add_row(what, f"{kib / 1024:.1f} MiB", "", f"{kib * 1024 / extents:.0f} bytes an extent", "", "")
    console.print(table)


def main() -> None:
    """Run the measurements, print the figures, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000, help="in the journal")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--read-rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0, help="of reading, for each figure")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the disk is; default: the temporary folder")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    console = Console(width=160)
    found = _run(options, console)
    console.print(f"apply, of single rounds: {', '.join(f'{ratio:.2f}' for ratio in found.apply_ratios)}")
    _print(console, found)
    if options.json:
        options.json.write_text(json.dumps(asdict(found), indent=1) + "\n")


if __name__ == "__main__":
    main()
