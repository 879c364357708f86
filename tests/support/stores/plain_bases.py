"""Plain files in place of managed disks, as backings of disks that are hydrated."""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.disk.views import PlainViews
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.layers.layer import Layer, RawLayer

SIZE = (3 << 20) + 512


HOLE = (1 << 20, 1 << 20)
"""The offset and length of the hole in the base."""


def content(seed: int = 1) -> bytes:
    """Return random bytes with a hole."""
    data = bytearray(random.Random(seed).randbytes(SIZE))
    data[HOLE[0] : sum(HOLE)] = bytes(HOLE[1])
    return bytes(data)


def make_store(store: Path) -> Path:
    """Create a folder with the content in the file ``base``."""
    store.mkdir()
    with (store / "base").open("wb") as file:
        file.write(content()[: HOLE[0]])
        file.seek(sum(HOLE))
        file.write(content()[sum(HOLE) :])
    return store


class Bases(PlainViews):
    """Managed disks in ``folder``, with their holder as text in a file, so that a kill does not release them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, managed_disk: str, _position: int, holder: str, *, stored: bool = False) -> Layer:
        """Open the base, and keep the holder in a file."""
        store = self._folder / managed_disk
        (store / "holder").write_text(holder)
        return RawLayer(store / "base")

    def release(self, managed_disk: str, holder: str) -> None:
        """Remove the holder's file."""
        store = self._folder / managed_disk
        if (store / "holder").exists() and (store / "holder").read_text() == holder:
            (store / "holder").unlink()

    def reconcile(self, _kind: str, holders: Collection[str]) -> None:
        """Keep the names of all holders."""
        self.kept = set(holders)


def open_host(tmp_path: Path) -> DiskHost:
    """Return a disk host over these bases, whose logs may have any length."""
    whole_log = LogPolicy(kept_share_max=None)
    return DiskHost(tmp_path / "disks", tmp_path / "mnt", views=Bases(tmp_path), policy=whole_log)
