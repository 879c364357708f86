"""A managed disk for tests: its store, the site's disk that it follows, and comparisons that name the first wrong byte."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.layers.layer import Layer
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, Packed, SiteDisk

KEY = bytes(range(32))


def site(tmp_path: Path, seed: int = 1) -> SiteDisk:
    """Return a source disk in a folder of its own."""
    folder = tmp_path / f"site{seed}"
    folder.mkdir()
    return SiteDisk(folder, random.Random(seed))


def new_store(tmp_path: Path) -> ManagedDiskStore:
    """Create an empty managed disk."""
    return ManagedDiskStore.create(tmp_path / DISK_ID, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1)


def apply(store: ManagedDiskStore, parts: list[Packed]) -> None:
    """Apply the parts in this order."""
    for part, data in parts:
        store.apply_part(part, data)


def whole(view: Layer) -> bytes:
    """Return all bytes of the view and close it."""
    try:
        return view.pread(0, view.size_bytes)
    finally:
        view.close()


def assert_same(got: bytes, want: bytes, what: str) -> None:
    """Compare bytes and name the first wrong offset."""
    assert len(got) == len(want), f"{what}: {len(got)} bytes, not {len(want)}"
    if got != want:
        at = next(i for i, (a, b) in enumerate(zip(got, want, strict=True)) if a != b)
        pytest.fail(f"{what}: first wrong byte at offset {at}: {got[at]:#x}, not {want[at]:#x}")


def seeded(tmp_path: Path) -> tuple[SiteDisk, ManagedDiskStore]:
    """Return a disk and its managed disk, after the initial replication and one log part."""
    disk, store = site(tmp_path), new_store(tmp_path)
    disk.scribble(10)
    disk.close_log()
    apply(store, disk.sync())
    disk.scribble(10)
    disk.tag("first")
    apply(store, [disk.close_log()])
    return disk, store
