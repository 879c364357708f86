"""A benchmark of the cost of encryption: the same work with a key and without, in turn.

``python -m bench.encryption [--rounds 9] [--folder DIR] [--json FILE]``; takes some 100 MiB of disk.

- *seal*: parts of 8 MiB of random bytes, compressed and encrypted; beside it only compressed;
- *apply*: the same parts applied to a managed disk; beside it to one without encryption;
- *read*: 1 MiB at a time through a view whose files are in the page cache, beside a view of a disk without encryption;
- *guest writes*, *guest reads*: 128 KiB at a time of a tracked disk in this process, without the mount, with a flush after
  each 16 MiB of writes; beside a disk without encryption.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_disk
from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.transfer.envelope import DataKey, seal
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_part import DiskChunk, SyncOrigin, pack_sync_part

DISK_ID = "6f1c2f5e-8a51-4d10-9a7e-0d6f5f3c2b1a"
PART_BYTES = 8 << 20
PARTS = 8
DISK_BYTES = PARTS * PART_BYTES
GUEST_BYTES = 128 << 10
FLUSHED_BYTES = 16 << 20
AT_LEAST = 0.9
WHAT = {
    "seal": "compress and encrypt a part of 8 MiB; beside: only compress it",
    "apply": "apply parts to an encrypted managed disk, durably; beside: to one without encryption",
    "read": "read a view of an encrypted managed disk from the page cache; beside: of one without encryption",
    "guest writes": "write 128 KiB at a time to an encrypted tracked disk, with flushes; beside: to one without encryption",
    "guest reads": "read 128 KiB at a time from an encrypted disk, from the page cache; beside: from one without encryption",
}
"""Both sides of each row; the key of a row is also its name in the JSON."""


def _packed(rng: random.Random) -> list[tuple[PartName, bytes]]:
    origin = SyncOrigin(DISK_ID, 1, DISK_BYTES, 1, 0, 1)
    parts = []
    for number in range(1, PARTS + 1):
        first = (number - 1) * PART_BYTES
        chunks = deque(DiskChunk(first + at, 65536, rng.randbytes(65536)) for at in range(0, PART_BYTES, 65536))
        parts.append((origin.part(number), pack_sync_part(origin, number, chunks, is_last=number == PARTS)))
    return parts


def _pack_again(key: DataKey | None, rng: random.Random) -> float:
    origin = SyncOrigin(DISK_ID, 1, DISK_BYTES, 1, 0, 1)
    chunks = deque(DiskChunk(at, 65536, rng.randbytes(65536)) for at in range(0, PART_BYTES, 65536))
    began = time.perf_counter()
    packed = pack_sync_part(origin, 1, chunks, is_last=False)
    if key is not None:
        seal(key, origin.part(1), packed)
    return time.perf_counter() - began


def _apply(folder: Path, key: DataKey | None, parts: list[tuple[PartName, bytes]]) -> float:
    store = ManagedDiskStore.create(folder, disk_id=DISK_ID, size_bytes=DISK_BYTES, created_ns=1, key=key)
    began = time.perf_counter()
    for part, data in parts:
        store.apply_part(part, data)
    took = time.perf_counter() - began
    store.close()
    return took


def _read(folder: Path, key: DataKey | None) -> float:
    view = open_disk(folder, 1, key)
    for _ in range(2):  # the first time, from the medium
        began = time.perf_counter()
        for at in range(0, DISK_BYTES, 1 << 20):
            view.pread(at, 1 << 20)
        took = time.perf_counter() - began
    view.close()
    return took


def _guest(folder: Path, cipher: DiskCipher | None, data: bytes) -> tuple[float, float]:
    """Return the seconds for writing and for reading a disk."""
    folder.mkdir()
    paths, positions = DiskPaths(folder, "vm", "os"), PositionCounter(folder / "position")
    make_raw(paths, DISK_BYTES)
    state = DiskState.load(paths.file("disk"))
    layer = RawLayer(paths.file("img"), writable=True)
    options = DiskOptions(positions, policy=LogPolicy(kept_share_max=None))
    disk = Disk.over(paths, state=state, layer=layer, options=options, closed=None, cipher=cipher)
    disk.tracking.start(new_generation=False)
    began = time.perf_counter()
    for at in range(0, DISK_BYTES, GUEST_BYTES):
        disk.write(at, data)
        if at % FLUSHED_BYTES == 0:
            disk.flush_now()
            disk.tracking.maintain()
    disk.flush_now()
    written_s = time.perf_counter() - began
    began = time.perf_counter()
    for at in range(0, DISK_BYTES, GUEST_BYTES):
        disk.read(at, GUEST_BYTES)
    read_s = time.perf_counter() - began
    disk.abandon()
    positions.close()
    return written_s, read_s


def _measure(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds with a key and without, of each round."""
    rng = random.Random(options.seed)  # noqa: S311
    part_key, disk_key = DataKey.generate(), DataKey.generate(64)
    parts = _packed(rng)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WHAT}
    cipher, guest_bytes = DiskCipher(disk_key.secret), rng.randbytes(GUEST_BYTES)
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(prefix="siterig-bench-", dir=options.folder) as name:
            folders = {True: Path(name) / "with", False: Path(name) / "without"}
            works: dict[str, Callable[[bool], float]] = {
                "seal": lambda keyed: _pack_again(part_key if keyed else None, rng),
                "apply": lambda keyed: _apply(folders[keyed], disk_key if keyed else None, parts),  # noqa: B023
                "read": lambda keyed: _read(folders[keyed], disk_key if keyed else None),  # noqa: B023
            }
            for what, work in works.items():
                took = {keyed: work(keyed) for keyed in ((True, False) if number % 2 else (False, True))}
                found[what].append((took[True], took[False]))
            guests = {
                keyed: _guest(Path(name) / f"guest-{keyed}", cipher if keyed else None, guest_bytes)
                for keyed in ((True, False) if number % 2 else (False, True))
            }
            for place, what in enumerate(("guest writes", "guest reads")):
                found[what].append((guests[True][place], guests[False][place]))
            os.sync()
    return found


def main() -> None:
    """Run the measurements, print the figures, and write them to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the disks are; default: the temporary folder")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    found = _measure(options)
    title = f"throughput of the same work with a key and without, medians of {options.rounds} rounds"
    table = Table("", "with encryption", "without", "ratio", "target", "", title=title)
    for what, pairs in found.items():
        size = PART_BYTES if what == "seal" else DISK_BYTES
        with_s, without_s = (statistics.median(values) for values in zip(*pairs, strict=True))
        ratios = [without / keyed for keyed, without in pairs]
        holds = "holds" if without_s / with_s >= AT_LEAST else "does not hold"
        shown = f"{without_s / with_s:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(
            f"{what}: {WHAT[what]}",
            f"{size / with_s / 1e6:,.0f} MB/s",
            f"{size / without_s / 1e6:,.0f} MB/s",
            shown,
            "0.9x",
            holds,
        )
    Console(width=120).print(table)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
