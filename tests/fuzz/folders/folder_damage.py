"""Whole folders of encrypted managed disks, of which files are damaged, missing, or of another disk or time."""

from __future__ import annotations

import random
import tempfile
import uuid
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from unittest import mock

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.transfer.envelope import DataKey
from tests.fuzz.damage import Choices
from tests.support.disks.disk_history import SiteDisk

SIZE_BYTES = 64 * 1024
KEY = DataKey(uuid.UUID(int=9), bytes(range(64)))
OTHER_KEY = DataKey(uuid.UUID(int=10), bytes(range(64, 128)))
LARGE_BYTES = 192 << 20
"""The size of a file that is grown: nobody may read it into memory."""
UNBOUND = {"base.map", "base.sums", "progress"}
"""Files that have neither the id of the disk nor a time: another one with right checksums is not recognized."""
Files = dict[str, bytes]


@dataclass(frozen=True)
class Folder:
    """The files of a managed disk, and the contents of the disk at the positions that it has."""

    files: Files = field(repr=False)
    states: dict[int, bytes] = field(repr=False)


@dataclass(frozen=True)
class Times:
    """One managed disk at several times: during its copy, with a journal, compacted, and after a resync."""

    folders: list[Folder]
    disk_id: str
    key: DataKey


@dataclass(frozen=True)
class Damaged:
    """A folder with damage; None as the content of a file is a folder of its name."""

    folder: Folder = field(repr=False)
    files: dict[str, bytes | None] = field(repr=False)
    large: frozenset[str]
    """The files that are grown to ``LARGE_BYTES``."""
    steps: tuple[str, ...]


@cache
def times(seed: int) -> Times:
    """Return a managed disk at several times; disks of different seeds have different ids and keys."""
    key = KEY if seed == 0 else OTHER_KEY
    folders: list[Folder] = []
    with tempfile.TemporaryDirectory() as name, mock.patch("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 20_000):
        disk = SiteDisk(Path(name), random.Random(seed), disk_id=str(uuid.UUID(int=70 + seed)), data=bytearray(SIZE_BYTES))
        folder = Path(name) / "store"
        store = ManagedDiskStore.create(folder, disk_id=disk.disk_id, size_bytes=SIZE_BYTES, created_ns=1, key=key)

        def note() -> None:
            ranges = store.valid_ranges()
            states = {at: data for at, data in disk.states.items() if any(first <= at <= last for first, last in ranges)}
            files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
            folders.append(Folder(files, states))

        def change() -> None:
            for _ in range(6):
                at = disk.rng.randrange(SIZE_BYTES - 6000)
                disk.write(at, disk.rng.randbytes(disk.rng.randrange(1, 6000)))
            disk.tag("tag")
            store.apply_part(*disk.close_log())

        for at in range(0, SIZE_BYTES - 5000, 9000):
            disk.write(at, disk.rng.randbytes(5000))
        first, *others = disk.sync()
        store.apply_part(*first)
        note()
        for part in others:
            store.apply_part(*part)
        note()
        for _ in range(3):
            change()
        with mock.patch.object(checkpoints, "RECORDS_MIN", 0), mock.patch.object(store.compactor, "_extents", 0):
            store.compactor.checkpoint()
        note()
        store.compactor.compact(sorted(folders[-1].states)[len(folders[-1].states) // 2])
        note()
        before = bytes(disk.data)
        disk.generation, disk.seq = 2, 0
        disk.write(100, disk.rng.randbytes(9000))
        for part in disk.sync(against=before):
            store.apply_part(*part)
        change()
        note()
        store.close()
    return Times(folders, disk.disk_id, key)


def _flipped(raw: bytes, pick: Choices) -> bytes:
    at = pick.below(65536) * (len(raw) - 1) // 65535
    return raw[:at] + bytes([raw[at] ^ 1 << pick.below(8)]) + raw[at + 1 :]


def folder(pick: Choices) -> Damaged:
    """Return a managed disk of the first key with up to three damages of any files."""
    mine, other = times(0), times(1)
    whole = pick.of(mine.folders)
    files: dict[str, bytes | None] = dict(whole.files)
    large: set[str] = set()
    steps: list[str] = []
    for _ in range(1 + pick.below(3)):
        name, donor = pick.of(sorted(files)), pick.of([*mine.folders, *other.folders])
        raw = files[name]
        kind = pick.of(
            ["flip", "flip", "flip", "cut", "grow", "large", "remove", "empty", "folder", "swap", "foreign", "foreign"]
        )
        steps.append(f"{kind} {name}")
        match kind:
            case "flip" if raw:
                files[name] = _flipped(raw, pick)
            case "cut" if raw:
                files[name] = raw[: pick.below(65536) * len(raw) // 65536]
            case "grow" if raw is not None:
                files[name] = raw + bytes([pick.below(256)]) * pick.below(9000)
            case "large":
                large.add(name)
            case "remove":
                del files[name]
            case "empty":
                files[name] = b""
            case "folder":
                files[name] = None
            case "swap":
                with_name = pick.of(sorted(files))
                files[name], files[with_name] = files[with_name], files[name]
                steps[-1] += f" {with_name}"
            case "foreign" if name in donor.files and name not in UNBOUND:
                files[name] = donor.files[name]
            case _:
                pass
    return Damaged(whole, files, frozenset(large & files.keys()), tuple(steps))
