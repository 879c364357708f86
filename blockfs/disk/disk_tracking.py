"""Change tracking of one disk: its change log, or the dirty bitmap of an abandoned log.

Fault contract
--------------
* A log that becomes too long (or full, by policy) is abandoned for a bitmap of the changed chunks, in one step under the
  lock of the disk.  The mark is in the dirty file before the first write that is not logged
  (blockfs/changelog/dirty_bitmap.py).
* ``tracked`` and the generation are in the state before the first write that is logged, and ``tracked`` is taken out of it
  before the first write that is not.
* The logs of a generation that cannot continue are kept until the resync that replaces it has been applied.

Threads: the trio thread, except :meth:`DiskTracking.maintain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import structlog
import trio

from siterig.blockfs.changelog import dirty_bitmap
from siterig.blockfs.changelog.disk_log import DiskLog, LogExtent, find_segments, resume_dirty_tracking
from siterig.blockfs.changelog.recovery import RecoveredLog, recover_log
from siterig.blockfs.changelog.segment import CHANGES, RecordType, SegmentReader
from siterig.blockfs.changelog.tags import TagSeen, encode_tag
from siterig.blockfs.contracts.control import SegmentInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk import disk_identity
from siterig.blockfs.disk.disk_core import DiskCore
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.layer import merge_ranges
from siterig.cext._core import ffi, lib

_log = structlog.get_logger("siterig.blockfs.disk.disk")


@dataclass(frozen=True, slots=True)
class LackingRanges:
    """The ranges, in whole chunks, of which the recovery side can lack changes of a generation with an abandoned log."""

    generation: int
    ranges: list[tuple[int, int]]


class DiskTracking:
    """Tracks the changes of one disk.

    Attributes:
        lacking: what the recovery side can lack of the generation before; None if it is not known.
        opened_seq: the newest record of the log when the disk was opened; None if the generation began since.
        not_continued: the error because of which the log did not continue at the opening; None if it did.
    """

    def __init__(self, core: DiskCore) -> None:
        """Begin without a log; :meth:`recover` continues the one that the disk has."""
        self.lacking: LackingRanges | None = None
        self.opened_seq: int | None = None
        self.not_continued: RigError | None = None
        self._core = core
        self._log: DiskLog | None = None
        self._dirty_tracking = False  # the log is abandoned, and the dirty file has all changes since

    @property
    def current_log(self) -> DiskLog | None:
        """The log that the writer uses; None if there is none, or while it is being abandoned."""
        return self._log

    @property
    def log(self) -> DiskLog:
        """The change log.

        Raises:
            RigError: ``NotTracked`` if there is none.
        """
        self.note_abandoned()
        if self._log is None:
            state = self._core.state
            why = f" ({state.needs_resync}: it needs a resync)" if state.needs_resync else ""
            raise RigError(Code.NotTracked, f"disk {self._core.paths} is not tracked{why}")
        return self._log

    @property
    def active(self) -> bool:
        """True if writes are logged."""
        self.note_abandoned()
        return self._log is not None

    # --- opening ------------------------------------------------------------------------------------------------

    def recover(self, closed: LogExtent | None) -> bool:
        """Continue the log, or record in the state why that is not possible.

        Args:
            closed: the extent of the log when the disk was closed cleanly; None after a kill.

        Returns:
            False if the power was lost: the disk's bytes may be older than its times.
        """
        core = self._core
        why = disk_identity.noted_reason(core.paths, core.state)
        if why is not None:
            _log.warning("log_abandoned", disk=str(core.paths), reason=why, by="a process that was killed")
            core.save(tracked=False, needs_resync=why)
            return True
        try:
            recovered = recover_log(
                core.paths.folder,
                core.paths.name,
                disk_id=core.state.disk_id,
                generation=core.state.generation,
                first_segment=core.state.first_segment,
                disk_size_bytes=core.size_bytes,
                positions=core.options.positions,
                closed=closed,
                newest_segment=disk_identity.newest_segment(core.paths),
                key_id=None if core.state.key is None else core.state.key.key_id,
            )
        except RigError as exc:
            if exc.code not in (Code.PowerLoss, Code.LogCorrupt):
                raise
            _log.info("log_not_continued", disk=str(core.paths), reason=exc.code, message=exc.message)
            self.not_continued = exc
            core.save(tracked=False, needs_resync=exc.code)
            return exc.code != Code.PowerLoss
        self._continue(recovered)
        return True

    def _continue(self, recovered: RecoveredLog) -> None:
        core = self._core
        self.opened_seq = recovered.next_seq - 1
        recovered.complete(core.layer)
        core.layer.sync()
        log = self._make_log(recovered)
        log.start()
        for path in recovered.empty:
            path.unlink()
        for number, (offset, length) in recovered.changed:
            lib.sr_log_touch(core.c, number, offset, length)
        self._log = log
        self._note_opened()
        _log.info("log_continued", disk=str(core.paths), next_seq=recovered.next_seq, torn_bytes=recovered.torn_bytes)

    def _note_opened(self) -> None:
        core = self._core
        try:
            core.save(opened=disk_identity.opened_note(core.paths, core.layer.fileno()))
        except OSError as exc:  # after a kill there is one check less
            _log.warning("opening_not_noted", disk=str(core.paths), error=reason(exc))

    def resume_dirty_tracking(self) -> None:
        """Continue the dirty bitmap of a log that was abandoned, or record that the changes are unknown."""
        core = self._core
        if core.state.needs_resync not in dirty_bitmap.NOTED:
            return
        why = disk_identity.noted_reason(core.paths, core.state)
        if why is None and core.state.needs_resync == Code.ImageChanged:
            return  # found at the opening: no bitmap has the changes that another program made
        if why != core.state.needs_resync:
            core.save(needs_resync=why if why == Code.PowerLoss else Code.LogCorrupt)
            return
        dirty_bitmap.mark_open(core.paths.file("dirty"))
        resume_dirty_tracking(core.c, core.paths.file("dirty"))
        self._dirty_tracking = True

    def _make_log(self, recovered: RecoveredLog) -> DiskLog:
        core = self._core
        return DiskLog.prepare(
            core.c,
            core.paths.folder,
            core.paths.name,
            disk_id=core.state.disk_id,
            generation=core.state.generation,
            disk_size_bytes=core.size_bytes,
            policy=core.options.policy,
            next_number=recovered.next_number,
            key_id=None if core.state.key is None else core.state.key.key_id,
            next_seq=recovered.next_seq,
            last_position=recovered.last_position,
            segments=recovered.kept,
        )

    # --- starting and stopping ----------------------------------------------------------------------------------

    def start(self, *, new_generation: bool, after: int = 0) -> None:
        """Log every write from now on; does nothing if the log continues and no new generation is asked for.

        Args:
            new_generation: begin a new generation in any case.
            after: the new generation's number is larger than this, and than all earlier ones.

        Raises:
            RigError: ``DiskUnhealthy`` if another program changed or took away files of the disk.
            OSError: the log cannot be written; the disk is not tracked then.
        """
        self.note_abandoned()
        if self._log is not None and not new_generation:
            return
        if self._core.guard is not None:
            self._core.guard.begin_again()
        with self._core.thread_lock:  # so that no thread maintains the log that ends here
            self._begin_generation(after)

    def _begin_generation(self, after: int) -> None:
        core = self._core
        generation = max(core.state.generation, after) + 1
        ended, self.lacking = core.state.generation, None
        with self._open_bitmap() as bitmap:
            self._begin_log(generation)
            if bitmap is not None:  # read only now: until the new log begins, the guest's writes change it
                self.lacking = self._read_lacking(bitmap, ended)

    @contextmanager
    def _open_bitmap(self) -> Iterator[BinaryIO | None]:
        """Open the dirty bitmap of an abandoned log, which the new log replaces; None if nothing can be learned from it."""
        core = self._core
        if not self._dirty_tracking or core.state.needs_resync not in dirty_bitmap.LACKING:
            yield None
            return
        try:
            bitmap = dirty_bitmap.open_to_read(core.paths.file("dirty"))
        except OSError as exc:
            _log.warning("dirty_bitmap_not_read", disk=str(core.paths), reason=reason(exc))
            yield None
            return
        with bitmap:
            yield bitmap

    def _read_lacking(self, bitmap: BinaryIO, generation: int) -> LackingRanges | None:
        path = self._core.paths.file("dirty")
        try:
            found = dirty_bitmap.read_open(bitmap, path)
        except (RigError, OSError) as exc:
            _log.warning("dirty_bitmap_not_read", disk=str(self._core.paths), reason=str(exc))
            return None
        is_own = (found.disk_id, found.generation) == (self._core.state.disk_id, generation)
        return LackingRanges(generation, found.ranges) if is_own and found.complete else None

    def _begin_log(self, generation: int) -> None:
        core = self._core
        numbers = [number for number, _ in find_segments(core.paths.folder, core.paths.name)]
        next_number = max(numbers, default=0) + 1
        log = DiskLog.prepare(
            core.c,
            core.paths.folder,
            core.paths.name,
            disk_id=core.state.disk_id,
            generation=generation,
            disk_size_bytes=core.size_bytes,
            policy=core.options.policy,
            next_number=next_number,
            key_id=None if core.state.key is None else core.state.key.key_id,
        )
        try:
            # First, so that no write is logged in a generation that the state does not know.
            core.save(tracked=True, generation=generation, first_segment=next_number, needs_resync=None, opened=None)
        except BaseException:
            log.discard()
            raise
        self._log, self._dirty_tracking, self.opened_seq = None, False, None
        try:
            log.start()
        except OSError:
            lib.sr_log_stop(core.c)
            core.save(tracked=False, needs_resync=Code.LogFull)
            raise
        self._log = log
        self._note_opened()

    def stop(self) -> None:
        """Stop logging and delete the logs."""
        with self._core.thread_lock:
            self.lacking = None
            self._core.save(tracked=False, needs_resync=None)  # before the first write that is not logged
            self._stop_writer()
            self._delete_segments()

    def replace(self) -> None:
        """Stop logging because the disk is being replaced; :meth:`delete_all` deletes the logs afterwards."""
        self._core.save(tracked=False, needs_resync=Code.DiskReplaced)
        self._stop_writer()

    def _stop_writer(self) -> None:
        lib.sr_log_stop(self._core.c)
        self._log, self._dirty_tracking = None, False

    def delete_all(self) -> None:
        """Delete all segments."""
        self._delete_segments()

    def _delete_segments(self, *, below: int | None = None) -> None:
        """Delete all segments, or those with a smaller number; numbers continue from one generation to the next."""
        for number, path in find_segments(self._core.paths.folder, self._core.paths.name):
            if below is None or number < below:
                path.unlink()

    def close_clean(self) -> LogExtent | None:
        """Write the log's clean mark, and return the extent of the log; return None if there is no log.

        The caller holds the thread lock.
        """
        if self._log is None:
            return None
        self._log.close_clean()
        closed, self._log = self._log.extent, None
        return closed

    def end_dirty_tracking(self) -> None:
        """Mark the dirty bitmap of an abandoned log as complete; call it after a clean close of the disk."""
        if self._dirty_tracking:
            dirty_bitmap.mark_clean(self._core.paths.file("dirty"))
            self._dirty_tracking = False

    def abandon(self) -> None:
        """Forget the log without writing to it, as a kill does."""
        self._log = None

    # --- upkeep -------------------------------------------------------------------------------------------------

    def maintain(self) -> None:
        """Do what is due after an event: give a switched segment its name, provide the next spare.

        Any thread may call it; it may take milliseconds.
        """
        with self._core.thread_lock:
            log = self._log
            if log is not None and self._core.is_open:
                log.maintain()

    async def make_ready_to_cut(self) -> None:
        """Provide the spare segment with which a TAG begins, in a thread: that may take long on a busy host.

        Raises:
            RigError: ``NotTracked``.
        """
        if not self.log.has_spare:
            await trio.to_thread.run_sync(self._provide_spare)

    def _provide_spare(self) -> None:
        with self._core.thread_lock:
            if self._log is not None and self._core.is_open:
                self._log.provide_spare()

    def note_abandoned(self) -> None:
        """Record in the state that the writer has abandoned the log.  The dirty file records it already."""
        if self._log is None or (why := self._log.abandoned_because) is None:
            return
        core = self._core
        # The guard has reported the changes of files by other programs.
        report = _log.info if why in (Code.ImageChanged, Code.LogCorrupt) else _log.warning
        report("log_abandoned", disk=str(core.paths), reason=why, dirty_bytes=self.dirty_bytes)
        core.save(tracked=False, needs_resync=why)  # if it fails, the next call repeats it
        self._log, self._dirty_tracking = None, why in dirty_bitmap.NOTED
        # Only now: the current segment may still have this name, and after a power loss the dirty file may lack the reason.
        core.paths.file("spare").unlink(missing_ok=True)

    # --- content ------------------------------------------------------------------------------------------------

    @property
    def log_bytes_max(self) -> int | None:
        """Bytes of the log that may be kept before it is abandoned; None if there is no limit."""
        return self._core.options.policy.kept_bytes_max(self._core.size_bytes) or None

    @property
    def dirty_bytes(self) -> int:
        """Bytes that changed without a log record, in whole chunks; 0 while there is a log."""
        info = ffi.new("struct sr_log_info *")
        lib.sr_log_info(self._core.c, info)
        return int(info.dirty_chunks) * dirty_bitmap.CHUNK_BYTES

    def dirty_ranges(self) -> list[tuple[int, int]]:
        """Return (offset, length) of everything that changed since the last position of the logs, in whole chunks.

        Raises:
            RigError: ``NotTracked`` if the changes are unknown: the whole disk may have changed.
        """
        if not self._dirty_tracking:
            raise RigError(
                Code.NotTracked, f"disk {self._core.paths}: it is not known what has changed since its logs ended"
            )
        return dirty_bitmap.read(self._core.paths.file("dirty")).ranges

    def lacking_before(self, first_seq: int) -> LackingRanges | None:
        """Return ``lacking`` and the changes of the present log before record ``first_seq``; call it in a thread.

        A snapshot contains these changes, and the log is sent from ``first_seq`` on.  None if something is not known.
        """
        lacking = self.lacking
        if lacking is None or first_seq == 1:
            return lacking
        changed: list[tuple[int, int]] = []
        newest = 0
        for number, path in find_segments(self._core.paths.folder, self._core.paths.name):
            if number < self._core.state.first_segment:
                continue
            try:
                with SegmentReader(path) as segment:
                    for record in segment.records():
                        if record.seq >= first_seq:
                            break
                        newest = record.seq
                        if record.type in CHANGES:
                            changed.append((record.offset, record.length))
            except (RigError, OSError):
                break  # the newest segment can end with preallocated space
        if newest < first_seq - 1:
            return None
        return LackingRanges(lacking.generation, merge_ranges(lacking.ranges + changed))

    def tag(self, tag: TagSeen) -> None:
        """Append a TAG record at the position of the tag, and begin a new segment."""
        self.log.append(RecordType.TAG, payload=encode_tag(tag), rotate=True)

    def segments(self) -> list[SegmentInfo]:
        """Return the closed, durable segments of the current generation."""
        self.note_abandoned()
        return self._log.segments() if self._log else []

    def segment_bytes(self, number: int, path: Path) -> int:
        """Return the bytes of segment ``number`` that are written; its file ``path`` may be longer."""
        written = self._log.segment_bytes_of(number) if self._log else None
        return path.stat().st_size if written is None else written

    def trim(self, generation: int, last_seq: int) -> None:
        """Delete segments that the recovery side has durably applied, up to record ``last_seq`` of ``generation``."""
        if self._log is None or generation != self._core.state.generation:
            return
        self._log.trim(last_seq)
        self._delete_segments(below=self._log.oldest_number)
