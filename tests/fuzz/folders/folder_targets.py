"""Opens damaged folders of encrypted managed disks: each block is right or an I/O error, and each other failure is named."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

from structlog.testing import capture_logs

from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_disk
from siterig.blockfs.core.errors import RigError
from tests.fuzz.folders.folder_damage import LARGE_BYTES, Damaged, times

CODES = {"StoreCorrupt", "StoreVersion", "StoreIo", "InvalidPosition", "DiskNotFound", "KeyMissing", "ForeignFile"}
MEMORY_BYTES_MAX = 64 << 20
BLOCK = 4096


def _write(damaged: Damaged, folder: Path) -> Path:
    store = folder / times(0).disk_id
    for name in ("pins", "checkpoints", "journal"):
        (store / name).mkdir(parents=True, exist_ok=True)
    for name, raw in damaged.files.items():
        path = store / name
        if raw is None:
            path.mkdir()
            continue
        path.write_bytes(raw)
        if name in damaged.large:
            with path.open("r+b") as file:
                file.truncate(LARGE_BYTES)
    return store


def _read(store: Path, damaged: Damaged) -> tuple[int, int]:
    """Read the disk at some positions; return the numbers of right blocks and of errors."""
    right = errors = 0
    positions = sorted(damaged.folder.states)
    for position in {*positions[:1], *positions[len(positions) // 2 :][:1], *positions[-1:]}:
        want = damaged.folder.states[position]
        try:
            view = open_disk(store, position, times(0).key)
        except RigError as error:
            assert error.code in CODES, f"{error.code}: {error.message}"
            assert error.message.isprintable()
            errors += 1
            continue
        try:
            for at in range(0, len(want), BLOCK):
                try:
                    data = view.pread(at, BLOCK)
                except OSError:
                    errors += 1
                else:
                    assert data == want[at : at + BLOCK], f"position {position}, block at {at}: wrong bytes"
                    right += 1
        finally:
            view.close()
    return right, errors


def folder(damaged: Damaged, where: Path) -> str:
    """Read a damaged folder, open it for applying, and read it again."""
    store = _write(damaged, where)
    tracemalloc.start()
    try:
        with capture_logs():
            right, errors = _read(store, damaged)
            opened = True
            try:
                ManagedDiskStore.open(store, key=times(0).key).close()
            except RigError as error:
                assert error.code in CODES, f"{error.code}: {error.message}"
                opened = False
            else:
                again, _ = _read(store, damaged)
                right += again
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < MEMORY_BYTES_MAX, f"{peak} bytes of memory"
    return f"{'opened' if opened else 'refused'}, {'some' if right else 'no'} blocks, {'some' if errors else 'no'} errors"
