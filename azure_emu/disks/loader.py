"""Loads the state of a managed disk from its folder: identity, progress and the headers of all frames, but no data.

Fault contract: a bad byte in ``disk.json`` or ``progress``, and a base of another length, raise ``StoreCorrupt``; there is
no history without them.  If the chain of frames is broken, the history ends there, and a later position raises the error of
the broken frame.  Any process may load while the applier applies, compacts and deletes; files that change meanwhile are read
again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from siterig.azure_emu.disks.base_image import BASE, SUMS
from siterig.azure_emu.disks.history import DiskHistory, Epoch
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.journal import JournalState, journal_file_path, list_journal_files, read_journal
from siterig.azure_emu.disks.metadata import DISK_META, NOT_OPENED, PROGRESS, DiskMeta, Progress, read_meta, store_corrupt
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.small_file import FileTooLongError, read_small_file

TRIES_MAX = 8
T = TypeVar("T")


@dataclass(slots=True)
class StoreState:
    """The state of a managed disk's folder at one moment."""

    folder: Path
    meta: DiskMeta
    progress: Progress | None
    history: DiskHistory
    journal: JournalState

    def epoch_of(self, position: int) -> Epoch:
        """Return the generation to read ``position`` from.

        Raises:
            RigError: ``InvalidPosition``; ``StoreCorrupt`` if the chain of frames is broken before it.
        """
        try:
            return self.history.epoch_of(position)
        except RigError:
            broken = self.journal.broken
            if broken is not None and position > self.history.watermark().complete_position:
                raise broken from None
            raise


def load_history(folder: Path) -> StoreState:
    """Load the state of a managed disk; during a compaction, positions below its target are not valid any more.

    Raises:
        RigError: ``DiskNotFound``, ``StoreCorrupt``, ``StoreVersion``; ``StoreIo`` (recoverable).
    """
    tries = TRIES_MAX
    while True:
        if not folder.is_dir():
            raise RigError(Code.DiskNotFound, f"{folder}: there is no managed disk")
        before = _raw_progress(folder)
        try:
            loaded = _load(folder)
        except (RigError, FileNotFoundError):
            if _raw_progress(folder) == before or tries == 0:
                raise
        else:
            if _raw_progress(folder) == before or tries == 0:
                return loaded
        tries -= 1


def oldest_position_of(folder: Path) -> int | None:
    """Return the oldest position that can be opened, or the target of a running compaction; None if no position can be."""
    if not _raw_progress(folder):
        return None  # the disk was deleted, or its initial replication has begun again
    progress = read_meta(folder / PROGRESS, Progress)
    return progress.fold.position if progress.fold else progress.floor


def query_consistently(folder: Path, query: Callable[[StoreState], T]) -> T:
    """Return the result of ``query``; repeat it if a compaction deleted a file that it was reading.

    Raises:
        RigError: as :func:`load_history`, or as ``query`` raises.
    """
    tries = TRIES_MAX
    with host_disk_errors(folder):
        while True:
            loaded = load_history(folder)
            try:
                return query(loaded)
            except FileNotFoundError as exc:
                tries -= 1
                if tries == 0 or load_history(folder).history.compacted == loaded.history.compacted:
                    raise store_corrupt(Path(exc.filename or folder), "is missing") from exc


def _raw_progress(folder: Path) -> bytes:
    try:
        return read_small_file(folder / PROGRESS)
    except (OSError, FileTooLongError):
        return b""


def _load(folder: Path) -> StoreState:
    meta = read_meta(folder / DISK_META, DiskMeta)
    path = folder / PROGRESS
    progress = read_meta(path, Progress) if path.exists() else None
    if progress is None and list_journal_files(folder):
        raise store_corrupt(path, "is missing")
    history = DiskHistory(meta, progress)
    _check_base(folder, meta, progress)
    journal = read_journal(folder, meta.disk_id, history.compacted, progress.opened if progress else NOT_OPENED)
    for frame in journal.frames:
        if not history.initial_sync_complete or history.classify(frame.part) != "next" or history.regresses(frame):
            path = journal_file_path(folder, frame.journal_file)
            journal.broken_at = path, frame.start
            journal.broken = store_corrupt(
                path,
                f"byte {frame.start}: frame {frame.number} does not follow the one before: {history.expected()} comes next",
            )
            break
        history.add(frame)
    if progress is not None and progress.fold is not None:
        history.begin_compaction(progress.fold)
    return StoreState(folder, meta, progress, history, journal)


def _check_base(folder: Path, meta: DiskMeta, progress: Progress | None) -> None:
    for path in (folder / BASE, folder / SUMS):
        if not path.is_file():
            raise store_corrupt(path, "is missing")
    size = (folder / BASE).stat().st_size
    expected = (progress.size_bytes if progress else 0) or meta.size_bytes
    # An initial replication or a compaction that a kill interrupted may have changed the size of the base.
    if progress is None or (progress.fold is None and progress.sync_parts):
        if size != expected:
            raise store_corrupt(folder / BASE, f"has {size} bytes; the disk was created with {expected}")
    elif progress.fold is not None and size < expected:
        raise store_corrupt(folder / BASE, f"has {size} bytes; the disk has {expected}")
