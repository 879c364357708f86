"""A managed disk that is open for applying parts: a base, a journal of applied parts, and the latest state.

Each disk has a folder.  Its format, the order of application, and the times of the checks:
docs/reference/formats/managed-disk.md.

Fault contract
--------------
May break: the process at any step; the power at any step; the host's disk may be full; any byte may become corrupt.

Stays recoverable: every part for which :meth:`ManagedDiskStore.apply_part` returned.  All checksums of a part are verified
before a byte of it counts.  The part counts from the moment at which its frame is in the journal; a part of the initial
replication counts when the base is synced and ``progress`` is replaced.  It is durable before ``apply_part`` returns.  After
any fault, the same part can be applied again, with the same bytes as the result.  The watermark is computed from the frames'
headers on opening.

Corrupt data is never served: every byte that is read through a view is checked (:mod:`siterig.azure_emu.disks.view`).
Opening raises an error that names the file if ``disk.json``, ``progress``, or a header or index that cannot be rebuilt is
corrupt.

One process at a time has the managed disk open for applying (the applier; the lock of the rig prevents others).  Any process
may make views and pins.  :class:`siterig.azure_emu.disks.compaction.Compactor` and the queries may run in other threads
concurrently with one that applies.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path

import structlog
from typing_extensions import Buffer

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.applied import AppliedState
from siterig.azure_emu.disks.base_image import (
    IntentOwner,
    check_size,
    clear_base,
    create_base,
    forget_intent,
    read_map,
    rebuild_map,
    redo_intent,
)
from siterig.azure_emu.disks.compaction import Compactor, merge_into_base
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
from siterig.azure_emu.disks.loader import StoreState, load_history
from siterig.azure_emu.disks.metadata import DISK_META, PROGRESS, DiskMeta, OpenRecord, Progress, read_meta, write_meta
from siterig.azure_emu.disks.pins import LOCK, PINS, locked, pins
from siterig.azure_emu.disks.view import DiskMap, base_source, build_view, cipher_of, decrypted, open_view
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.core import boot
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.failpoint import Failpoint
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import Source, ViewLayer
from siterig.blockfs.transfer.codec import decompress
from siterig.blockfs.transfer.encrypted_part import encrypted_segment
from siterig.blockfs.transfer.envelope import DataKey
from siterig.blockfs.transfer.part_index import PartIndex, index_segment
from siterig.blockfs.transfer.part_name import PartName, Watermark

_NEW, _DELETED, _DAMAGED = ".new-", ".deleted-", ".damaged-"
_log = structlog.get_logger("siterig.azure_emu.disks.store")

_FOLDER_CREATED = Failpoint("store.create.folder")
_BASE_CREATED = Failpoint("store.create.base")
_META_CREATED = Failpoint("store.create.meta")
_CREATED = Failpoint("store.create.renamed")
_DELETING = Failpoint("store.delete.renamed")
_SET_ASIDE = Failpoint("store.reset.aside")
_RESET = Failpoint("store.reset.renamed")
_UNPACKED = Failpoint("store.apply.unpacked")
_RESTARTED = Failpoint("store.initial_sync.restarted")
_GROWN = Failpoint("store.initial_sync.grown")
_CLEARED = Failpoint("store.initial_sync.cleared")
_MAPPED = Failpoint("store.initial_sync.mapped")
_COUNTED = Failpoint("store.initial_sync.counted")


def discard_leftovers(disks: Path) -> None:
    """Remove the remains of creations and deletions that a kill interrupted, from the folder of all managed disks.

    A damaged managed disk that was being set aside, and has no successor in its place, is restored.
    """
    for path in disks.iterdir():
        if path.name.startswith((_NEW, _DELETED)):
            shutil.rmtree(path)
    for path in disks.glob(f"{_DAMAGED}*"):
        if not (whole := path.with_name(path.name.removeprefix(_DAMAGED))).exists():
            path.rename(whole)


def delete_disk(folder: Path) -> None:
    """Delete the managed disk in ``folder``, intact or damaged, and a copy that was set aside; no-op if there is none."""
    doomed = folder.with_name(_DELETED + folder.name)
    with host_disk_errors(folder):
        shutil.rmtree(doomed, ignore_errors=True)
        shutil.rmtree(folder.with_name(_DAMAGED + folder.name), ignore_errors=True)
        with suppress(FileNotFoundError):
            folder.rename(doomed)
            _DELETING.reach()
            sync_folder(doomed.parent)
            shutil.rmtree(doomed)


def known_generation(folder: Path) -> int:
    """Return the newest generation of which a managed disk, which may be damaged, has a part; 0 if it cannot be read.

    Raises:
        RigError: ``StoreIo`` (recoverable).
    """
    try:
        return load_history(folder).history.watermark().generation
    except RigError as exc:
        if exc.recoverable:
            raise
        return 0


def reset_disk(
    folder: Path, *, created_ns: int, clock: Clock = SYSTEM_CLOCK, key: DataKey | None = None
) -> ManagedDiskStore:
    """Set aside a managed disk to which no part can be applied any more, and create an empty one in its place.

    The old folder is renamed to ``.damaged-`` and its name.  One that was set aside earlier is deleted.

    Args:
        folder: the managed disk's folder.
        created_ns: wall time of the new one.
        clock: the clock of the new one.
    Raises:
        RigError: ``DiskPinned`` if a position is pinned: it must be released first, because all positions are lost.
    """
    aside = folder.with_name(_DAMAGED + folder.name)
    with host_disk_errors(folder):
        size_bytes = _size_of_damaged(folder)
        with locked(folder):
            for pin in pins(folder):
                raise RigError(
                    Code.DiskPinned,
                    f"{folder}: the managed disk is damaged and must be replicated again, but position {pin.position} of "
                    f"it is held by {pin.holder}: remove that first",
                )
            shutil.rmtree(aside, ignore_errors=True)
            new = new_folder(folder)
            make_disk(new, folder.name, size_bytes, created_ns, key)
            folder.rename(aside)
            _SET_ASIDE.reach()
            new.rename(folder)
            _RESET.reach()
            sync_folder(folder.parent)
    return ManagedDiskStore.open(folder, clock=clock, key=key)


def _size_of_damaged(folder: Path) -> int:
    """Return the size that the disk had, or the minimum: the first sync part sets the size in any case."""
    with suppress(RigError):
        return read_meta(folder / DISK_META, DiskMeta).size_bytes
    return SECTOR_BYTES


def new_folder(folder: Path) -> Path:
    """Return the temporary name of a folder that is to become a managed disk; :func:`discard_leftovers` removes it."""
    return folder.with_name(_NEW + folder.name)


def make_disk(new: Path, disk_id: str, size_bytes: int, created_ns: int, key: DataKey | None) -> None:
    """Create the folder of an empty disk under a temporary name."""
    shutil.rmtree(new, ignore_errors=True)
    safe_files.make_folder(new, parents=True)
    for name in (JOURNAL, checkpoints.CHECKPOINTS, PINS):
        safe_files.make_folder(new / name)
    os.close(safe_files.create_file(new / LOCK))
    _FOLDER_CREATED.reach()
    create_base(new, size_bytes)
    _BASE_CREATED.reach()
    key_id = None if key is None else str(key.key_id)
    write_meta(new / DISK_META, DiskMeta(disk_id=disk_id, size_bytes=size_bytes, created_ns=created_ns, key_id=key_id))
    _META_CREATED.reach()


class ManagedDiskStore:
    """One managed disk that is open for applying parts."""

    def __init__(self, loaded: StoreState, tags: list[TagSeen], clock: Clock, cipher: DiskCipher | None) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self._cipher = cipher
        self.folder = loaded.folder
        self._state = AppliedState(loaded)
        self._clock = clock
        self._tags = tags
        self.compactor = Compactor(self._state, clock)
        self._writer = JournalWriter(self.folder, self.size_bytes, loaded.journal, self._state.newest_frame)

    @classmethod
    def create(
        cls,
        folder: Path,
        *,
        disk_id: str,
        size_bytes: int,
        created_ns: int,
        clock: Clock = SYSTEM_CLOCK,
        key: DataKey | None = None,
    ) -> ManagedDiskStore:
        """Create an empty disk; after a kill it exists as a whole or not at all.

        Args:
            folder: the folder of the disk, which does not exist.
            disk_id: the UUID of the disk.
            size_bytes: its size.
            created_ns: wall time.
            clock: the time.
            key: encrypts the data of the disk; None: they are not encrypted.
        Raises:
            RigError: ``DiskExists``, ``InvalidDiskSize``, ``DiskFull`` (recoverable).
        """
        if size_bytes <= 0 or size_bytes % SECTOR_BYTES:
            raise RigError(
                Code.InvalidDiskSize, f"disk {disk_id}: size {size_bytes} is not a positive multiple of 512 bytes"
            )
        if folder.exists():
            raise RigError(Code.DiskExists, f"{folder}: there is a managed disk already")
        new = new_folder(folder)
        with host_disk_errors(folder):
            make_disk(new, disk_id, size_bytes, created_ns, key)
            new.rename(folder)
            _CREATED.reach()
            sync_folder(folder.parent)
        return cls.open(folder, clock=clock, key=key)

    @classmethod
    def open(cls, folder: Path, *, clock: Clock = SYSTEM_CLOCK, key: DataKey | None = None) -> ManagedDiskStore:
        """Open a managed disk: verify headers and indexes, repair them where possible, and finish a compaction.

        Args:
            folder: the folder of the disk.
            clock: the time.
            key: the key of the disk; it is ignored if the disk is not encrypted.
        Raises:
            RigError: ``DiskNotFound``, ``StoreVersion``, ``StoreCorrupt``; ``KeyMissing`` for another key;
                ``DiskFull``, ``StoreIo`` (recoverable).
        """
        with host_disk_errors(folder):
            loaded = load_history(folder)
            cipher = cipher_of(loaded, key)
            if loaded.journal.broken is not None:
                raise loaded.journal.broken
            tags = _check_frames(loaded)
            _check_map(loaded)
            sync_folder(folder)  # a kill may have come between rename and sync: everything that counts now must stay
            _record_opening(loaded)
            store = cls(loaded, tags, clock, cipher)
            store.compactor.resume()
        return store

    @property
    def disk_id(self) -> str:
        """The UUID of the disk."""
        return self._state.meta.disk_id

    @property
    def is_encrypted(self) -> bool:
        """True if the data of the disk are encrypted."""
        return self._cipher is not None

    @property
    def created_size_bytes(self) -> int:
        """The size of the disk when it was created, or when its initial replication began."""
        return self._state.meta.size_bytes

    @property
    def size_bytes(self) -> int:
        """The size of the disk now."""
        return self._state.history.size_bytes

    @property
    def initial_sync_complete(self) -> bool:
        """True if the disk has a state; before that, the next generation begins with an empty base."""
        return self._state.history.initial_sync_complete

    @property
    def oldest_position(self) -> int:
        """The oldest position that can be read; 0 before the initial replication is complete."""
        return self._state.history.oldest_position

    def watermark(self) -> Watermark:
        """Return how far parts are durably applied."""
        with self._state.lock:
            return self._state.history.watermark()

    def tags(self, first: int = 0) -> list[TagSeen]:
        """Return the tags of the applied log parts from number ``first`` on; the list only grows while the disk is open."""
        return self._tags[first:]

    def valid_ranges(self) -> list[tuple[int, int]]:
        """Return the ranges (first, last) of valid positions, oldest first."""
        with self._state.lock:
            return [(first, last) for _, first, last in self._state.history.valid()]

    def expected(self) -> str:
        """Return a description of the part that comes next, for messages."""
        return self._state.history.expected()

    def classify(self, part: PartName) -> PartStatus:
        """Return whether ``part`` is to be applied now (``next``), is not needed any more (``applied``), and so on."""
        return self._state.history.classify(part)

    def debug_state(self) -> DiskHistory:
        """Return a copy of the history, with all frames after the base; for tests and diagnostics."""
        return self._state.snapshot()

    # --- applying -----------------------------------------------------------------------------------------------

    def apply_part(self, part: PartName, data: bytes) -> Watermark:
        """Apply a packed part durably; a part that is applied already changes nothing.

        Returns:
            The watermark afterwards.
        Raises:
            RigError: ``PartGap`` if an earlier part is missing; ``PartCorrupt``; ``PartRefused`` if the part is intact but
                not of this disk; ``PositionRegressed``; ``DiskFull`` (recoverable).  The disk is then as before the call.
        """
        if part.disk_id != self.disk_id:
            raise RigError(Code.PartRefused, f"part {part.blob()}: belongs to another disk than {self.disk_id}")
        history = self._state.history
        status = history.classify(part)
        if status == "applied":
            return self.watermark()
        if status != "next":
            raise RigError(Code.PartGap, f"part {part.blob()}: {history.expected()} comes next")
        return self.apply_segment(part, decompress(part, data))

    def apply_segment(self, part: PartName, segment: bytes | bytearray) -> Watermark:
        """Apply the segment of the part that comes next, as :meth:`apply_part` does with the packed one."""
        history = self._state.history
        if history.classify(part) != "next":
            raise RigError(Code.PartGap, f"part {part.blob()}: {history.expected()} comes next")

        def verify() -> PartIndex:
            history = self._state.history
            index = index_segment(segment, part, history.size_bytes)
            history.check_positions(part, index.first_position)
            if index.size_bytes_after > history.size_bytes:
                check_size(self.folder, index.size_bytes_after, part)
            return index

        def verify_encrypted() -> PartIndex:
            return index_segment(encrypted, part, self._state.history.size_bytes)

        with host_disk_errors(self.folder):
            _UNPACKED.reach()
            encrypted: bytes | bytearray = segment
            if self._cipher is not None:
                encrypted = self._encrypted(self._cipher, part, segment, verify())
            if history.initial_sync_complete:
                frame, index = self._writer.append(part, encrypted, verify if self._cipher is None else verify_encrypted)
                with self._state.lock:
                    self.compactor.note_applied(frame.records)
                    self._state.history.add(frame)
                    self._tags += filter(self._state.history.names_position, index.tags)
            else:
                self._apply_initial_sync(part, encrypted, verify() if self._cipher is None else verify_encrypted())
        return self.watermark()

    def _encrypted(self, cipher: DiskCipher, part: PartName, segment: bytes | bytearray, index: PartIndex) -> bytearray:
        """Return the encrypted form of a verified segment."""
        with ExitStack() as stack:
            views: list[ViewLayer] = []

            def read(offset: int, length: int) -> bytes:
                if not self.initial_sync_complete:
                    raise RigError(
                        Code.PartRefused, f"part {part.blob()}: a chunk of a copy does not begin and end between lines"
                    )
                if not views:
                    views.append(self.latest_view())
                    stack.callback(views[0].close)
                view = views[0]
                inside = max(0, min(length, view.size_bytes - offset))
                return (view.pread(offset, inside) if inside else b"").ljust(length, b"\0")

            return encrypted_segment(cipher, part, segment, index, read)

    def _apply_initial_sync(self, part: PartName, segment: Buffer, index: PartIndex) -> None:
        """Merge a part of the initial replication into the base, then count it.

        Part 1 begins with an empty base, whatever an earlier, unfinished generation left in it: no position of that one is
        valid, and an initial replication does not send zeros.  The disk may have grown since the managed disk was created.
        """
        state, size_bytes = self._state, index.size_bytes_after
        if size_bytes > self.created_size_bytes:
            check_size(self.folder, size_bytes, part)
        if part.first != 1 and size_bytes != self.created_size_bytes:
            raise RigError(
                Code.PartRefused,
                f"part {part.blob()}: belongs to a disk of {size_bytes} bytes; the parts before it belong to one of "
                f"{self.created_size_bytes}",
            )
        if part.first == 1:
            # Counted first: if the base were cleared before, a kill would leave the old count over an empty base.
            self._count(Progress(generation=part.generation))
            _RESTARTED.reach()
            if size_bytes != self.created_size_bytes:  # larger: a smaller one was refused before
                state.grow(size_bytes)
                _GROWN.reach()
            clear_base(self.folder, self.created_size_bytes)
            _CLEARED.reach()
        owner = IntentOwner(generation=part.generation, part=part.first)
        redo_intent(self.folder, owner)
        disk_map = DiskMap(ExtentMap(), size_bytes, {}, {})
        disk_map.extents.add(1, index.entries, segment_at=0, piece_at=0)
        disk_map.extents.merge_pending()
        merge_into_base(
            self.folder,
            disk_map,
            owner,
            self._clock,
            lambda found: _initial_sync_view(self.folder, disk_map, segment, index),
        )
        _MAPPED.reach()
        done = index.sync_end_seq is not None
        progress = Progress(
            generation=part.generation,
            sync_parts=part.last,
            first_position=index.first_position if part.first == 1 else state.history.epochs[0].first_position,
            complete=done,
            position=index.position if done else 0,
            time_ns=index.time_ns if done else 0,
            first_seq=index.sync_end_seq or 0,
            floor=index.position if done else 0,
            floor_time_ns=index.time_ns if done else 0,
            size_bytes=size_bytes if done else 0,
        )
        self._count(progress)
        _COUNTED.reach()
        forget_intent(self.folder)

    def _count(self, progress: Progress) -> None:
        self._state.replace_progress(progress)

    # --- reading ------------------------------------------------------------------------------------------------

    def view(self, position: int) -> ViewLayer:
        """Open the disk as it was at ``position``, read-only; the caller closes it.

        Raises:
            RigError: ``InvalidPosition``.
        """
        with host_disk_errors(self.folder):
            return decrypted(open_view(self.folder, position), self._cipher)

    def latest_view(self) -> ViewLayer:
        """Open the state with all applied parts, even of an unfinished resync; the caller closes it."""
        with host_disk_errors(self.folder):
            while True:
                with self._state.lock:
                    history = self._state.history
                try:
                    return decrypted(build_view(self.folder, history, None), self._cipher)
                except FileNotFoundError:
                    if history is self._state.history:  # otherwise a compaction deleted a file that it had merged
                        raise

    # --- end ----------------------------------------------------------------------------------------------------

    def delete(self) -> None:
        """Close and delete the disk; open views stay readable."""
        self.close()
        delete_disk(self.folder)

    def close(self) -> None:
        """Close all files; a running compaction step ends first, and no further one begins."""
        self.compactor.close()
        self._writer.close()


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
            log = _log.info if bad_headers.get(frame.number) == NEVER_WRITTEN else _log.warning
            log("frame_repaired", disk=loaded.meta.disk_id, journal_file=frame.journal_file, frame=frame.number)
            repair_frame(loaded.folder, frame, size_before)
        past.add(frame)
        tags += filter(past.names_position, found)
    return tags


def _record_opening(loaded: StoreState) -> None:
    """Record, in the first opening of a boot, that all frames count that exist now: a bad one is damage from now on."""
    progress, now = loaded.progress, boot.current_boot_id()
    if progress is None or progress.opened.boot == now:
        make_durable(loaded.folder, loaded.journal)
        return
    frames = loaded.history.frames
    last = loaded.history.compacted + len(frames)
    if loaded.journal.torn is not None:
        # The frames before the torn one count at once.  Until it is truncated, it belongs to the boot before.
        opened = OpenRecord(boot=progress.opened.boot, frame=last)
        write_meta(loaded.folder / PROGRESS, progress.model_copy(update={"opened": opened}))
    make_durable(loaded.folder, loaded.journal)
    if frames:  # only the segment of the last one was verified
        repair_frame(loaded.folder, frames[-1], loaded.history.size_before(frames[-1]))
    loaded.progress = progress.model_copy(update={"opened": OpenRecord(boot=now, frame=last)})
    write_meta(loaded.folder / PROGRESS, loaded.progress)


def _check_map(loaded: StoreState) -> None:
    try:
        read_map(loaded.folder)
    except RigError as exc:
        if exc.recoverable:
            raise
        _log.warning("base_map_rebuilt", disk=loaded.meta.disk_id, reason=exc.message)
        rebuild_map(loaded.folder)


def _initial_sync_view(folder: Path, disk_map: DiskMap, segment: Buffer, index: PartIndex) -> ViewLayer:
    """Open a view of a part, which is in no file yet, over the base."""
    fds = []
    for name, data in (("segment", segment), ("sums", index.pieces)):
        fds.append(os.memfd_create(name, os.MFD_CLOEXEC))
        view = memoryview(data)
        while view:
            view = view[os.write(fds[-1], view) :]
    return ViewLayer(disk_map.extents, [base_source(folder), Source(fd=fds[0], sums_fd=fds[1])], disk_map.size_bytes)
