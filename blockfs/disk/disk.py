"""One virtual disk: a writable layer, its change log, perhaps a snapshot.

C moves the bytes (cext/src/disk/disk.c), for the requests of the mount and for :meth:`Disk.read` and :meth:`Disk.write`
alike.  This module opens and closes disks; :mod:`siterig.blockfs.disk.disk_tracking` has the change log,
:mod:`siterig.blockfs.disk.disk_hydration` the copying from a managed disk, :mod:`siterig.blockfs.disk.disk_report` the
descriptions for other roles.

Fault contract
--------------
* A record is in the log before its bytes are on the disk; when a flush has returned, both are on stable storage.
* After kill -9 at any moment: the torn tail of the log is truncated, the last record is written to the disk again, and the
  log continues in the same generation.
* After a power loss, corruption of the log, or a failed fsync: the disk opens, tracking is off, and ``needs_resync`` has the
  reason.  After a failed fsync no flush succeeds until the disk is opened again: it is unknown which bytes were lost.
* A log that becomes too long (or full, by policy) is abandoned for a bitmap of the changed chunks
  (:mod:`siterig.blockfs.disk.disk_tracking`).
* A failed write (disk full, ...) leaves log and disk unchanged, or changes both by the same beginning of the data.
* A change by another program is noticed at the next opening (disk_identity.py), or while the disk is open (disk_guard.py):
  the log is abandoned.  Lost bytes are never read as zeros, and no write makes a hole of them: then no flush succeeds
  (``EIO``), and after at most 16 writes no write does.  This also holds if the file has no name, or a map was truncated.
* The logs of a generation that cannot continue are kept until the resync that replaces it has been applied.
* The files of an encrypted disk (of a recovered VM) have its bytes only in encrypted form: overlay or raw file, log, store
  of a snapshot.  Bytes are encrypted in lines of 16; if the host's disk takes a part of a line and refuses the rest twice,
  that line has undefined bytes, and the log is abandoned.

Threads: any thread may read and write bytes.  The rest belongs to the trio thread, unless a method says otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from pathlib import Path
from typing import Any

import trio

from siterig.blockfs.changelog.disk_log import check
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import DISK_BYTES_MAX
from siterig.blockfs.disk import disk_identity
from siterig.blockfs.disk.disk_core import DiskCore
from siterig.blockfs.disk.disk_faults import DiskFaults
from siterig.blockfs.disk.disk_files import DiskPaths, finish_hydration, open_cipher, open_layer, remove_overlay
from siterig.blockfs.disk.disk_guard import DiskGuard
from siterig.blockfs.disk.disk_hydration import DiskHydration
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import ClosedNote, DiskState
from siterig.blockfs.disk.disk_tracking import DiskTracking
from siterig.blockfs.disk.file_attributes import DiskAttributes, PastState
from siterig.blockfs.disk.snapshot import Snapshot, SnapshotSource, begin_snapshots
from siterig.blockfs.disk.views import Views
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.layer import RawLayer, WritableLayer
from siterig.blockfs.watch.file_stamps import FileStamp
from siterig.blockfs.watch.own_file import OwnFiles
from siterig.cext._core import ffi, lib


class Disk:
    """One open disk.

    Attributes:
        handles: how often the disk is open through the mount.
        opening: an id that is different each time the disk is opened (see ``DiskInfo.opening``).
        snapshot: the disk's snapshot, if it has one.
        tracking: its change log.
        hydration: the copying from the managed disk under it.
        attributes: mode, owner and times of its file in the mount.
        faults: the fault rules that its guest meets.
    """

    def __init__(
        self,
        paths: DiskPaths,
        *,
        state: DiskState,
        layer: WritableLayer,
        options: DiskOptions,
        cipher: DiskCipher | None = None,
        past: PastState | None = None,
    ) -> None:
        """Make a disk over ``layer``, which belongs to it from now on, without its log; see :meth:`over`.

        Args:
            paths: the names of the disk's files.
            state: the content of ``NAME.disk``.
            layer: the bytes of the disk, as they are stored.
            options: the options of its host.
            cipher: encrypts the bytes of its files; None if they are not encrypted.
            past: position and time of the state, if the disk is shown read-only as it was.
        """
        self._core = DiskCore(paths, state=state, layer=layer, options=options, cipher=cipher)
        self.handles = 0
        self.opening = str(uuid.uuid4())
        self.snapshot: Snapshot | None = None
        self.tracking = DiskTracking(self._core)
        self.hydration = DiskHydration(self._core)
        self.attributes = DiskAttributes(self._core, past)
        self.faults = DiskFaults(self._core)
        self._known: list[FileStamp] = []  # of the clean close before

    @property
    def c(self) -> Any:
        """The disk in C.

        Raises:
            OSError: ``EBADF`` if the disk is closed.
        """
        return self._core.c

    @property
    def is_open(self) -> bool:
        """True until the disk is closed."""
        return self._core.is_open

    @property
    def paths(self) -> DiskPaths:
        """The names of the disk's files."""
        return self._core.paths

    @property
    def state(self) -> DiskState:
        """The content of ``NAME.disk``."""
        return self._core.state

    @property
    def layer(self) -> WritableLayer:
        """The bytes of the disk, as they are stored."""
        return self._core.layer

    @property
    def cipher(self) -> DiskCipher | None:
        """The cipher of the disk's files; None if they are not encrypted."""
        return self._core.cipher

    @property
    def options(self) -> DiskOptions:
        """The options of the disk's host."""
        return self._core.options

    @property
    def clock(self) -> Clock:
        """The clock of the disk's host."""
        return self._core.options.clock

    @property
    def guard(self) -> DiskGuard | None:
        """The guard that finds changes by other programs; None for a state of the past."""
        return self._core.guard

    @property
    def counted_since_ns(self) -> int:
        """Wall time at which the counters began, in nanoseconds since 1970."""
        return self._core.counted_since_ns

    # --- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, paths: DiskPaths, options: DiskOptions, views: Views | None) -> Disk:
        """Open the disk whose files exist at ``paths``.

        Raises:
            RigError: ``DiskCorrupt``, ``DiskStateCorrupt``, ``StateVersion``, ``NotARecoveryHost``, ``BrokenVhdChain``,
                ``KeyRevoked``, ``KeyMissing``.
        """
        state = finish_hydration(paths, DiskState.load(paths.file("disk")))
        paths.file("snapshot").unlink(missing_ok=True)
        disk_identity.check_files_there(paths, state)
        found = disk_identity.identify(paths, state)
        state = found.state
        if found.why is not None:
            options.report_changed(paths, found.why)
        cipher = open_cipher(paths, state, views)
        layer = open_layer(paths, state, views)
        return cls.over(paths, state=state, layer=layer, options=options, cipher=cipher, closed=found.closed)

    @classmethod
    def over(
        cls,
        paths: DiskPaths,
        *,
        state: DiskState,
        layer: WritableLayer,
        options: DiskOptions,
        closed: ClosedNote | None,
        cipher: DiskCipher | None = None,
    ) -> Disk:
        """Open a disk over an open layer, and recover its log if it was tracked.

        Args:
            paths: the names of the disk's files.
            state: the content of ``NAME.disk``.
            layer: the bytes of the disk; the disk owns it from now on.
            options: the options of its host.
            closed: the note of the last clean close, which has been taken out of the state; None if there was none.
            cipher: encrypts the bytes of its files; None if they are not encrypted.
        """
        disk = cls(paths, state=state, layer=layer, options=options, cipher=cipher)
        try:
            disk._recover(closed)
        except BaseException:
            disk.abandon()
            raise
        return disk

    def _recover(self, closed: ClosedNote | None) -> None:
        if closed is not None:
            self._known = closed.files
        if self.size_bytes > self.state.size_bytes:  # a kill came between its growth and the note of it
            self._core.save(size_bytes=self.size_bytes)
        if self.state.tracked and not self.tracking.recover(closed.log if closed is not None else None):
            self.attributes.mark_changed()
        self.tracking.resume_dirty_tracking()
        self._guard_files()

    def _guard_files(self) -> None:
        path, *maps = disk_identity.own_files(self.paths, self.state)
        own, tracking = OwnFiles(path, self.layer.fileno(), maps), self.tracking
        self._core.guard = DiskGuard(
            self.c, self.paths, own, self._core.options, log=lambda: tracking.current_log, ended=tracking.note_abandoned
        )

    # --- bytes --------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """The size of the disk."""
        return self._core.size_bytes

    @property
    def file_trouble(self) -> str | None:
        """The change that another program made to the disk's files; None if none is known."""
        return self.guard.trouble if self.guard is not None else None

    @property
    def read_only(self) -> bool:
        """True if the disk cannot be opened for writing."""
        return self._core.options.read_only or self.state.fenced

    @property
    def stored_bytes(self) -> int:
        """The space that the disk's bytes occupy on the host.

        For a disk over a managed disk the value may be too high; but it is less than the size if the disk has a hole.
        """
        stored_bytes = self.layer.stored_bytes
        if stored_bytes < self.size_bytes or isinstance(self.layer, RawLayer):
            return stored_bytes
        has_hole = lib.sr_disk_seek(self.c, 0, os.SEEK_HOLE) < self.size_bytes
        return self.size_bytes - self.state.sector_bytes if has_hole else self.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Return up to ``length`` bytes from ``offset``; fewer at the end of the disk."""
        data = bytearray(length)
        done = check(lib.sr_disk_read(self.c, ffi.from_buffer(data), length, offset))
        return bytes(data[:done])

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Log the data, then write it.

        Returns:
            The number of bytes written.  It is smaller than ``len(data)`` if the rest is past the end of the disk, or if
            the host's disk became full during the write.

        Raises:
            OSError: log and disk are unchanged.  ``ENOSPC``: all of the data is past the end, or the host's disk is full.
        """
        if data and offset >= self.size_bytes:
            raise OSError(errno.ENOSPC, f"write of {len(data)} bytes at {offset} is past the end of disk {self.paths}")
        return check(int(lib.sr_disk_write(self.c, ffi.from_buffer(data), len(data), offset)))

    def zero(self, offset: int, length: int, *, discard: bool = False) -> None:
        """Make the range read as zeros; the part of it that is past the end is ignored."""
        check(lib.sr_disk_zero(self.c, lib.SR_DISCARD if discard else lib.SR_ZERO, offset, length))

    def resize(self, size_bytes: int) -> None:
        """Grow the disk.

        Raises:
            RigError: ``InvalidDiskSize`` if that would shrink the disk, or the size is no multiple of the sector size.
        """
        if not self.size_bytes <= size_bytes <= DISK_BYTES_MAX or size_bytes % self.state.sector_bytes:
            raise RigError(
                Code.InvalidDiskSize,
                f"disk {self.paths}: new size is {size_bytes} bytes; it must be a multiple of {self.state.sector_bytes}, "
                f"at least {self.size_bytes} (a disk is never shrunk) and at most {DISK_BYTES_MAX >> 40} TiB",
            )
        if not self._core.options.can_grow:
            raise RigError(Code.InvalidDiskSize, f"disk {self.paths}: cannot grow: other data follows it in its file")
        check(lib.sr_disk_resize(self.c, size_bytes))
        self._note_growth()

    def fence(self, *, fenced: bool) -> None:
        """Refuse every write from now on (``EROFS``), durably, or allow writes again.

        Raises:
            OSError: the state cannot be stored, and nothing has changed.
        """
        before = self.state.fenced
        lib.sr_disk_fence(self.c, fenced or before)  # a write that is acknowledged is not one after the fence
        try:
            if fenced != before:
                self._core.save(fenced=fenced)
        finally:
            lib.sr_disk_fence(self.c, self.state.fenced)

    @property
    def growth_step_bytes(self) -> int:
        """The number of which each new size is a multiple; 0 if the disk cannot grow."""
        return self._core.growth_step_bytes

    def take_event(self) -> bool:
        """Return True if this disk has raised its event since the last call."""
        return self.is_open and bool(lib.sr_disk_take_event(self.c))

    def note_events(self) -> None:
        """Record in the state the effects of requests: the disk has grown, or its log is abandoned."""
        if self._core.is_open:
            self._note_growth()
            self.tracking.note_abandoned()

    def _note_growth(self) -> None:
        size_bytes = self.size_bytes
        if size_bytes == self.state.size_bytes:
            return
        lib.sr_log_limit(self.c, self._core.options.policy.kept_bytes_max(size_bytes))
        self.layer.sync()  # after a power loss the state must not name a larger size than the file has
        self._core.save(size_bytes=size_bytes)

    def released(self) -> None:
        """Count a handle that was closed."""
        self.handles -= 1

    async def flush(self) -> None:
        """Put everything that was written before the call on stable storage, in the log and on the disk.

        Raises:
            OSError: it is not; as it is unknown which bytes were lost, the disk needs a resync.
        """
        await trio.to_thread.run_sync(self.flush_now)

    def flush_now(self) -> None:
        """Do what :meth:`flush` does, in the calling thread."""
        with self._core.thread_lock:
            check(lib.sr_disk_flush(self.c))

    # --- snapshot -----------------------------------------------------------------------------------------------

    def snapshot_source(self) -> SnapshotSource:
        """Return the parts of the disk of which a snapshot is made.

        Raises:
            RigError: ``NotTracked``; ``SnapshotExists``.
        """
        _ = self.tracking.log
        if self.snapshot is not None:
            raise RigError(Code.SnapshotExists, f"disk {self.paths} has a snapshot already")
        return SnapshotSource(self._core, self.tracking)

    def begin_snapshot(self) -> Snapshot:
        """Begin copy-before-write; the next segment of the log begins with the first record after the snapshot."""
        return begin_snapshots_of([self])[0]

    def end_snapshot(self) -> None:
        """Remove the snapshot, if there is one."""
        if self.snapshot is not None:
            self.snapshot.close()
            self.snapshot = None

    # --- the end ------------------------------------------------------------------------------------------------

    @property
    def staging(self) -> Path:
        """The file in which a disk that returns from the recovery side is assembled."""
        return self.paths.file("staging")

    def replace(self) -> None:
        """Put the staged file in place of the disk's file, and stop tracking.

        The state is written first: a kill in between leaves the old bytes marked for a resync, never the new bytes with the
        old log.

        Raises:
            RigError: ``InvalidDiskSize`` if the staged file is smaller than the disk.
        """
        fresh = RawLayer(self.staging, writable=True)
        fresh.sync()
        if fresh.size_bytes < self.size_bytes:
            fresh_bytes = fresh.size_bytes
            fresh.close()
            raise RigError(
                Code.InvalidDiskSize,
                f"{self.staging}: has {fresh_bytes} bytes; the disk has {self.size_bytes} and is never shrunk",
            )
        self.tracking.replace()
        self.staging.rename(self.paths.file("img"))
        sync_folder(self.paths.folder)
        self.tracking.delete_all()
        self._core.close_in_c()
        self._core.layer = fresh
        self._core.open_in_c()
        self.faults.reopened()
        self._core.save(size_bytes=fresh.size_bytes, kind="raw", parent=None)  # not before: the old bytes may be fewer
        self._guard_files()
        remove_overlay(self.paths)

    def close(self) -> None:
        """Close cleanly: the disk first, then the clean mark of its log, durably.

        Requests that come from now on fail (``EIO``).
        """
        lib.sr_disk_end_requests(self.c)  # a write after the clean mark would not be in the log
        if self.guard is None or self.guard.look_at_the_end() is None:
            self.note_events()
            self.attributes.store_times()
        self.end_snapshot()
        with self._core.thread_lock:
            closed = self.tracking.close_clean()
            if closed is None:
                with contextlib.suppress(*([OSError] if self.file_trouble else [])):  # the file may be lost
                    self.layer.sync()
        self._core.close_in_c()
        if closed is not None:
            digests = self._core.options.digests
            self._core.save(closed=disk_identity.closed_note(self.paths, self.state, closed, self._known, digests))
        if self.file_trouble is None:
            self.tracking.end_dirty_tracking()

    def abandon(self) -> None:
        """Release everything without a sync, as a kill does."""
        self.end_snapshot()
        self.tracking.abandon()
        self._core.close_in_c()


def begin_snapshots_of(disks: list[Disk]) -> list[Snapshot]:
    """Begin snapshots of all these disks at one position.

    Raises:
        RigError: ``NotTracked``, ``SnapshotExists``; no snapshot was begun then.
    """
    snapshots = begin_snapshots([disk.snapshot_source() for disk in disks])
    for disk, snapshot in zip(disks, snapshots, strict=True):
        disk.snapshot = snapshot
    return snapshots
