"""Disks that are encrypted with one key, without a vault."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths, make_raw
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState, KeyNote
from siterig.blockfs.disk.views import PlainViews
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.layer import Layer

KEY_ID = "5b0b2c64-93a0-4f0c-9d5e-3f3f1e3f0c11"
CIPHER = DiskCipher(bytes(range(64)))


class OneKey(PlainViews):
    """Has a key and no managed disk."""

    def open(self, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
        """Refuse: a hydrated disk needs no managed disk."""
        raise NotImplementedError

    def release(self, managed_disk: str, holder: str) -> None:
        """Do nothing."""

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Do nothing."""

    def key_id(self, _managed_disk: str) -> str | None:
        """Return the id of the key."""
        return KEY_ID

    def cipher(self, _managed_disk: str, key_id: str) -> DiskCipher:
        """Return the cipher."""
        assert key_id == KEY_ID
        return CIPHER


def make_encrypted(paths: DiskPaths, size_bytes: int) -> None:
    """Make an encrypted disk of zeros, which needs no managed disk, as after a hydration."""
    make_raw(paths, size_bytes)
    state = DiskState.load(paths.file("disk"))
    state.model_copy(update={"key": KeyNote(managed_disk="deleted", key_id=KEY_ID)}).save(paths.file("disk"))


def open_encrypted(folder: Path, positions: PositionCounter, options: DiskOptions | None = None) -> Disk:
    """Open the encrypted disk ``os`` of VM ``web01`` in a folder."""
    return Disk.open(DiskPaths(folder, "web01", "os"), options or DiskOptions(positions), OneKey())
