"""Plain files in place of managed disks: one file for each state of a disk."""

from __future__ import annotations

import threading
from collections.abc import Collection
from pathlib import Path

from siterig.blockfs.contracts.control import MountedPointSource
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.views import PlainViews
from siterig.blockfs.layers.layer import Layer, RawLayer


class Stores(PlainViews):
    """Plain files in place of managed disks: the state at a position is the file with that number as its name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folders: dict[str, Path] = {}  # by id of a managed disk
        self.held: set[tuple[str, int, str]] = set()
        self.slow_at = ""  # the method that waits for `go_on`
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.opened = threading.Event()
        self.failing: list[OSError] = []  # errors that the next calls of release raise

    def make(self, disk: str, **states: bytes) -> MountedPointSource:
        """Create a managed disk with a state for each position (``p5=...``)."""
        store = self.folder / disk
        store.mkdir()
        for position, data in states.items():
            (store / position.removeprefix("p")).write_bytes(data)
        disk_id = f"00000000-0000-4000-8000-{len(self.folders):012}"
        self.folders[disk_id] = store
        return MountedPointSource(name=disk, disk_id=disk_id)

    def open(self, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
        """Open the file of a state, and keep its holder."""
        store = self.folders[managed_disk]
        if not (store / str(position)).exists():
            raise RigError(Code.InvalidPosition, f"{store.name}: position {position} is not valid")
        self._wait("open")
        self.held.add((store.name, position, holder))
        self.opened.set()
        return RawLayer(store / str(position))

    def _wait(self, method: str) -> None:
        if self.slow_at == method:
            self.begun.set()
            assert self.go_on.wait(30)

    def release(self, managed_disk: str, holder: str) -> None:
        """Forget a holder."""
        store = self.folders[managed_disk]
        self._wait("release")
        if self.failing:
            raise self.failing.pop()
        self.held = {each for each in self.held if (each[0], each[2]) != (store.name, holder)}

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        """Forget all holders of a kind but these."""
        self.held = {each for each in self.held if not each[2].startswith(f"{kind} ") or each[2] in holders}
