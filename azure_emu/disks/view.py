"""A managed disk as it was at a position: a read-only layer of extents of the base and of journal files.

Fault contract
--------------
A view is built from headers and indexes; each byte that is read through it is checked against the checksum of its
piece, so a bad byte, whenever it became bad, is an error to whoever reads that piece, never data.  A view has its files
open: it outlives folds (at positions that are not below the fold's target; pins see to that) and the deletion of the disk.
It never writes, so any process may open one while the applier goes on.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import structlog

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.base_image import BASE, SUMS, read_map, unpack_map
from siterig.azure_emu.disks.checkpoints import BadCheckpointError
from siterig.azure_emu.disks.frames import Frame
from siterig.azure_emu.disks.history import DiskHistory, Epoch
from siterig.azure_emu.disks.journal import FrameIndex, index_in, journal_file_path
from siterig.azure_emu.disks.loader import oldest_position_of, query_consistently
from siterig.azure_emu.disks.metadata import store_corrupt
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import Source, ViewLayer

_log = structlog.get_logger("siterig.azure_emu.disks.view")


def open_view(store: Path, position: int) -> ViewLayer:
    """The managed disk in ``store`` (a folder) as of ``position``; pinned, or else good only until something folds past it.

    ``DiskNotFound``, ``InvalidPosition`` (names the valid ranges), ``StoreCorrupt``, ``StoreVersion``.
    """
    while True:
        view = query_consistently(
            store, lambda loaded: build_view(store, loaded.history, ReplayBound(loaded.epoch_of(position), position))
        )
        oldest = oldest_position_of(store)
        if oldest is not None and oldest <= position:
            return view
        view.close()  # a fold came between, or a disk begun anew, and what the view shows is neither then nor now


@dataclass(frozen=True, slots=True)
class ReplayBound:
    """Everything up to a position, of generations up to one: each sync was made against all that was applied before it."""

    epoch: Epoch
    position: int

    def whole(self, frame: Frame) -> bool:
        """Whether all of the frame counts."""
        generation = frame.part.generation
        return generation < self.epoch.generation or (
            generation == self.epoch.generation and frame.position <= self.position
        )

    def some(self, frame: Frame) -> bool:
        """Whether any of it does."""
        generation = frame.part.generation
        return generation < self.epoch.generation or (
            generation == self.epoch.generation and frame.first_position <= self.position
        )


@dataclass(slots=True)
class DiskMap:
    """Where the bytes of a disk are (merged): ``sources`` are the journal files' numbers of source 1 and on.

    ``rebuilt``: sources whose checksums had to be made anew, and those.
    """

    extents: ExtentMap
    size_bytes: int
    sources: dict[int, int]
    rebuilt: dict[int, tuple[int, bytes]]
    """Source: its journal file, its table of checksums."""


def build_map(
    folder: Path, history: DiskHistory, upto: ReplayBound | None, *, base: bool = True, drop_bad: bool = False
) -> DiskMap:
    """The disk's map; ``upto`` None: with all that was applied, even of an unfinished resync.

    ``base`` False: only what is behind the base, without checkpoints.  ``drop_bad``: checkpoints that are bad are removed.
    """
    made = _from_checkpoint(folder, history, upto, drop_bad=drop_bad) if base else None
    if made is None:
        first, found = 0, DiskMap(ExtentMap(), history.size_of_base, {}, {})
    else:
        first, found = made
    journal_file, path, fd = 0, folder, -1
    try:
        for frame in history.frames[first:]:
            if upto is not None and not upto.some(frame):
                break
            if frame.journal_file != journal_file:
                if fd >= 0:
                    os.close(fd)
                journal_file, path, fd = frame.journal_file, journal_file_path(folder, frame.journal_file), -1
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            index = index_in(fd, path, frame, history.size_before(frame))
            try:
                _add_frame(history, frame, index, upto, found)
            except RigError as exc:
                raise store_corrupt(path, f"byte {frame.entries_at}: index of frame {frame.number}: {exc.message}") from exc
    finally:
        if fd >= 0:
            os.close(fd)
    if base:
        found.extents.add_base(unpack_map(read_map(folder)))
    found.extents.merge_pending()
    return found


def _add_frame(history: DiskHistory, frame: Frame, index: FrameIndex, upto: ReplayBound | None, found: DiskMap) -> None:
    source, piece_at = _source_of(frame, index, found)
    grown = found.extents.add(
        source,
        index.entries,
        segment_at=frame.segment_at,
        piece_at=piece_at,
        after=history.contained(frame.part.generation) if frame.part.stream == "log" else -1,
        upto=None if upto is None or upto.whole(frame) else upto.position,
    )
    if upto is None or upto.whole(frame):
        found.size_bytes = frame.size_bytes_after
    elif grown:
        found.size_bytes = grown


def _source_of(frame: Frame, index: FrameIndex, found: DiskMap) -> tuple[int, int]:
    number = len(found.sources) + len(found.rebuilt) + 1
    if index.rebuilt:
        found.rebuilt[number] = (frame.journal_file, index.pieces)
        return number, 0
    return found.sources.setdefault(frame.journal_file, number), frame.pieces_at // 4


def _from_checkpoint(
    folder: Path, history: DiskHistory, upto: ReplayBound | None, *, drop_bad: bool
) -> tuple[int, DiskMap] | None:
    """The newest good checkpoint that is of nothing but what counts, and how many frames it has of those in the journal."""
    if not history.frames:
        return None
    present: dict[int, int] = {}
    for frame in history.frames:
        present.setdefault(frame.journal_file, frame.start)
    for number in reversed(checkpoints.list_checkpoints(folder)):
        place = number - history.compacted - 1
        if not 0 <= place < len(history.frames) or (upto is not None and not upto.whole(history.frames[place])):
            continue
        frame = history.frames[place]
        try:
            checkpoint = checkpoints.load(folder, history.disk_id, frame)
        except BadCheckpointError as exc:
            _log.warning("checkpoint_ignored", store=str(folder), frame=number, reason=str(exc))
            if drop_bad:
                checkpoints.checkpoint_path(folder, number).unlink(missing_ok=True)
            continue
        except FileNotFoundError:
            continue
        sources: dict[int, int] = {}
        checkpoints.retarget(checkpoint, sources, present)
        return place + 1, DiskMap(checkpoint.extents, checkpoint.size_bytes, sources, {})
    return None


def build_view(folder: Path, history: DiskHistory, upto: ReplayBound | None) -> ViewLayer:
    """The state at a position (None: the latest); ``FileNotFoundError`` if a fold deleted a journal file."""
    if upto is None and not history.initial_sync_complete:
        raise RigError(Code.InvalidPosition, f"disk {history.disk_id} has no state: its initial replication is not complete")
    return view_of(folder, build_map(folder, history, upto))


def view_of(folder: Path, found: DiskMap) -> ViewLayer:
    """Open what the map reads from, and no more: a long journal has more journal files than a process may have files."""
    journal_files = {source: journal_file for journal_file, source in found.sources.items()}
    sums = {source: pieces for source, (_, pieces) in found.rebuilt.items()}
    journal_files.update({source: journal_file for source, (journal_file, _) in found.rebuilt.items()})
    used = set(found.extents.used(len(journal_files) + 1))
    sources: list[Source | None] = []
    try:
        sources.append(base_source(folder) if 0 in used else None)
        for number in range(1, len(journal_files) + 1):
            path = journal_file_path(folder, journal_files[number])
            sources.append(_open_source(path, table=sums.get(number)) if number in used else None)
    except BaseException:
        for source in filter(None, sources):
            for fd in (source.fd, source.sums_fd):
                if fd >= 0:
                    os.close(fd)
        raise
    return ViewLayer(found.extents, sources, found.size_bytes)


def base_source(folder: Path) -> Source:
    """The base, as source 0 of a map."""
    return _open_source(folder / BASE, sums=folder / SUMS)


def _open_source(path: Path, *, sums: Path | None = None, table: bytes | None = None) -> Source:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise RigError(Code.StoreIo, f"{path}: cannot be opened: {reason(exc, path)}", recoverable=True) from exc
    sums_fd = -1
    try:
        if sums is not None:
            sums_fd = os.open(sums, os.O_RDONLY | os.O_CLOEXEC)
        elif table is not None:
            sums_fd = os.memfd_create("sums", os.MFD_CLOEXEC)
            os.pwrite(sums_fd, table, 0)
    except BaseException:
        os.close(fd)
        raise
    return Source(fd=fd, sums_fd=sums_fd, paired=sums is not None, name=str(path))
