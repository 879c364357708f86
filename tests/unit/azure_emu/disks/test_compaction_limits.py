"""One compaction has limits of bytes, entries and partial blocks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.core import failpoint
from tests.support.disks.disk_history import SiteDisk
from tests.support.stores.managed_disk import apply, new_store

BLOCK = 4096


def slices(store: ManagedDiskStore, upto: int) -> int:
    announced: list[str] = []
    with failpoint.armed("store.compaction.announced", announced.append):
        store.compactor.compact(upto)
    return len(announced)


def disk_with(tmp_path: Path, offset: int, length: int) -> tuple[ManagedDiskStore, SiteDisk]:
    """Twenty parts of ten writes each, all so far into a block and so long."""
    disk, store = SiteDisk(tmp_path, random.Random(1)), new_store(tmp_path)
    apply(store, disk.sync())
    for part in range(20):
        for block in range(10):
            disk.write(((part + block) % 40) * BLOCK + offset, disk.rng.randbytes(length))
        apply(store, [disk.close_log()])
    return store, disk


@pytest.mark.parametrize(
    ("offset", "length", "least"), [(0, BLOCK, 1), (0, 5 * BLOCK, 1), (512, BLOCK, 6), (0, 512, 6), (100, 3 * BLOCK, 6)]
)
def test_blocks_that_change_in_part_make_slices_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: int, length: int, least: int
) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.history.SLICE_PARTIAL_BLOCKS", 60)
    store, disk = disk_with(tmp_path, offset, length)
    taken = slices(store, disk.position)
    assert taken == 1 if least == 1 else taken >= least
    assert store.oldest_position == disk.position
    store.close()


def test_discards_count_as_changes_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.history.SLICE_PARTIAL_BLOCKS", 60)
    disk, store = SiteDisk(tmp_path, random.Random(1)), new_store(tmp_path)
    apply(store, disk.sync())
    for part in range(10):
        for block in range(20):
            disk.zero((part + block) * BLOCK + 7, 100)
        apply(store, [disk.close_log()])
    assert slices(store, disk.position) >= 5
    store.close()
