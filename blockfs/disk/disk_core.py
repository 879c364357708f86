"""The parts of an open disk that all of its components share: its state, its layer and the disk in C."""

from __future__ import annotations

import errno
import threading
from typing import Any

from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_guard import DiskGuard
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.layer import WritableLayer
from siterig.cext._core import ffi, lib


class DiskCore:
    """State, layer and C object of one open disk.

    Attributes:
        paths: the names of the disk's files.
        state: the content of ``NAME.disk``.
        layer: the bytes of the disk, as they are stored.
        options: the options of its host.
        cipher: encrypts the bytes of its files; None if they are not encrypted.
        guard: finds changes by other programs; None for a state of the past.
        thread_lock: held by everything that uses the disk in C on another thread, so that it is not freed meanwhile.
        counted_since_ns: wall time at which the counters began.
    """

    def __init__(
        self,
        paths: DiskPaths,
        *,
        state: DiskState,
        layer: WritableLayer,
        options: DiskOptions,
        cipher: DiskCipher | None = None,
    ) -> None:
        """Open the disk in C over ``layer``, which belongs to this object from now on."""
        self.paths = paths
        self.state = state
        self.layer = layer
        self.options = options
        self.cipher = cipher
        self.guard: DiskGuard | None = None
        self.thread_lock = threading.Lock()
        self.open_in_c()

    def open_in_c(self) -> None:
        """Make the disk in C over the present layer."""
        self._c = lib.sr_disk_new(self.layer.c, self.options.positions.c, self.options.event_fd)
        if self._c == ffi.NULL:
            raise MemoryError
        if self.cipher is not None:
            lib.sr_disk_set_cipher(self._c, self.cipher.c)
        lib.sr_disk_allow_growth(self._c, self.growth_step_bytes)
        lib.sr_disk_fence(self._c, self.state.fenced)
        self.counted_since_ns = self.options.clock.wall_ns()

    def close_in_c(self) -> None:
        """End the requests that still run, and close all files."""
        with self.thread_lock:
            if self._c is not None:
                if self.guard is not None:
                    self.guard.close()
                lib.sr_disk_free(self._c)
                self._c = None
                self.layer.close()

    @property
    def c(self) -> Any:
        """The disk in C.

        Raises:
            OSError: ``EBADF`` if the disk is closed.
        """
        if self._c is None:
            raise OSError(errno.EBADF, f"disk {self.paths} is closed")
        return self._c

    @property
    def is_open(self) -> bool:
        """True until the disk is closed."""
        return self._c is not None

    @property
    def size_bytes(self) -> int:
        """The size of the disk."""
        return self.layer.size_bytes

    @property
    def growth_step_bytes(self) -> int:
        """The sector size, of which each new size is a multiple; 0 if the disk cannot grow."""
        return self.state.sector_bytes if self.options.can_grow and not self.options.read_only else 0

    def save(self, **changes: object) -> None:
        """Change fields of the state, durably."""
        state = self.state.model_copy(update=changes)
        state.save(self.paths.file("disk"))
        self.state = state
