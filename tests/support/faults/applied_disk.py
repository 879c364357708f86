"""A managed disk that parts are applied to, and the check that no position of it is wrong in silence."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_view
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core.errors import RigError
from tests.support.disks.disk_history import DISK_ID, Packed
from tests.support.stores.managed_disk import assert_same, site

BLOCK_BYTES = 4096
TRIES = 3


@dataclass
class AppliedDisk:
    """A managed disk in the folder ``root`` with some parts applied; ``errors`` has the codes that the applier met."""

    root: Path
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.disk = site(self.root, 1)
        self.folder = self.root / "disks" / DISK_ID
        self.folder.parent.mkdir()
        self.store = ManagedDiskStore.create(self.folder, disk_id=DISK_ID, size_bytes=len(self.disk.data), created_ns=1)
        self.disk.scribble(10)
        self.disk.close_log()
        self.sync = self.disk.sync()
        self.parts = [self._part() for _ in range(8)]

    def _part(self) -> Packed:
        self.disk.scribble(9)
        return self.disk.close_log()

    def begin(self) -> None:
        """Apply the initial replication and half of the log."""
        self.apply([*self.sync, *self.parts[:4]])
        self.maintain()
        assert not self.errors

    def copied(self, root: Path) -> AppliedDisk:
        """Return an open copy of this managed disk, which is closed, in another folder."""
        made = copy.copy(self)
        made.root, made.errors = root, []
        made.folder = root / "disks" / DISK_ID
        shutil.copytree(self.folder.parent, made.folder.parent)
        made.store = ManagedDiskStore.open(made.folder)
        return made

    def apply(self, parts: list[Packed]) -> None:
        """Apply parts; one that fails is tried again, as the applier does, and the later ones are not."""
        for part in parts:
            if not any(self._try(partial(self.store.apply_part, *part)) for _ in range(TRIES)):
                return

    def maintain(self) -> None:
        """Save a checkpoint, and compact half of the journal."""
        self._try(self.store.compactor.checkpoint)
        valid = [position for position in sorted(self.disk.states) if position <= self.store.watermark().complete_position]
        self._try(lambda: self.store.compactor.compact(valid[-15]))

    def _try(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except RigError as exc:
            self.errors.append(str(exc.code))
            return False
        return True

    def work(self) -> None:
        """Apply the rest of the log."""
        self.apply(self.parts[4:])
        self.maintain()

    def reopen(self) -> None:
        """Open the managed disk again, as after a kill."""
        self.store.close()
        self.store = ManagedDiskStore.open(self.folder)

    def check(self) -> bool:
        """Check every few positions that should be there: each block is right, or cannot be read.

        Returns:
            True if everything could be read, and the scrub found nothing.
        """
        whole = True
        last = self.store.watermark().complete_position
        for position in [each for each in sorted(self.disk.states) if self.store.oldest_position <= each <= last][::5]:
            try:
                view = open_view(self.folder, position)
            except RigError as exc:
                assert exc.code in ("StoreCorrupt", "StoreIo", "InvalidPosition"), exc
                whole = False
                continue
            state = self.disk.states[position]
            assert view.size_bytes == len(state)
            for at in range(0, len(state), BLOCK_BYTES):
                length = min(BLOCK_BYTES, len(state) - at)
                try:
                    data = view.pread(at, length)
                except OSError:
                    whole = False
                else:
                    assert_same(data, state[at : at + length], f"position {position}, block at {at}")
            view.close()
        return not list(scrub(self.folder)) and whole

    def complete(self) -> bool:
        """Return True if all parts are applied."""
        return self.store.watermark().log_seq == self.parts[-1][0].last
