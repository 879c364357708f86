"""Folding: the oldest part of the journal becomes part of the base, and its space is given back.

Fault contract
--------------
A fold is announced in ``progress``, under the lock under which positions are pinned, before it changes anything; from then
on no position below its target can be opened.  Killed at any step, it is done again when the disk is next opened for
applying, to the same end: nothing of the journal is deleted before ``progress`` says that the base has it.  Views at the
target or behind it stay right all the time: what was folded is in their extents, and what they read of the base does not
change, or is a block of which either checksum is right.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.base_image import (
    Blocks,
    Owner,
    Ranges,
    forget_intent,
    grow_base,
    merge_blocks,
    read_map,
    redo_intent,
    unpack_map,
    write_map,
)
from siterig.azure_emu.disks.history import DiskHistory
from siterig.azure_emu.disks.journal import JOURNAL, journal_file_path, list_journal_files
from siterig.azure_emu.disks.metadata import PROGRESS, CompactionIntent, Progress, read_meta, write_meta
from siterig.azure_emu.disks.pins import locked, pins
from siterig.azure_emu.disks.view import DiskMap, build_map, view_of
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.layers.base_update import BLOCK_BYTES
from siterig.blockfs.layers.layer import ViewLayer, merge_ranges

Step = Callable[[str], None]
DELETERS = 4
"""Threads."""


def announce_compaction(folder: Path, history: DiskHistory, upto: int, step: Step) -> Progress | None:
    """Say that everything up to ``upto``, or as much of it as may be folded at a time, is to go into the base; durable.

    None: there is nothing to fold, or what there is is pinned.
    """
    with locked(folder):
        lowest = min((pin.position for pin in pins(folder)), default=upto)
        frame = history.compaction_target(min(upto, lowest))
        if frame == history.compacted:
            return None
        progress = read_meta(folder / PROGRESS, Progress)
        note = CompactionIntent(frame=frame, position=history.progress_at(frame).floor)
        progress = progress.model_copy(update={"fold": note})
        write_meta(folder / PROGRESS, progress)
    step("compaction.announced")
    return progress


def update_base(folder: Path, history: DiskHistory, note: CompactionIntent, step: Step) -> None:
    """Make the base what the disk was at the end of the note's frame.  ``history`` goes on meanwhile."""
    past = history.upto(note.frame)
    owner = Owner(frame=note.frame)
    grow_base(folder, past.size_bytes)
    redo_intent(folder, owner)
    found = build_map(folder, past, None, base=False)
    merge_into_base(folder, found, owner, step)
    step("compaction.mapped")


def merge_into_base(
    folder: Path, found: DiskMap, owner: Owner, step: Step, view_map: Callable[[DiskMap], ViewLayer] | None = None
) -> None:
    """Put all that ``found`` has (merged, without the base) into the base, and note in its map what holds data now."""
    data = unpack_map(read_map(folder))
    blocks = Blocks(found.extents.touched(BLOCK_BYTES), _edges(found.extents.touched(), data))
    found.extents.add_base(data)
    found.extents.merge_pending()
    view = view_map(found) if view_map else view_of(folder, found)
    try:
        merge_blocks(folder, view, blocks, owner, step)
    finally:
        view.close()
    write_map(folder, _whole_blocks(found.extents.ranges()))


def _edges(touched: Ranges, data: Ranges) -> list[int]:
    """Blocks of the base's data of which only a part is touched; the rest of any other is zeros."""
    cut = set()
    for offset, length in touched:
        end = offset + length
        if offset % BLOCK_BYTES:
            cut.add(offset - offset % BLOCK_BYTES)
        if end % BLOCK_BYTES:
            cut.add(end - end % BLOCK_BYTES)
    found = []
    following = iter(data)
    offset, length = next(following, (0, 0))
    for block in sorted(cut):
        while length and offset + length <= block:
            offset, length = next(following, (0, 0))
        if length and offset <= block:
            found.append(block)
    return found


def _whole_blocks(ranges: Ranges) -> Ranges:
    def rounded(offset: int, length: int) -> tuple[int, int]:
        start = offset - offset % BLOCK_BYTES
        return start, -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES - start

    return merge_ranges([rounded(offset, length) for offset, length in ranges])


def delete_compacted(folder: Path, compacted: int, step: Step) -> None:
    """Remove the journal files and checkpoints that are of nothing behind frame ``compacted``, and what a fold noted.

    The newest journal file stays: it grows.  Several are deleted at a time: some hosts wait for the medium at each; which of
    them a kill leaves does not matter, for that they are done with shows from the one behind them.
    """
    journal_files = list_journal_files(folder)
    doomed = [journal_file for journal_file, following in pairwise(journal_files) if following <= compacted + 1]
    with ThreadPoolExecutor(DELETERS) as pool:
        for _ in pool.map(lambda journal_file: journal_file_path(folder, journal_file).unlink(), doomed):
            step("compaction.journal_file_deleted")
    if doomed:
        sync_folder(folder / JOURNAL)
    for number in checkpoints.list_checkpoints(folder):
        if number <= compacted:
            with suppress(FileNotFoundError):
                checkpoints.checkpoint_path(folder, number).unlink()
            step("compaction.checkpoint_deleted")
    forget_intent(folder)
    step("compaction.done")
