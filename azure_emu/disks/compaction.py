"""Compaction: the oldest frames of the journal are merged into the base, and their space is freed.  Checkpoints, too.

Fault contract
--------------
``progress`` announces a compaction, under the lock under which positions are pinned, before anything changes.  From then on
no position below the target can be opened.  After a kill at any step the compaction is repeated when the disk is next opened
for applying, with the same result: nothing of the journal is deleted before ``progress`` records that the base holds it.

Views at the target or later stay right all the time.  Their extents contain the merged frames.  The blocks of the base that
they read do not change, or match one of their two checksums.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import structlog

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.applied import AppliedState
from siterig.azure_emu.disks.base_image import (
    IntentOwner,
    MergeBlocks,
    RangeList,
    forget_intent,
    grow_base,
    merge_blocks,
    read_map,
    redo_intent,
    unpack_map,
    write_map,
)
from siterig.azure_emu.disks.history import DiskHistory
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.journal import JOURNAL, journal_file_path, list_journal_files
from siterig.azure_emu.disks.metadata import PROGRESS, CompactionIntent, Progress, read_meta, write_meta
from siterig.azure_emu.disks.pins import locked, pins
from siterig.azure_emu.disks.view import DiskMap, build_map, view_of
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.failpoint import Failpoint
from siterig.blockfs.files import host_calls
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.layers.base_update import BLOCK_BYTES
from siterig.blockfs.layers.layer import ViewLayer, merge_ranges

DELETING_THREADS = 4
"""Journal files that are deleted at the same time; some hosts wait for their medium at each."""

_ANNOUNCED = Failpoint("store.compaction.announced")
_MAPPED = Failpoint("store.compaction.mapped")
_COUNTED = Failpoint("store.compaction.counted")
_JOURNAL_FILE_DELETED = Failpoint("store.compaction.journal_file_deleted")
_CHECKPOINT_DELETED = Failpoint("store.compaction.checkpoint_deleted")
_DONE = Failpoint("store.compaction.done")
_CHECKPOINT_SAVED = Failpoint("store.checkpoint.saved")

_log = structlog.get_logger("siterig.azure_emu.disks.compaction")


class Compactor:
    """Compacts the journal of one managed disk and saves its checkpoints, concurrently with the applying thread."""

    def __init__(self, state: AppliedState, clock: Clock) -> None:
        self._state = state
        self._clock = clock
        self._running = threading.Lock()
        self._closed = False
        self._records_since_checkpoint = self._extents = 0
        self._find_checkpoint()

    def compact(self, upto: int) -> int:
        """Merge the journal up to position ``upto``, or to the lowest pin, into the base.

        Returns:
            The oldest position afterwards.
        Raises:
            RigError: ``DiskFull`` (recoverable); ``StoreCorrupt`` if a pin cannot be read.
        """
        while self.compact_step(upto):
            pass
        return self._state.history.oldest_position

    def compact_step(self, upto: int) -> bool:
        """Run one compaction of limited size; return whether there was anything to compact.

        Raises:
            RigError: as :meth:`compact`.
        """
        state = self._state
        with self._running, host_disk_errors(state.folder):
            if self._closed or not state.history.initial_sync_complete:
                return False
            progress = state.progress
            if progress is None or progress.fold is None:  # a compaction that failed comes first: its blocks may be torn
                if upto <= state.history.oldest_position:
                    return False
                progress = _announce(state.folder, state.history, upto)
            if progress is None:
                return False
            self._finish(progress)
        return True

    def _finish(self, progress: Progress) -> None:
        intent = progress.fold
        if intent is None:
            return
        state = self._state
        with host_calls.operation("compact", state.folder):
            state.begin_compaction(progress, intent)
            update_base(state.folder, state.history, intent, self._clock)
            done = state.end_compaction(intent)
            _COUNTED.reach()
            delete_compacted(state.folder, done.frame)
        self._find_checkpoint()

    def resume(self) -> None:
        """Finish a compaction that was interrupted, and delete the remains of one that was not.

        If the host's disk does not allow it now, parts can be applied all the same; the next compaction begins with it.
        """
        state = self._state
        if state.progress is None or not state.history.initial_sync_complete:
            return
        try:
            if state.progress.fold is not None:
                self._finish(state.progress)
            else:
                delete_compacted(state.folder, state.history.compacted)
        except OSError as exc:
            _log.warning("compaction_not_finished", disk=state.meta.disk_id, reason=str(exc))

    @property
    def checkpoint_due(self) -> bool:
        """True if :meth:`checkpoint` would save one."""
        return self._records_since_checkpoint > max(checkpoints.RECORDS_MIN, self._extents // 4)

    def checkpoint(self) -> bool:
        """Save a checkpoint at the newest frame if one is due; return whether one was saved."""
        state = self._state
        with self._running, host_disk_errors(state.folder):
            if self._closed or not self.checkpoint_due:
                return False
            history = state.snapshot()
            found = build_map(state.folder, history, None, drop_bad=True)
            if found.rebuilt:
                return False
            frame = history.frames[-1]
            checkpoint = checkpoints.Checkpoint(frame.number, found.size_bytes, list(found.sources), found.extents)
            checkpoints.save(state.folder, state.meta.disk_id, frame, checkpoint)
            _CHECKPOINT_SAVED.reach()
            self._find_checkpoint()
            return True

    def note_applied(self, records: int) -> None:
        """Count the records of an applied frame; the caller holds the lock of the state."""
        self._records_since_checkpoint += records

    def _find_checkpoint(self) -> None:
        """Find the newest checkpoint: how many records came since then, and how many extents it has."""
        state = self._state
        with state.lock:
            newest = max(checkpoints.list_checkpoints(state.folder), default=0)
            self._extents = checkpoints.extent_count(state.folder, newest)
            frames = state.history.frames
            self._records_since_checkpoint = sum(frame.records for frame in frames if frame.number > newest)

    def close(self) -> None:
        """Begin no further step, and wait for the running one."""
        self._closed = True
        with self._running:
            pass


def _announce(folder: Path, history: DiskHistory, upto: int) -> Progress | None:
    """Announce durably the compaction of everything up to ``upto``, or of as much as one compaction takes.

    Returns:
        The new progress; None if there is nothing to compact, or a pin holds it.
    """
    with locked(folder):
        lowest = min((pin.position for pin in pins(folder)), default=upto)
        frame = history.compaction_target(min(upto, lowest))
        if frame == history.compacted:
            return None
        progress = read_meta(folder / PROGRESS, Progress)
        intent = CompactionIntent(frame=frame, position=history.progress_at(frame).floor)
        progress = progress.model_copy(update={"fold": intent})
        write_meta(folder / PROGRESS, progress)
    _ANNOUNCED.reach()
    return progress


def update_base(folder: Path, history: DiskHistory, intent: CompactionIntent, clock: Clock) -> None:
    """Make the base equal to the disk at the end of the intent's frame; ``history`` may grow meanwhile."""
    past = history.upto(intent.frame)
    owner = IntentOwner(frame=intent.frame)
    grow_base(folder, past.size_bytes)
    redo_intent(folder, owner)
    merge_into_base(folder, build_map(folder, past, None, base=False), owner, clock)
    _MAPPED.reach()


def merge_into_base(
    folder: Path, disk_map: DiskMap, owner: IntentOwner, clock: Clock, view_map: Callable[[DiskMap], ViewLayer] | None = None
) -> None:
    """Merge all extents of ``found`` into the base, and record in its map which ranges hold data now.

    Args:
        folder: the managed disk's folder.
        found: finalized extents without those of the base.
        owner: the operation, for the intent.
        clock: see :func:`siterig.azure_emu.disks.base_image.merge_blocks`.
        view_map: opens the merged map; by default from the folder's files.
    """
    data = unpack_map(read_map(folder))
    blocks = MergeBlocks(disk_map.extents.touched(BLOCK_BYTES), _edges(disk_map.extents.touched(), data))
    disk_map.extents.add_base(data)
    disk_map.extents.merge_pending()
    view = view_map(disk_map) if view_map else view_of(folder, disk_map)
    try:
        merge_blocks(folder, view, blocks, owner, clock)
    finally:
        view.close()
    write_map(folder, _whole_blocks(disk_map.extents.ranges()))


def _edges(touched: RangeList, data: RangeList) -> list[int]:
    """Return the blocks of the base's data that ``touched`` covers in part; the rest of other blocks is zeros."""
    partial = set()
    for offset, length in touched:
        end = offset + length
        if offset % BLOCK_BYTES:
            partial.add(offset - offset % BLOCK_BYTES)
        if end % BLOCK_BYTES:
            partial.add(end - end % BLOCK_BYTES)
    edges = []
    following = iter(data)
    offset, length = next(following, (0, 0))
    for block in sorted(partial):
        while length and offset + length <= block:
            offset, length = next(following, (0, 0))
        if length and offset <= block:
            edges.append(block)
    return edges


def _whole_blocks(ranges: RangeList) -> RangeList:
    def rounded(offset: int, length: int) -> tuple[int, int]:
        start = offset - offset % BLOCK_BYTES
        return start, -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES - start

    return merge_ranges([rounded(offset, length) for offset, length in ranges])


def delete_compacted(folder: Path, compacted: int) -> None:
    """Delete the journal files and checkpoints that contain nothing after frame ``compacted``, and the intent.

    The newest journal file stays, because it grows.  It does not matter which of the deleted files a kill leaves: the number
    of the next file shows that they are not needed.
    """
    files = list_journal_files(folder)
    doomed = [number for number, following in pairwise(files) if following <= compacted + 1]
    with ThreadPoolExecutor(DELETING_THREADS) as pool:
        for _ in pool.map(lambda number: journal_file_path(folder, number).unlink(), doomed):
            _JOURNAL_FILE_DELETED.reach()
    if doomed:
        sync_folder(folder / JOURNAL)
    for number in checkpoints.list_checkpoints(folder):
        if number <= compacted:
            with suppress(FileNotFoundError):
                checkpoints.checkpoint_path(folder, number).unlink()
            _CHECKPOINT_DELETED.reach()
    forget_intent(folder)
    _DONE.reach()
