"""A managed disk's files: what is bad or missing is refused by its name, and nobody else may read them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from siterig.azure_emu.disks.pins import pin
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_view
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files.checked_document import CheckedDocument
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES, SiteDisk
from tests.support.stores.managed_disk import apply, assert_same, new_store, seeded, whole


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def refused_everywhere(store: ManagedDiskStore, position: int, names: Path, codes: tuple[str, ...]) -> None:
    for attempt in (lambda: ManagedDiskStore.open(store.folder), lambda: open_view(store.folder, position)):
        with pytest.raises(RigError) as caught:
            attempt()
        assert caught.value.code in codes
        assert str(names) in caught.value.message


@pytest.mark.slow
def test_every_flipped_bit_of_the_metadata_is_named(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    for name in ("disk.json", "progress"):
        path = store.folder / name
        good = path.read_bytes()
        for at in range(len(good) - 1):  # the last byte is a line feed, which says nothing
            flip(path, at)
            try:
                refused_everywhere(store, disk.position, path, ("StoreCorrupt",))
            except pytest.fail.Exception:
                assert good[at : at + 1].isspace(), f"{name}: byte {at} is not covered"
        path.write_bytes(good[: len(good) // 2])
        refused_everywhere(store, disk.position, path, ("StoreCorrupt",))
        path.write_bytes(good)
    ManagedDiskStore.open(store.folder)


def test_a_truncated_or_missing_journal_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 1)
    disk, store = seeded(tmp_path)
    early = disk.position
    disk.scribble(5)
    apply(store, [disk.close_log()])
    disk.scribble(5)
    apply(store, [disk.close_log()])
    first, second, third = sorted((store.folder / "journal").iterdir())
    good = second.read_bytes()
    second.write_bytes(good[:-100])
    refused_everywhere(store, disk.position, second, ("StoreCorrupt",))
    second.unlink()
    refused_everywhere(store, disk.position, third, ("StoreCorrupt",))
    assert_same(whole(open_view(store.folder, early)), disk.states[early], "what is before the damage")
    second.write_bytes(good)
    first.unlink()
    refused_everywhere(store, early, second, ("StoreCorrupt",))


def test_a_base_of_another_length_is_named(tmp_path: Path) -> None:
    disk, store = seeded(tmp_path)
    base = store.folder / "base.img"
    with base.open("r+b") as file:
        file.truncate(SIZE_BYTES - 4096)
    refused_everywhere(store, disk.position, base, ("StoreCorrupt",))
    base.unlink()
    refused_everywhere(store, disk.position, base, ("StoreCorrupt",))


def test_another_format_version_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    monkeypatch.setattr("siterig.azure_emu.disks.metadata._DISK_DOCUMENT", CheckedDocument(4))
    with pytest.raises(RigError) as caught:
        ManagedDiskStore.open(store.folder)
    assert caught.value.code == "StoreVersion"
    assert caught.value.message == f"{store.folder / 'disk.json'}: managed disk format 2; this siterig reads 4"


def test_impossible_disks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RigError) as caught:
        ManagedDiskStore.create(tmp_path / DISK_ID, disk_id=DISK_ID, size_bytes=1000, created_ns=1)
    assert caught.value.message == f"disk {DISK_ID}: size 1000 is not a positive multiple of 512 bytes"
    new_store(tmp_path)
    with pytest.raises(RigError) as caught:
        new_store(tmp_path)
    assert caught.value.code == "DiskExists"
    with pytest.raises(RigError) as caught:
        open_view(tmp_path / "nothing", 1)
    assert caught.value.code == "DiskNotFound"


def test_only_the_owner_can_read_a_managed_disk(tmp_path: Path) -> None:
    disk, store = SiteDisk(tmp_path, random.Random(3)), new_store(tmp_path)
    apply(store, disk.sync())
    for _ in range(3):
        disk.scribble(20)
        apply(store, [disk.close_log()])
    pin(store.folder, disk.position, "vm web01/os")
    store.compactor.compact(store.oldest_position + 40)
    store.compactor.checkpoint()
    store.close()
    for path in [store.folder, *store.folder.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
