"""A managed disk's store: a base, a journal of applied parts, and what may be asked of them.

A folder a disk; format, order of application and what is checked when: docs/reference/formats/managed-disk.md.

Fault contract -------------- May break: the process, at any step; the power, at any step; the host's disk may be full; any
byte may rot.  Stays recoverable: all that :meth:`ManagedDiskStore.apply_part` returned for.  A part is fully verified
(every record's checksum) before a byte of it counts; it counts from the moment its frame is in the journal (or, for the
seed, ``progress`` has been replaced after the base was synced), and is durable before ``apply_part`` returns.  Applying the
same part again, after any of these, gives the same bytes.  The watermark is folded from the frames' headers on opening. Rot
is never served: every byte that is read through a view is checked (:mod:`siterig.azure_emu.disks.view`).  Rot of
``disk.json`` or ``progress``, and rot of headers and indexes that cannot be made again, is named on opening. One process at
a time has the store open for applying (the applier; the rig's lock sees to it); views and pins may be made by any process.
:meth:`ManagedDiskStore.fold`, :meth:`ManagedDiskStore.checkpoint` and the questions may run in threads of their own beside
one that applies.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import structlog

from siterig.azure_emu.contracts.ports import Change
from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.base_image import (
    Owner,
    check_size,
    clear_base,
    create_base,
    forget_intent,
    read_map,
    rebuild_map,
    redo_intent,
)
from siterig.azure_emu.disks.compaction import announce_compaction, delete_compacted, merge_into_base, update_base
from siterig.azure_emu.disks.history import DiskHistory, PartStatus
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.journal import (
    JOURNAL,
    NEVER_WRITTEN,
    JournalWriter,
    make_durable,
    read_index,
    read_tags,
    repair_frame,
)
from siterig.azure_emu.disks.loader import StoreState, load_history, query_consistently
from siterig.azure_emu.disks.metadata import DISK_META, PROGRESS, DiskMeta, OpenRecord, Progress, read_meta, write_meta
from siterig.azure_emu.disks.pins import LOCK, PINS, locked, pins
from siterig.azure_emu.disks.queries import change_list, position_at
from siterig.azure_emu.disks.view import DiskMap, base_source, build_map, build_view, open_view
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core import boot
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import Layer, Source, ViewLayer
from siterig.blockfs.transfer.part_codec import decompress
from siterig.blockfs.transfer.part_index import PartIndex, index_segment
from siterig.blockfs.transfer.part_name import PartName, Watermark
from siterig.cext.checksums import TAG_BYTES, chunk_tag

__all__ = ["ManagedDiskStore", "delete_disk", "discard_leftovers", "open_view", "reset_disk"]

Step = Callable[[str], None]
"""Called with a step's name when it is done: where tests kill."""

_NEW, _DELETED, _DAMAGED = ".new-", ".deleted-", ".damaged-"
_log = structlog.get_logger("siterig.azure_emu.disks.store")


def _no_step(_name: str) -> None:
    pass


def discard_leftovers(disks: Path) -> None:
    """Remove what creations and deletions that were cut by a kill left in the folder of all managed disks.

    A damaged store that was being set aside, and has no other in its place, is put back.
    """
    for path in disks.iterdir():
        if path.name.startswith((_NEW, _DELETED)):
            shutil.rmtree(path)
    for path in disks.glob(f"{_DAMAGED}*"):
        if not (whole := path.with_name(path.name.removeprefix(_DAMAGED))).exists():
            path.rename(whole)


def delete_disk(folder: Path, step: Step = _no_step) -> None:
    """Remove the managed disk in ``folder``, sound or not, and what was set aside of it; no-op if it is gone."""
    gone = folder.with_name(_DELETED + folder.name)
    with host_disk_errors(folder):
        shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(folder.with_name(_DAMAGED + folder.name), ignore_errors=True)
        with suppress(FileNotFoundError):
            folder.rename(gone)
            step("delete.renamed")
            sync_folder(gone.parent)
            shutil.rmtree(gone)


def known_generation(folder: Path) -> int:
    """The newest generation that a store, which may be damaged, has a part of; 0 if that cannot be told.  ``StoreIo``."""
    try:
        return load_history(folder).history.watermark().generation
    except RigError as exc:
        if exc.recoverable:
            raise
        return 0


def reset_disk(folder: Path, *, created_ns: int, step: Step = _no_step) -> ManagedDiskStore:
    """Set a store aside that no part can be applied to any more, and begin an empty one in its place.

    Its folder is ``.damaged-`` and its name from then on; one that was set aside earlier is removed.  ``DiskPinned`` if
    something lies on a position of it: that must be closed first, for the positions go.
    """
    aside = folder.with_name(_DAMAGED + folder.name)
    with host_disk_errors(folder):
        size_bytes = _size_of_damaged(folder)
        with locked(folder):
            for each in pins(folder):
                raise RigError(
                    Code.DiskPinned,
                    f"{folder}: the managed disk is damaged and must be replicated again, "
                    f"but position {each.position} of it "
                    f"is held by {each.holder}: remove that first",
                )
            shutil.rmtree(aside, ignore_errors=True)
            new = folder.with_name(_NEW + folder.name)
            _make(new, folder.name, size_bytes, created_ns, step)
            folder.rename(aside)
            step("reset.aside")
            new.rename(folder)
            step("reset.renamed")
            sync_folder(folder.parent)
    return ManagedDiskStore.open(folder, step=step)


def _size_of_damaged(folder: Path) -> int:
    """The least size that the disk had: it is as large as its first sync part says."""
    with suppress(RigError):
        return read_meta(folder / DISK_META, DiskMeta).size_bytes
    return 512


def _make(new: Path, disk_id: str, size_bytes: int, created_ns: int, step: Step) -> None:
    """The folder of an empty disk, under a name that counts for nothing."""
    shutil.rmtree(new, ignore_errors=True)
    safe_files.make_folder(new, parents=True)
    for name in (JOURNAL, checkpoints.CHECKPOINTS, PINS):
        safe_files.make_folder(new / name)
    os.close(safe_files.create_file(new / LOCK))
    step("create.folder")
    create_base(new, size_bytes)
    step("create.base")
    write_meta(new / DISK_META, DiskMeta(disk_id=disk_id, size_bytes=size_bytes, created_ns=created_ns))
    step("create.meta")


class ManagedDiskStore:
    """One managed disk, opened for applying parts."""

    def __init__(self, loaded: StoreState, tags: list[TagSeen], step: Step) -> None:
        self.folder = loaded.folder
        self._meta = loaded.meta
        self._progress = loaded.progress
        self._opened = loaded.progress.opened if loaded.progress else OpenRecord(boot=boot.current_boot_id(), frame=0)
        self._history = loaded.history
        self._tags = tags
        self._step = step
        self._lock = threading.Lock()  # of history and progress
        self._compaction_lock = threading.Lock()
        self._closed = False
        self._latest: tuple[Layer, list[tuple[int, int]]] | None = None
        self._since_checkpoint = self._extents = 0
        self._look_for_checkpoint()
        last = self._history.compacted + len(self._history.frames)
        self._writer = JournalWriter(self.folder, self._history.size_bytes, loaded.journal, last, self._told)

    def _told(self, name: str) -> None:
        self._step(name)  # tests change it

    @classmethod
    def create(
        cls, folder: Path, *, disk_id: str, size_bytes: int, created_ns: int, step: Step = _no_step
    ) -> ManagedDiskStore:
        """An empty disk.  It is there whole or not at all (``DiskExists``, ``InvalidDiskSize``, ``DiskFull``)."""
        if size_bytes <= 0 or size_bytes % SECTOR_BYTES:
            raise RigError(
                Code.InvalidDiskSize, f"disk {disk_id}: size {size_bytes} is not a positive multiple of 512 bytes"
            )
        if folder.exists():
            raise RigError(Code.DiskExists, f"{folder}: there is a managed disk already")
        new = folder.with_name(_NEW + folder.name)
        with host_disk_errors(folder):
            _make(new, disk_id, size_bytes, created_ns, step)
            new.rename(folder)
            step("create.renamed")
            sync_folder(folder.parent)
        return cls.open(folder, step=step)

    @classmethod
    def open(cls, folder: Path, *, step: Step = _no_step) -> ManagedDiskStore:
        """Open; headers and indexes are verified, repaired where that is possible; a fold that was cut is done.

        ``DiskNotFound``, ``StoreVersion``, ``StoreCorrupt``, ``DiskFull`` (recoverable).
        """
        with host_disk_errors(folder):
            loaded = load_history(folder)
            if loaded.journal.broken is not None:
                raise loaded.journal.broken
            tags = _check_frames(loaded)
            _check_map(folder)
            sync_folder(folder)  # a kill between rename and sync: what is counted now must stay
            _note_opening(loaded)
            store = cls(loaded, tags, step)
            store._resume_compaction()
        return store

    @property
    def disk_id(self) -> str:
        """The disk's UUID."""
        return self._meta.disk_id

    @property
    def created_size_bytes(self) -> int:
        """The size that the disk was made with, or had when it was first copied."""
        return self._meta.size_bytes

    @property
    def size_bytes(self) -> int:
        """The disk's size now."""
        return self._history.size_bytes

    @property
    def oldest_position(self) -> int:
        """The oldest position that can be read (0 before the initial replication is complete)."""
        return self._history.oldest_position

    def watermark(self) -> Watermark:
        """What is durably applied."""
        with self._lock:
            return self._history.watermark()

    def tags(self, first: int = 0) -> list[TagSeen]:
        """Tags found in applied log parts, in order, from the ``first``-th on; the list only ever grows while it is open."""
        return self._tags[first:]

    def valid_ranges(self) -> list[tuple[int, int]]:
        """(first, last) positions that can be read, oldest first."""
        with self._lock:
            return [(first, last) for _, first, last in self._history.valid()]

    def expected(self) -> str:
        """The part that comes next, in words."""
        return self._history.expected()

    def classify(self, part: PartName) -> PartStatus:
        """Whether ``part`` is to be applied now (``next``), not needed any more (``applied``), ..."""
        return self._history.classify(part)

    # --- applying -----------------------------------------------------------------------------------------------

    def apply_part(self, part: PartName, data: bytes) -> Watermark:
        """Apply a packed part durably; the watermark afterwards.  An applied part changes nothing.

        ``PartGap`` (something before it is missing), ``PartCorrupt``, ``PartRefused`` (sound, but not of this disk),
        ``PositionRegressed``, ``DiskFull`` (recoverable).  After an error the disk is as it was.
        """
        if part.disk_id != self.disk_id:
            raise RigError(Code.PartRefused, f"part {part.blob()}: is of another disk than {self.disk_id}")
        status = self._history.classify(part)
        if status == "applied":
            return self.watermark()
        if status != "next":
            raise RigError(Code.PartGap, f"part {part.blob()}: {self._history.expected()} comes next")
        segment = decompress(part, data)

        def verify() -> PartIndex:
            index = index_segment(segment, part, self._history.size_bytes)
            self._history.check_positions(part, index.first_position)
            if index.size_bytes_after > self._history.size_bytes:
                check_size(self.folder, index.size_bytes_after, part)
            return index

        with host_disk_errors(self.folder):
            self._step("apply.unpacked")
            if self._history.initial_sync_complete:
                frame, index = self._writer.append(part, segment, verify)
                self._forget_latest()
                with self._lock:
                    self._since_checkpoint += frame.records
                    self._history.add(frame)
                    self._tags += filter(self._history.names_position, index.tags)
            else:
                self._apply_initial_sync(part, segment, verify())
        return self.watermark()

    def _apply_initial_sync(self, part: PartName, segment: bytes, index: PartIndex) -> None:
        """Put a part of the initial replication into the base, then count it.

        Part 1 begins with an empty base, whatever an earlier, unfinished generation left in it: no point of that one is
        valid, and an initial replication does not send zeros.  The disk may have grown since the managed disk was made.
        """
        size_bytes = index.size_bytes_after
        if size_bytes > self.created_size_bytes:
            check_size(self.folder, size_bytes, part)
        if part.first != 1 and size_bytes != self.created_size_bytes:
            raise RigError(
                Code.PartRefused,
                f"part {part.blob()}: is of a disk of {size_bytes} bytes; the parts before it are of one of "
                f"{self.created_size_bytes}",
            )
        if part.first == 1:
            # Counted first: were the base cleared before, a kill would leave the old generation's count over nothing.
            self._count(Progress(generation=part.generation))
            self._step("initial_sync.restarted")
            if size_bytes != self.created_size_bytes:  # larger: a smaller one was refused before
                self._meta = self._meta.model_copy(update={"size_bytes": size_bytes})
                write_meta(self.folder / DISK_META, self._meta)
                self._history.set_meta(self._meta)
                self._step("initial_sync.grown")
            clear_base(self.folder, self.created_size_bytes)
            self._step("initial_sync.cleared")
        owner = Owner(generation=part.generation, part=part.first)
        redo_intent(self.folder, owner)
        found = DiskMap(ExtentMap(), size_bytes, {}, {})
        found.extents.add(1, index.entries, segment_at=0, piece_at=0)
        found.extents.merge_pending()
        merge_into_base(
            self.folder, found, owner, self._told, lambda found: _initial_sync_view(self.folder, found, segment, index)
        )
        self._step("initial_sync.mapped")
        done = index.sync_end_seq is not None
        first = part.first == 1
        progress = Progress(
            generation=part.generation,
            sync_parts=part.last,
            first_position=index.first_position if first else self._history.epochs[0].first_position,
            complete=done,
            position=index.position if done else 0,
            time_ns=index.time_ns if done else 0,
            first_seq=index.sync_end_seq or 0,
            floor=index.position if done else 0,
            floor_time_ns=index.time_ns if done else 0,
            size_bytes=size_bytes if done else 0,
        )
        self._count(progress)
        self._step("initial_sync.counted")
        forget_intent(self.folder)

    def _count(self, progress: Progress) -> None:
        progress = self._noting_opening(progress)
        write_meta(self.folder / PROGRESS, progress)
        self._forget_latest()
        with self._lock:
            self._progress = progress
            self._history.set_progress(progress)

    def _noting_opening(self, progress: Progress) -> Progress:
        return progress.model_copy(update={"opened": self._opened})

    # --- reading ------------------------------------------------------------------------------------------------

    def view(self, position: int) -> ViewLayer:
        """The disk as of ``position``, read-only; the caller closes it (``InvalidPosition``)."""
        with host_disk_errors(self.folder):
            return open_view(self.folder, position)

    def latest_view(self) -> ViewLayer:
        """With everything that was applied, even of an unfinished resync; the caller closes it."""
        with host_disk_errors(self.folder):
            while True:
                with self._lock:
                    history = self._history
                try:
                    return build_view(self.folder, history, None)
                except FileNotFoundError:
                    if history is self._history:  # else a fold took away what it had put into the base
                        raise

    def checksums(self, key: bytes, chunk_bytes: int, first: int, count: int) -> list[bytes]:
        """Tags (:func:`siterig.cext.checksums.chunk_tag`) of ``count`` chunks of the latest state, for a resync to compare
        with.

        While the initial replication is not complete, every tag says *zeros*: the next generation begins anew.  A chunk
        that cannot be read has a tag that nothing has, so that it is sent again.
        """
        if not self._history.initial_sync_complete:
            return [bytes(TAG_BYTES)] * count
        with host_disk_errors(self.folder):
            if self._latest is None:
                view = self.latest_view()
                self._latest = (view, view.data_ranges())
            return list(_layer_tags(*self._latest, key, chunk_bytes, range(first, first + count)))

    def position_at(self, time_ns: int) -> int:
        """The last valid position whose record is not younger than ``time_ns``; ``InvalidPosition``."""
        return query_consistently(self.folder, lambda loaded: position_at(loaded, time_ns))

    def changes(self, after: int, upto: int, limit: int) -> list[Change]:
        """The first ``limit`` changes of the disk with ``after < position <= upto``, in order."""
        return query_consistently(self.folder, lambda loaded: change_list(loaded, after, upto, limit))

    # --- folding and checkpoints --------------------------------------------------------------------------------

    def compact(self, upto: int, step: Step | None = None) -> int:
        """Put the journal up to ``upto``, or to what is pinned, into the base; the floor then.

        ``DiskFull`` (recoverable), ``StoreCorrupt`` (a pin cannot be read).
        """
        while self.compact_step(upto, step):
            pass
        return self.oldest_position

    def compact_step(self, upto: int, step: Step | None = None) -> bool:
        """As much of that as is folded at a time, which is a complete fold; whether there was any."""
        step = step or self._told
        with self._compaction_lock, host_disk_errors(self.folder):
            if self._closed or not self._history.initial_sync_complete:
                return False
            progress = self._progress
            if progress is None or progress.fold is None:  # else one that failed comes first: its blocks may be torn
                progress = (
                    announce_compaction(self.folder, self._history, upto, step)
                    if upto > self._history.oldest_position
                    else None
                )
            if progress is None:
                return False
            self._finish_compaction(progress, step)
        return True

    def _finish_compaction(self, progress: Progress, step: Step) -> None:
        if progress.fold is None:
            return
        with self._lock:
            self._progress = progress
            self._history.begin_compaction(progress.fold)
        update_base(self.folder, self._history, progress.fold, step)
        with self._lock:
            done = self._noting_opening(self._history.progress_at(progress.fold.frame))
            write_meta(self.folder / PROGRESS, done)
            history = DiskHistory(self._meta, done)
            for frame in self._history.frames:
                if frame.number > done.frame:
                    history.add(frame)
            self._progress, self._history = done, history
        step("compaction.counted")
        delete_compacted(self.folder, done.frame, step)
        self._look_for_checkpoint()

    def _resume_compaction(self) -> None:
        """Bring a fold that was cut to its end, and clear what one left that came to it.

        If that cannot be done now, parts can be applied all the same, and the next fold begins with it.
        """
        if self._progress is None or not self._history.initial_sync_complete:
            return
        try:
            if self._progress.fold is not None:
                self._finish_compaction(self._progress, self._told)
            else:
                delete_compacted(self.folder, self._history.compacted, _no_step)
        except OSError as exc:
            _log.warning("compaction_not_finished", store=str(self.folder), reason=str(exc))

    @property
    def checkpoint_due(self) -> bool:
        """Whether :meth:`checkpoint` would make one."""
        return self._since_checkpoint > max(checkpoints.RECORDS_MIN, self._extents // 4)

    def checkpoint(self, step: Step | None = None) -> bool:
        """Make a checkpoint at the newest frame if it is due; whether one was made."""
        step = step or self._told
        with self._compaction_lock, host_disk_errors(self.folder):
            if self._closed or not self.checkpoint_due:
                return False
            with self._lock:
                history = self._history.upto(self._history.compacted + len(self._history.frames))
            found = build_map(self.folder, history, None, drop_bad=True)
            if found.rebuilt:
                return False
            frame = history.frames[-1]
            made = checkpoints.Checkpoint(frame.number, found.size_bytes, list(found.sources), found.extents)
            checkpoints.save(self.folder, self.disk_id, frame, made)
            step("checkpoint.saved")
            self._look_for_checkpoint()
            return True

    def _look_for_checkpoint(self) -> None:
        """How many records came since the last one, and how many extents it has."""
        with self._lock:
            newest = max(checkpoints.list_checkpoints(self.folder), default=0)
            self._extents = checkpoints.extent_count(self.folder, newest)
            self._since_checkpoint = sum(frame.records for frame in self._history.frames if frame.number > newest)

    # --- end ----------------------------------------------------------------------------------------------------

    def delete(self) -> None:
        """Remove the disk and everything in it.  Open views go on reading."""
        self.close()
        delete_disk(self.folder, self._step)

    def close(self) -> None:
        """Let go of open files; a fold that goes on ends with its slice."""
        self._closed = True
        with self._compaction_lock:
            self._forget_latest()
            self._writer.close()

    def _forget_latest(self) -> None:
        if self._latest is not None:
            self._latest[0].close()
            self._latest = None


def _check_frames(loaded: StoreState) -> list[TagSeen]:
    """Verify the index of every frame, repair frames where possible, and return the tags."""
    tags: list[TagSeen] = []
    past = loaded.history.upto(loaded.history.compacted)
    bad_headers = {frame.number: why for frame, _, why in loaded.journal.repaired}
    for frame in loaded.history.frames:
        size_before = loaded.history.size_before(frame)
        index = read_index(loaded.folder, frame, size_before)
        found, rebuilt = read_tags(loaded.folder, frame, size_before)
        if index.rebuilt or rebuilt or frame.number in bad_headers:
            note = _log.info if bad_headers.get(frame.number) == NEVER_WRITTEN else _log.warning
            note("frame_repaired", store=str(loaded.folder), journal_file=frame.journal_file, frame=frame.number)
            repair_frame(loaded.folder, frame, size_before)
        past.add(frame)
        tags += filter(past.names_position, found)
    return tags


def _note_opening(loaded: StoreState) -> None:
    """In the first opening of a boot, note that all frames count which are there now: from now on a bad one is rot."""
    progress, now = loaded.progress, boot.current_boot_id()
    if progress is None or progress.opened.boot == now:
        make_durable(loaded.folder, loaded.journal)
        return
    frames = loaded.history.frames
    last = loaded.history.compacted + len(frames)
    if loaded.journal.torn is not None:  # what is before it counts at once, but until it is cut it is of the boot before
        note = OpenRecord(boot=progress.opened.boot, frame=last)
        write_meta(loaded.folder / PROGRESS, progress.model_copy(update={"opened": note}))
    make_durable(loaded.folder, loaded.journal)
    if frames:  # of which only the segment was looked at
        repair_frame(loaded.folder, frames[-1], loaded.history.size_before(frames[-1]))
    loaded.progress = progress.model_copy(update={"opened": OpenRecord(boot=now, frame=last)})
    write_meta(loaded.folder / PROGRESS, loaded.progress)


def _check_map(folder: Path) -> None:
    try:
        read_map(folder)
    except RigError as exc:
        if exc.recoverable:
            raise
        _log.warning("base_map_rebuilt", store=str(folder), reason=exc.message)
        rebuild_map(folder)


def _initial_sync_view(folder: Path, found: DiskMap, segment: bytes, index: PartIndex) -> ViewLayer:
    """A part, which is in no file yet, over the base."""
    fds = []
    for name, data in (("segment", segment), ("sums", index.pieces)):
        fds.append(os.memfd_create(name, os.MFD_CLOEXEC))
        view = memoryview(data)
        while view:
            view = view[os.write(fds[-1], view) :]
    return ViewLayer(found.extents, [base_source(folder), Source(fd=fds[0], sums_fd=fds[1])], found.size_bytes)


def _layer_tags(layer: Layer, ranges: list[tuple[int, int]], key: bytes, chunk_bytes: int, chunks: range) -> Iterator[bytes]:
    """As ``chunk_tags_fd`` does it for a file: chunks without data are zeros, what is past the end counts as zeros."""
    at = 0
    for index in chunks:
        start, stop = index * chunk_bytes, (index + 1) * chunk_bytes
        while at < len(ranges) and sum(ranges[at]) <= start:
            at += 1
        if at == len(ranges) or ranges[at][0] >= stop:
            yield bytes(TAG_BYTES)
            continue
        try:
            data = layer.pread(start, min(stop, layer.size_bytes) - start)
        except OSError:
            yield secrets.token_bytes(TAG_BYTES)
        else:
            yield chunk_tag(key, index, data.ljust(chunk_bytes, b"\0"))
