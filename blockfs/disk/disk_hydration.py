"""Hydration of one disk: it copies all blocks that its overlay lacks from the backing, and then detaches the backing.

:mod:`siterig.blockfs.disk.hydration` drives it, and states the fault contract.
"""

from __future__ import annotations

import errno

from siterig.blockfs.changelog.disk_log import check
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.sizes import DISK_BYTES_MAX
from siterig.blockfs.disk.disk_core import DiskCore
from siterig.blockfs.disk.disk_files import convert_to_raw, remove_maps
from siterig.blockfs.layers.layer import OverlayLayer, RawLayer
from siterig.cext._core import lib


class DiskHydration:
    """Makes one disk independent of the managed disk under it.

    Attributes:
        stopped_by: the error that stops the hydration now; it is tried again.  None if nothing stops it.
    """

    def __init__(self, core: DiskCore) -> None:
        self.stopped_by: RigError | None = None
        self._core = core

    def begin(self) -> None:
        """Record that the disk is to be hydrated, now and after a restart; does nothing without a managed disk under it."""
        if self._core.state.managed_disk is not None and not self._core.state.promoting:
            self._core.save(promoting=True)

    @property
    def done_bytes(self) -> int:
        """The offset below which the disk has all of its blocks."""
        core = self._core
        return int(lib.sr_disk_hydrated_bytes(core.c)) if isinstance(core.layer, OverlayLayer) else core.size_bytes

    def hydrate(self, bytes_max: int) -> bool:
        """Copy up to about ``bytes_max`` bytes of missing blocks; return True if no block is missing.

        Any thread may call it, one at a time.
        """
        with self._core.thread_lock:
            return check(lib.sr_disk_hydrate(self._core.c, bytes_max)) == 1

    def flush(self) -> None:
        """Put all copied blocks on stable storage; the log has no record of them."""
        with self._core.thread_lock:
            check(lib.sr_disk_sync(self._core.c))

    def convert_to_raw(self) -> bool:
        """Make the overlay's file, which holds all blocks durably, the file of a raw disk from the next start on.

        Returns:
            False if the disk has grown meanwhile: then more is to be copied.
        """
        core = self._core
        if not lib.sr_disk_is_hydrated(core.c):
            return False
        core.state = convert_to_raw(core.paths, core.state)
        if core.guard is not None:
            core.guard.files.renamed(core.paths.file("img"))
        return True

    def detach_backing(self) -> None:
        """Release the view under the disk, after :meth:`convert_to_raw`; open handles continue.  Any thread may call it."""
        core = self._core
        with core.thread_lock:
            while (done := int(lib.sr_disk_detach_backing(core.c))) == -errno.EAGAIN:  # it has grown, with zeros
                check(lib.sr_disk_hydrate(core.c, DISK_BYTES_MAX))
            check(done)
            core.layer = RawLayer.of_overlay(core.layer, core.paths.file("img"))
        remove_maps(core.paths)
