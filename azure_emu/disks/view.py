"""Views of a managed disk: the disk as it was at one position, a read-only layer over the base and the journal files.

Fault contract
--------------
A view is built from headers and indexes.  Each byte that is read through it is checked against the checksum of its piece.  A
bad byte, whenever it became bad, is an error for the reader of that piece, never data.  A view has its files open, so it
outlives the deletion of the disk, and compactions whose target is not above its position; pins prevent others.  A view never
writes; any process may open one while the applier works.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import structlog

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.base_image import BASE, SUMS, read_map, unpack_map
from siterig.azure_emu.disks.checkpoints import BadCheckpointError
from siterig.azure_emu.disks.frames import Frame
from siterig.azure_emu.disks.history import DiskHistory, Epoch
from siterig.azure_emu.disks.journal import FrameIndex, index_in, journal_file_path
from siterig.azure_emu.disks.loader import StoreState, oldest_position_of, query_consistently
from siterig.azure_emu.disks.metadata import DISK_META, DiskMeta, read_meta, store_corrupt
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import host_calls
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import Source, ViewLayer
from siterig.blockfs.transfer.envelope import DataKey

T = TypeVar("T")
_log = structlog.get_logger("siterig.azure_emu.disks.view")


def needed_key(folder: Path) -> str | None:
    """Return the id of the key that encrypts a managed disk; None if it is not encrypted, or has no readable identity."""
    try:
        return read_meta(folder / DISK_META, DiskMeta).key_id
    except RigError:
        return None  # whatever opens the disk raises the error


def is_encrypted(folder: Path) -> bool | None:
    """Return whether the data of a managed disk are encrypted; None if it has no readable identity."""
    try:
        return read_meta(folder / DISK_META, DiskMeta).key_id is not None
    except RigError:
        return None


def cipher_of(loaded: StoreState, key: DataKey | None) -> DiskCipher | None:
    """Return the cipher of a managed disk; None if it is not encrypted, and then the key is ignored.

    Raises:
        RigError: ``KeyMissing`` if this is not the key of the disk.
    """
    needed = loaded.meta.key_id
    if needed is None:
        return None
    if key is None or str(key.key_id) != needed:
        has = "no key was given" if key is None else f"the vault has {key.key_id}"
        raise RigError(Code.KeyMissing, f"{loaded.folder}: the managed disk is encrypted with key {needed}, and {has}")
    return DiskCipher(key.secret)


def decrypted(view: ViewLayer, cipher: DiskCipher | None) -> ViewLayer:
    """Return a view that decrypts; without a cipher, the view itself."""
    if cipher is None:
        return view
    try:
        return view.decrypted(cipher)
    except BaseException:
        view.close()
        raise


def open_disk(folder: Path, position: int, key: DataKey | None) -> ViewLayer:
    """Open a managed disk as :func:`open_view` does, and decrypt it.

    Raises:
        RigError: also ``KeyMissing``.
    """
    view, cipher = _opened(folder, position, lambda state: cipher_of(state, key))
    return decrypted(view, cipher)


def open_view(folder: Path, position: int) -> ViewLayer:
    """Open the managed disk in ``folder`` as it was at ``position``; the data of an encrypted disk are not decrypted.

    Pin the position first; without a pin the view is right only until a compaction passes the position.

    Raises:
        RigError: ``DiskNotFound``; ``InvalidPosition``, which names the valid ranges; ``StoreCorrupt``, ``StoreVersion``;
            ``StoreIo`` (recoverable).
    """
    return _opened(folder, position, lambda _state: None)[0]


def view_in(state: StoreState, position: int) -> ViewLayer:
    """Open a position of a managed disk whose state is loaded, as :func:`open_view` does; no compaction may run.

    Raises:
        RigError: as :func:`open_view`.
    """
    return build_view(state.folder, state.history, ReplayBound(state.epoch_of(position), position))


def _opened(folder: Path, position: int, query: Callable[[StoreState], T]) -> tuple[ViewLayer, T]:
    """Open a view, and return the result of a query about the same state of the disk with it; the query comes first."""

    def both(state: StoreState) -> tuple[ViewLayer, T]:
        found = query(state)
        return view_in(state, position), found

    while True:
        view, found = query_consistently(folder, both)
        oldest = oldest_position_of(folder)
        if oldest is not None and oldest <= position:
            return view, found
        # A compaction passed the position meanwhile, or the disk began again: the view mixes two states.
        view.close()


@dataclass(frozen=True, slots=True)
class ReplayBound:
    """The end of a replay: a position of one generation.

    All earlier generations count as a whole, because a sync is made against everything that was applied before it.
    """

    epoch: Epoch
    position: int

    def contains(self, frame: Frame) -> bool:
        """Return whether the whole frame lies before the bound."""
        generation = frame.part.generation
        return generation < self.epoch.generation or (
            generation == self.epoch.generation and frame.position <= self.position
        )

    def overlaps(self, frame: Frame) -> bool:
        """Return whether a part of the frame lies before the bound."""
        generation = frame.part.generation
        return generation < self.epoch.generation or (
            generation == self.epoch.generation and frame.first_position <= self.position
        )


@dataclass(slots=True)
class DiskMap:
    """The finalized extents of a disk, and the files that they refer to.

    ``sources`` has the source number, from 1 on, by the number of the journal file.  ``rebuilt`` has the sources whose
    checksums were rebuilt.
    """

    extents: ExtentMap
    size_bytes: int
    sources: dict[int, int]
    rebuilt: dict[int, tuple[int, bytes]]
    """Journal file and table of checksums by source number."""


def build_map(
    folder: Path, history: DiskHistory, bound: ReplayBound | None, *, base: bool = True, drop_bad: bool = False
) -> DiskMap:
    """Build the map of the disk.

    Args:
        folder: the managed disk's folder.
        history: the frames to replay.
        bound: the end of the replay; None replays all frames, even those of an unfinished resync.
        base: False leaves out the base, and uses no checkpoint.
        drop_bad: delete checkpoints that are bad.
    Raises:
        RigError: ``StoreCorrupt``.
        FileNotFoundError: a compaction deleted a journal file.
    """
    from_checkpoint = _from_checkpoint(folder, history, bound, drop_bad=drop_bad) if base else None
    if from_checkpoint is None:
        first, disk_map = 0, DiskMap(ExtentMap(), history.size_of_base, {}, {})
    else:
        first, disk_map = from_checkpoint
    journal_file, path, fd = 0, folder, -1
    try:
        for frame in history.frames[first:]:
            if bound is not None and not bound.overlaps(frame):
                break
            if frame.journal_file != journal_file:
                if fd >= 0:
                    os.close(fd)
                journal_file, path, fd = frame.journal_file, journal_file_path(folder, frame.journal_file), -1
                fd = host_calls.open_path(path, os.O_RDONLY)
            index = index_in(fd, path, frame, history.size_before(frame))
            try:
                _add_frame(history, frame, index, bound, disk_map)
            except RigError as exc:
                raise store_corrupt(path, f"byte {frame.entries_at}: index of frame {frame.number}: {exc.message}") from exc
    finally:
        if fd >= 0:
            os.close(fd)
    if base:
        disk_map.extents.add_base(unpack_map(read_map(folder)))
    disk_map.extents.merge_pending()
    return disk_map


def _add_frame(history: DiskHistory, frame: Frame, index: FrameIndex, bound: ReplayBound | None, disk_map: DiskMap) -> None:
    source, piece_at = _source_of(frame, index, disk_map)
    grown = disk_map.extents.add(
        source,
        index.entries,
        segment_at=frame.segment_at,
        piece_at=piece_at,
        after=history.contained(frame.part.generation) if frame.part.stream == "log" else -1,
        upto=None if bound is None or bound.contains(frame) else bound.position,
    )
    if bound is None or bound.contains(frame):
        disk_map.size_bytes = frame.size_bytes_after
    elif grown:
        disk_map.size_bytes = grown


def _source_of(frame: Frame, index: FrameIndex, disk_map: DiskMap) -> tuple[int, int]:
    number = len(disk_map.sources) + len(disk_map.rebuilt) + 1
    if index.rebuilt:
        disk_map.rebuilt[number] = (frame.journal_file, index.pieces)
        return number, 0
    return disk_map.sources.setdefault(frame.journal_file, number), frame.pieces_at // 4


def _from_checkpoint(
    folder: Path, history: DiskHistory, bound: ReplayBound | None, *, drop_bad: bool
) -> tuple[int, DiskMap] | None:
    """Return the newest good checkpoint within the bound, and how many frames of the journal it contains."""
    if not history.frames:
        return None
    present: dict[int, int] = {}
    for frame in history.frames:
        present.setdefault(frame.journal_file, frame.start)
    for number in reversed(checkpoints.list_checkpoints(folder)):
        place = number - history.compacted - 1
        if not 0 <= place < len(history.frames) or (bound is not None and not bound.contains(history.frames[place])):
            continue
        frame = history.frames[place]
        try:
            checkpoint = checkpoints.load(folder, history.disk_id, frame)
        except BadCheckpointError as exc:
            _log.warning("checkpoint_ignored", disk=history.disk_id, frame=number, reason=str(exc))
            if drop_bad:
                checkpoints.checkpoint_path(folder, number).unlink(missing_ok=True)
            continue
        except FileNotFoundError:
            continue
        sources: dict[int, int] = {}
        checkpoints.retarget(checkpoint, sources, present)
        return place + 1, DiskMap(checkpoint.extents, checkpoint.size_bytes, sources, {})
    return None


def build_view(folder: Path, history: DiskHistory, bound: ReplayBound | None) -> ViewLayer:
    """Open the state at the bound; None: the state after all frames.

    Raises:
        RigError: ``InvalidPosition``, ``StoreCorrupt``; ``StoreIo`` (recoverable).
        FileNotFoundError: a compaction deleted a journal file.
    """
    if bound is None and not history.initial_sync_complete:
        raise RigError(Code.InvalidPosition, f"disk {history.disk_id} has no state: its initial replication is not complete")
    return view_of(folder, build_map(folder, history, bound))


def view_of(folder: Path, disk_map: DiskMap) -> ViewLayer:
    """Open a view of the map with the files that it needs; a long journal has more files than a process may open."""
    journal_files = {source: journal_file for journal_file, source in disk_map.sources.items()}
    sums = {source: pieces for source, (_, pieces) in disk_map.rebuilt.items()}
    journal_files.update({source: journal_file for source, (journal_file, _) in disk_map.rebuilt.items()})
    used = set(disk_map.extents.used(len(journal_files) + 1))
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
    return ViewLayer(disk_map.extents, sources, disk_map.size_bytes)


def base_source(folder: Path) -> Source:
    """Open the base, which is source 0 of a map."""
    return _open_source(folder / BASE, sums=folder / SUMS)


def _open_source(path: Path, *, sums: Path | None = None, table: bytes | None = None) -> Source:
    try:
        fd = host_calls.open_path(path, os.O_RDONLY)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise RigError(Code.StoreIo, f"{path}: cannot be opened: {reason(exc, path)}", recoverable=True) from exc
    sums_fd = -1
    try:
        if sums is not None:
            sums_fd = host_calls.open_path(sums, os.O_RDONLY)
        elif table is not None:
            sums_fd = os.memfd_create("sums", os.MFD_CLOEXEC)
            os.pwrite(sums_fd, table, 0)
    except BaseException:
        os.close(fd)
        raise
    return Source(fd=fd, sums_fd=sums_fd, paired=sums is not None, name=str(path))
