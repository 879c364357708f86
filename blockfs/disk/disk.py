"""One virtual disk: a writable layer, its change log, perhaps a snapshot.

The bytes go through C (cext/src/disk/disk.c), those of the mount's requests and of :meth:`Disk.read` and
:meth:`Disk.write` alike; here is what happens seldom: opening, recovery, tracking, tags, giving up.
What others are told of a disk is in :mod:`siterig.blockfs.disk.disk_report`.

Fault contract
--------------
* A record is in the log before its bytes are on the disk; what a flush has returned for is on stable storage in both.
* After kill -9 at any moment: the torn tail of the log is cut, the last record is written to the disk again, and
  the log goes on in the same generation.
* After power loss, or rot in the log, or a failed fsync: the disk opens, tracking is off, ``needs_resync`` says why.
  After a failed fsync no flush succeeds any more until the disk is opened again: what was lost cannot be told.
* A log that becomes too long (or full, by policy) is abandoned for a bitmap of what changed, in one step under the disk's
  lock; the mark is in the dirty file before the first write that is not logged (blockfs/changelog/dirty_bitmap.py).
* A failed write (disk full, ...) leaves log and disk as they were, or alike as far as it came.
* A change by another program is noticed at the next opening (disk_identity.py), or while the disk is open (disk_guard.py):
  the log is abandoned.  Lost bytes are never read as zeros, nor does a write make a hole of them; no flush succeeds then
  (``EIO``), nor, after 16 at most, a write; so too if the file has no name, or a map was cut.
* The logs of a generation that cannot go on are kept until the resync that replaces it has been applied.

Bytes: any thread.  The rest: the trio thread, but for :meth:`Disk.maintain`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import structlog
import trio

from siterig.blockfs.changelog import dirty_bitmap
from siterig.blockfs.changelog.disk_log import DiskLog, LogExtent, check, find_segments, resume_dirty_tracking
from siterig.blockfs.changelog.recovery import Recovered, recover_log
from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.changelog.tags import TagSeen, encode_tag
from siterig.blockfs.contracts.control import SegmentInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import DISK_BYTES_MAX
from siterig.blockfs.disk import disk_identity
from siterig.blockfs.disk.disk_files import DiskPlace, finish_promotion, make_raw_of_top, open_layer, remove_maps, remove_top
from siterig.blockfs.disk.disk_guard import DiskGuard
from siterig.blockfs.disk.disk_rules import DiskRules
from siterig.blockfs.disk.disk_state import ClosedNote, DiskState, ShownAttributes
from siterig.blockfs.disk.file_attributes import DiskAttributes, PastState
from siterig.blockfs.disk.snapshot import Snapshot, begin_snapshots
from siterig.blockfs.disk.views import Views
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.layer import OverlayLayer, RawLayer, WritableLayer
from siterig.blockfs.watch.file_stamps import FileStamp
from siterig.blockfs.watch.own_file import OwnFiles
from siterig.cext._core import ffi, lib

_log = structlog.get_logger("siterig.blockfs.disk.disk")


class Disk:
    """One disk.  ``handles`` counts how often it is open through the mount.  ``past``: it is a state of the past."""

    def __init__(
        self, place: DiskPlace, *, state: DiskState, layer: WritableLayer, rules: DiskRules, past: PastState | None = None
    ) -> None:
        self.place = place
        self.state = state
        self.handles = 0
        self.opening = str(uuid.uuid4())  # with the next: see siterig.blockfs.contracts.control.DiskInfo
        self.opened_seq: int | None = None
        self.snapshot: Snapshot | None = None
        self.promotion_stopped_by: RigError | None = None
        self.not_continued: RigError | None = None
        self.guard: DiskGuard | None = None  # of a state of the past there is none
        self.layer = layer
        self.attributes = DiskAttributes(self, past)
        self._known: list[FileStamp] = []  # of the orderly end before
        self._rules = rules
        self._log: DiskLog | None = None
        self._dirty_tracking = False  # the log was given up, and the dirty file has all that changed since
        self._thread_lock = threading.Lock()  # what runs in other threads keeps the disk in C from being freed
        self._open_in_c()

    def _open_in_c(self) -> None:
        self._c = lib.sr_disk_new(self.layer.c, self._rules.positions.c, self._rules.event_fd)
        if self._c == ffi.NULL:
            raise MemoryError
        lib.sr_disk_allow_growth(self._c, self.growth_step_bytes)
        self.counted_since_ns = time.time_ns()

    @property
    def c(self) -> Any:
        """The disk in C; ``EBADF`` once it is closed."""
        if self._c is None:
            raise OSError(errno.EBADF, f"disk {self.place} is closed")
        return self._c

    # --- opening ------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, place: DiskPlace, rules: DiskRules, views: Views | None) -> Disk:
        """Open what is there; see :meth:`over`."""
        state = finish_promotion(place, DiskState.load(place.file("disk")))
        place.file("snapshot").unlink(missing_ok=True)
        disk_identity.check_files_there(place, state)
        found = disk_identity.identify(place, state)
        state = found.state
        if found.why is not None:
            rules.tell_changed(place, found.why)
        layer = open_layer(place, state, views)
        return cls.over(place, state=state, layer=layer, rules=rules, closed=found.closed)

    @classmethod
    def over(
        cls, place: DiskPlace, *, state: DiskState, layer: WritableLayer, rules: DiskRules, closed: ClosedNote | None
    ) -> Disk:
        """A disk over an open layer, which it owns from now on; its log is recovered if it was tracked.

        ``closed``: what was noted when it was last closed in order, and taken back.
        """
        disk = cls(place, state=state, layer=layer, rules=rules)
        try:
            if closed is not None:
                disk._known = closed.files
            if layer.size_bytes > state.size_bytes:  # a kill came between its growing and the note of it
                disk._set(size_bytes=layer.size_bytes)
            if state.tracked:
                disk._recover(closed.log if closed is not None else None)
            if disk.state.needs_resync in dirty_bitmap.NOTED:
                disk._go_on_noting()
            disk._guard_files()
        except BaseException:
            disk.abandon()
            raise
        return disk

    def _guard_files(self) -> None:
        path, *maps = disk_identity.own_files(self.place, self.state)
        own = OwnFiles(path, self.layer.fileno(), maps)
        self.guard = DiskGuard(self.c, self.place, own, self._rules, log=lambda: self._log, ended=self.note_abandoned_log)

    def _recover(self, closed: LogExtent | None) -> None:
        """Continue the log, or note why that is not possible.  ``closed``: what it had when it was closed in order."""
        reason = disk_identity.noted_reason(self.place, self.state)
        if reason is not None:
            self._set(tracked=False, needs_resync=reason)
            return
        try:
            found = recover_log(
                self.place.folder, self.place.name, disk_id=self.state.disk_id, generation=self.state.generation,
                first_segment=self.state.first_segment, disk_size_bytes=self.size_bytes,
                positions=self._rules.positions, closed=closed,
                newest_segment=disk_identity.newest_segment(self.place),
            )  # fmt: skip
        except RigError as exc:
            if exc.code not in (Code.PowerLoss, Code.LogCorrupt):
                raise
            _log.info("log_not_continued", disk=str(self.place), reason=exc.code, message=exc.message)
            self.not_continued = exc
            self._set(tracked=False, needs_resync=exc.code)
            if exc.code == Code.PowerLoss:
                self.attributes.mark_changed()
            return
        self.opened_seq = found.next_seq - 1
        found.complete(self.layer)
        self.layer.sync()
        log = self._make_log(found)
        log.start()
        for path in found.empty:
            path.unlink()
        for number, (offset, length) in found.changed:
            lib.sr_log_touch(self.c, number, offset, length)
        self._log = log
        self._note_opened()
        _log.info("log_continued", disk=str(self.place), next_seq=found.next_seq, torn_bytes=found.torn_bytes)

    def _note_opened(self) -> None:
        try:
            self._set(opened=disk_identity.opened_note(self.place, self.layer.fileno()))
        except OSError as exc:  # after a kill one look less is possible
            _log.warning("opening_not_noted", disk=str(self.place), error=reason(exc))

    def _go_on_noting(self) -> None:
        """Of a disk whose log was given up earlier: note what changes; or that what has changed is not known."""
        reason = disk_identity.noted_reason(self.place, self.state)
        if reason is None and self.state.needs_resync == Code.ImageChanged:
            return  # found when it was opened: what others have changed is in no bitmap
        if reason != self.state.needs_resync:
            self._set(needs_resync=reason if reason == Code.PowerLoss else Code.LogCorrupt)
            return
        dirty_bitmap.begin_use(self.place.file("dirty"))
        resume_dirty_tracking(self.c, self.place.file("dirty"))
        self._dirty_tracking = True

    def _make_log(self, found: Recovered) -> DiskLog:
        return DiskLog(
            self.c, self.place.folder, self.place.name, disk_id=self.state.disk_id, generation=self.state.generation,
            disk_size_bytes=self.size_bytes, policy=self._rules.policy, next_number=found.next_number,
            next_seq=found.next_seq, last_position=found.last_position, kept=found.kept,
        )  # fmt: skip

    def _set(self, **changes: object) -> None:
        state = self.state.model_copy(update=changes)
        state.save(self.place.file("disk"))
        self.state = state

    def note_shown(self, shown: ShownAttributes) -> None:
        """Keep attributes that programs have set."""
        self._set(shown=shown)

    # --- bytes --------------------------------------------------------------------------------------------------

    @property
    def size_bytes(self) -> int:
        """The disk's size."""
        return self.layer.size_bytes

    @property
    def file_trouble(self) -> str | None:
        """A change of its files by another program; None: none is known."""
        return self.guard.trouble if self.guard is not None else None

    @property
    def read_only(self) -> bool:
        """Nobody may open it to write."""
        return self._rules.read_only

    @property
    def stored_bytes(self) -> int:
        """Space that the disk's bytes take on the host.

        Of a disk over a managed disk it may be too high, but is always less than its size if the disk has a hole.
        """
        stored_bytes = self.layer.stored_bytes
        if stored_bytes < self.size_bytes or isinstance(self.layer, RawLayer):
            return stored_bytes
        has_hole = lib.sr_disk_seek(self.c, 0, os.SEEK_HOLE) < self.size_bytes
        return self.size_bytes - self.state.sector_bytes if has_hole else self.size_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Up to ``length`` bytes; fewer at the end of the disk."""
        data = bytearray(length)
        done = check(lib.sr_disk_read(self.c, ffi.from_buffer(data), length, offset))
        return bytes(data[:done])

    def write(self, offset: int, data: bytes | memoryview) -> int:
        """Log, then write; returns the number of bytes written.

        It is smaller than ``len(data)`` if the rest lies past the end of the disk, or if the host's disk became full on the
        way.  ``OSError`` leaves log and disk as they were (``ENOSPC``: all of it lies past the end, or the host's disk is
        full).
        """
        if data and offset >= self.size_bytes:
            raise OSError(errno.ENOSPC, f"write of {len(data)} bytes at {offset} is past the end of disk {self.place}")
        return check(int(lib.sr_disk_write(self.c, ffi.from_buffer(data), len(data), offset)))

    def zero(self, offset: int, length: int, *, discard: bool = False) -> None:
        """Make the range read as zeros; what lies past the end is left out."""
        check(lib.sr_disk_zero(self.c, lib.SR_DISCARD if discard else lib.SR_ZERO, offset, length))

    def resize(self, size_bytes: int) -> None:
        """Grow the disk; ``InvalidDiskSize`` to shrink it, or for a part of a sector."""
        if not self.size_bytes <= size_bytes <= DISK_BYTES_MAX or size_bytes % self.state.sector_bytes:
            raise RigError(
                Code.InvalidDiskSize,
                f"disk {self.place}: new size is {size_bytes} bytes; it must be a multiple of {self.state.sector_bytes}, "
                f"at least {self.size_bytes} (a disk is never shrunk) and at most {DISK_BYTES_MAX >> 40} TiB",
            )
        if not self._rules.can_grow:
            raise RigError(Code.InvalidDiskSize, f"disk {self.place}: cannot grow: something lies behind it in its file")
        check(lib.sr_disk_resize(self.c, size_bytes))
        self._note_growth()

    @property
    def growth_step_bytes(self) -> int:
        """The disk's size can become any larger multiple of this; 0: it cannot grow."""
        return self.state.sector_bytes if self._rules.can_grow and not self.read_only else 0

    def _note_growth(self) -> None:
        size_bytes = self.size_bytes
        if size_bytes == self.state.size_bytes:
            return
        lib.sr_log_limit(self.c, self._rules.policy.kept_bytes_max(size_bytes))
        self.layer.sync()  # the state must not say more than the file has after a power loss
        self._set(size_bytes=size_bytes)

    def released(self) -> None:
        """One who had it open has closed it."""
        self.handles -= 1

    async def flush(self) -> None:
        """Everything written before the call is on stable storage, in the log and on the disk.

        ``OSError`` if it is not: what was lost cannot be told, so the disk needs a resync.
        """
        await trio.to_thread.run_sync(self._flush)

    def _flush(self) -> None:
        with self._thread_lock:
            check(lib.sr_disk_flush(self.c))

    # --- tracking -----------------------------------------------------------------------------------------------

    @property
    def log(self) -> DiskLog:
        """The change log; ``NotTracked`` if there is none."""
        self.note_abandoned_log()
        if self._log is None:
            why = f" ({self.state.needs_resync}: it needs a resync)" if self.state.needs_resync else ""
            raise RigError(Code.NotTracked, f"disk {self.place} is not tracked{why}")
        return self._log

    @property
    def tracked(self) -> bool:
        """Whether writes are logged."""
        self.note_abandoned_log()
        return self._log is not None

    def start_tracking(self, *, new_generation: bool, after: int = 0) -> None:
        """Log every write from now on, in a new generation (later than ``after``) unless the log continues already."""
        self.note_abandoned_log()
        if self._log is not None and not new_generation:
            return
        if self.guard is not None:
            self.guard.begin_again()
        with self._thread_lock:  # nobody maintains the log that ends here
            self._begin_generation(after)

    def _begin_generation(self, after: int) -> None:
        generation = max(self.state.generation, after) + 1
        numbers = [number for number, _ in find_segments(self.place.folder, self.place.name)]
        next_number = max(numbers, default=0) + 1
        log = DiskLog(
            self.c,
            self.place.folder,
            self.place.name,
            disk_id=self.state.disk_id,
            generation=generation,
            disk_size_bytes=self.size_bytes,
            policy=self._rules.policy,
            next_number=next_number,
        )
        try:
            # First, so that no write is logged in a generation that the state does not know.
            self._set(tracked=True, generation=generation, first_segment=next_number, needs_resync=None, opened=None)
        except BaseException:
            log.discard()
            raise
        self._log, self._dirty_tracking, self.opened_seq = None, False, None
        try:
            log.start()
        except OSError:
            lib.sr_log_stop(self.c)
            self._set(tracked=False, needs_resync=Code.LogFull)
            raise
        self._log = log
        self._note_opened()

    def stop_tracking(self) -> None:
        """Stop logging and delete the logs."""
        with self._thread_lock:
            self._set(tracked=False, needs_resync=None)  # before the first write that is not logged
            lib.sr_log_stop(self.c)
            self._log, self._dirty_tracking = None, False
            self._delete_segments()

    def maintain(self) -> None:
        """What is due after an event: a switched segment's names, the next spare.  In any thread; may take milliseconds."""
        with self._thread_lock:
            log = self._log
            if log is not None and self._c is not None:
                log.maintain()

    async def make_ready_to_cut(self) -> None:
        """A TAG begins a new segment; if none stands ready it is made in a thread, which may take long on a busy host."""
        if not self.log.has_spare:
            await trio.to_thread.run_sync(self._provide_spare)

    def _provide_spare(self) -> None:
        with self._thread_lock:
            if self._log is not None and self._c is not None:
                self._log.provide_spare()

    def note_events(self) -> None:
        """Note in the state what requests have done to the disk: they made it grow, or the log was abandoned."""
        if self._c is not None:
            self._note_growth()
            self.note_abandoned_log()

    def note_abandoned_log(self) -> None:
        """If the writer has given the log up, say so in the disk's state.  The dirty file has it already."""
        if self._log is None or (reason := self._log.abandoned_because) is None:
            return
        # The guard has reported the changes of files by other programs.
        tell = _log.info if reason in (Code.ImageChanged, Code.LogCorrupt) else _log.warning
        tell("log_abandoned", disk=str(self.place), reason=reason, dirty_bytes=self.dirty_bytes)
        self._set(tracked=False, needs_resync=reason)  # if it fails, it is done at the next call
        self._log, self._dirty_tracking = None, reason in dirty_bitmap.NOTED
        # Only now: the current segment may still be named so, and after a power loss the dirty file may not say why.
        self.place.file("spare").unlink(missing_ok=True)

    @property
    def log_bytes_max(self) -> int | None:
        """How much of the log may be kept before it is given up; None: there is no limit."""
        return self._rules.policy.kept_bytes_max(self.size_bytes) or None

    @property
    def dirty_bytes(self) -> int:
        """How much has changed, in whole chunks, that no log tells; 0 while there is a log."""
        info = ffi.new("struct sr_log_info *")
        lib.sr_log_info(self.c, info)
        return int(info.dirty_chunks) * dirty_bitmap.CHUNK_BYTES

    def dirty_ranges(self) -> list[tuple[int, int]]:
        """Return (offset, length) of the chunks that changed without a log record; ``NotTracked`` if they are not known."""
        if not self._dirty_tracking:
            raise RigError(Code.NotTracked, f"disk {self.place}: it is not known what has changed since its logs ended")
        return dirty_bitmap.read(self.place.file("dirty")).ranges

    def _delete_segments(self, *, below: int | None = None) -> None:
        """All, or those with a number below ``below``: numbers go on from one generation to the next."""
        for number, path in find_segments(self.place.folder, self.place.name):
            if below is None or number < below:
                path.unlink()

    def tag(self, tag: TagSeen) -> None:
        """Append a TAG at the tag's position and begin a new segment."""
        self.log.append(RecordType.TAG, payload=encode_tag(tag), rotate=True)

    def segments(self) -> list[SegmentInfo]:
        """Closed, durable segments of the current generation."""
        self.note_abandoned_log()
        return self._log.segments() if self._log else []

    def segment_bytes(self, number: int, path: Path) -> int:
        """How much of segment ``number``, whose file is ``path``, is written: that may be longer."""
        written = self._log.segment_bytes_of(number) if self._log else None
        return path.stat().st_size if written is None else written

    def applied(self, generation: int, last_seq: int) -> None:
        """The recovery side has durably applied this much."""
        if self._log is None or generation != self.state.generation:
            return
        self._log.applied(last_seq)
        self._delete_segments(below=self._log.oldest_number)

    # --- snapshot -----------------------------------------------------------------------------------------------

    @property
    def snapshot_path(self) -> Path:
        """Where a snapshot keeps old chunks."""
        return self.place.file("snapshot")

    @property
    def snapshot_bytes_max(self) -> int:
        """How much a snapshot that begins now may keep."""
        return int(self.size_bytes * self._rules.snapshot_share_max)

    def begin_snapshot(self) -> Snapshot:
        """Begin copy-before-write; the log's next segment begins with the first record that is not in the snapshot."""
        return begin_snapshots_of([self])[0]

    def end_snapshot(self) -> None:
        """Remove the snapshot, if there is one."""
        if self.snapshot is not None:
            self.snapshot.close()
            self.snapshot = None

    # --- promotion (siterig.blockfs.disk.promotion)
    # --------------------------------------------------------------------------

    def begin_promotion(self) -> None:
        """From now on, and after the next start; of no effect on a disk that lies over no managed disk."""
        if self.state.managed_disk is not None and not self.state.promoting:
            self._set(promoting=True)

    @property
    def hydrated_bytes(self) -> int:
        """All below this offset is the disk's own."""
        return int(lib.sr_disk_hydrated_bytes(self.c)) if isinstance(self.layer, OverlayLayer) else self.size_bytes

    def hydrate(self, bytes_max: int) -> bool:
        """Copy about so much of what it lacks from below; whether it has all now.  In any thread, one at a time."""
        with self._thread_lock:
            return check(lib.sr_disk_hydrate(self.c, bytes_max)) == 1

    def flush_hydration(self) -> None:
        """What was adopted is on stable storage; the log says nothing of it."""
        with self._thread_lock:
            check(lib.sr_disk_sync(self.c))

    def note_raw(self) -> bool:
        """What was adopted and synced is a raw disk's file from the next start on; False: it has grown meanwhile."""
        if not lib.sr_disk_is_hydrated(self.c):
            return False
        self.state = make_raw_of_top(self.place, self.state)
        if self.guard is not None:
            self.guard.files.renamed(self.place.file("img"))
        return True

    def detach_backing(self) -> None:
        """After :meth:`note_raw`, in any thread: let go of the view; open handles go on."""
        with self._thread_lock:
            while (done := int(lib.sr_disk_detach_backing(self.c))) == -errno.EAGAIN:  # it has grown, with zeros
                check(lib.sr_disk_hydrate(self.c, DISK_BYTES_MAX))
            check(done)
            self.layer = RawLayer.of_overlay(self.layer, self.place.file("img"))
        remove_maps(self.place)

    # --- the end ------------------------------------------------------------------------------------------------

    @property
    def staging(self) -> Path:
        """Where a disk that comes back from the recovery side is assembled."""
        return self.place.file("staging")

    def replace(self) -> None:
        """Put the staged file in place: new contents, tracking off.

        The state goes first: a kill between the two leaves the old bytes marked for resync, never the new bytes
        with the old log.
        """
        fresh = RawLayer(self.staging, writable=True)
        fresh.sync()
        if fresh.size_bytes < self.size_bytes:
            found = fresh.size_bytes
            fresh.close()
            raise RigError(
                Code.InvalidDiskSize,
                f"{self.staging}: has {found} bytes; the disk has {self.size_bytes} and is never shrunk",
            )
        self._set(tracked=False, needs_resync=Code.DiskReplaced)
        lib.sr_log_stop(self.c)
        self._log, self._dirty_tracking = None, False
        self.staging.rename(self.place.file("img"))
        sync_folder(self.place.folder)
        self._delete_segments()
        self._close_in_c()
        self.layer = fresh
        self._open_in_c()
        self._set(size_bytes=fresh.size_bytes, kind="raw", parent=None)  # not before: the old bytes may be fewer
        self._guard_files()
        remove_top(self.place)

    def close(self) -> None:
        """Close in order: the disk, then its log's clean mark, durable.  Requests are refused (``EIO``) from now on."""
        lib.sr_disk_end_requests(self.c)  # what is written after the mark would not be told by it
        if self.guard is None or self.guard.look_at_the_end() is None:
            self.note_events()
            self.attributes.settle()
        self.end_snapshot()
        closed = None
        with self._thread_lock:
            if self._log is not None:
                self._log.close_clean()
                closed, self._log = self._log.extent, None
            else:
                with contextlib.suppress(*([OSError] if self.file_trouble else [])):  # what it is for may be lost
                    self.layer.sync()
        self._close_in_c()
        if closed is not None:
            self._set(closed=disk_identity.closed_note(self.place, self.state, closed, self._known, self._rules.digests))
        if self._dirty_tracking and self.file_trouble is None:
            dirty_bitmap.end_use(self.place.file("dirty"))
            self._dirty_tracking = False

    def abandon(self) -> None:
        """Let go of everything without a sync, as a kill would."""
        self.end_snapshot()
        self._log = None
        self._close_in_c()

    def _close_in_c(self) -> None:
        """Ends requests that still run, and closes all files."""
        with self._thread_lock:
            if self._c is not None:
                if self.guard is not None:
                    self.guard.close()
                lib.sr_disk_free(self._c)
                self._c = None
                self.layer.close()


def begin_snapshots_of(disks: list[Disk]) -> list[Snapshot]:
    """Snapshots of all the disks at one position; ``SnapshotExists`` names the one that has one."""
    for disk in disks:
        _ = disk.log  # NotTracked, before anything is begun
        if disk.snapshot is not None:
            raise RigError(Code.SnapshotExists, f"disk {disk.place} has a snapshot already")
    snapshots = begin_snapshots(disks)
    for disk, snapshot in zip(disks, snapshots, strict=True):
        disk.snapshot = snapshot
    return snapshots
