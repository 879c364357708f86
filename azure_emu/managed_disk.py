"""A managed disk's store: a base, a journal of applied parts, and what may be asked of them.

A folder a disk: ``disk.json`` (identity), ``base.img`` (sparse raw file), ``progress`` (how much of the initial
replication the base holds) and ``journal/`` (later parts, decompressed, as they came).  Format and order of
application: docs/formats/managed-disk.md.

Fault contract
--------------
May break: the process, at any step; the power, at any step; the host's disk may be full.  Stays recoverable: all
that :meth:`ManagedDiskStore.apply_part` returned for.  A part is fully verified (every record's checksum) before
a byte of it counts; it counts from the moment its file has its name in the journal (or, for the seed, ``progress`` has
been replaced after the base was synced), and both are made durable before ``apply_part`` returns.  Applying the
same part again, after any of these, gives the same bytes.  The watermark is folded from the files on opening.
Bit rot of ``disk.json``, ``progress`` and journal files is named on opening and again when a view is built, never
served; the base has no checksums (its length is checked), and an open view does not verify what it reads.
One process at a time has the store open for writing (the applier; the rig's lock sees to it); views may be opened by
any process (:mod:`azure_emu.disk_view`).  A store is not safe for use by several threads at once.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from azure_emu.disk_journal import History, JournalFile, SegmentSummary, Want, journal_name, summarize
from azure_emu.disk_meta import DiskMeta, SeedProgress, read_meta, write_meta
from azure_emu.disk_view import BASE, DISK_META, JOURNAL, PROGRESS, build_view, load_history, open_view
from azure_emu.host_disk import host_disk_errors
from blockfs.changelog import RecordType, SegmentReader
from blockfs.durable import sync_folder
from blockfs.errors import RigError
from blockfs.layers import Layer, RawLayer
from blockfs.part import PartName, TagSeen, Watermark
from blockfs.part_codec import unpack
from cext.hashing import TAG_BYTES, chunk_tag, chunk_tags_fd

__all__ = ["ManagedDiskStore", "delete_disk", "discard_leftovers", "open_view"]

Step = Callable[[str], None]
"""Called with a step's name when it is done: where tests kill."""

_INCOMING = ".incoming.hrl"
_NEW, _DELETED = ".new-", ".deleted-"


def _no_step(_name: str) -> None:
    pass


def discard_leftovers(disks: Path) -> None:
    """Remove what creations and deletions that were cut by a kill left in the folder of all managed disks."""
    for path in disks.iterdir():
        if path.name.startswith((_NEW, _DELETED)):
            shutil.rmtree(path)


def delete_disk(folder: Path, step: Step = _no_step) -> None:
    """Remove the managed disk in ``folder``, sound or not; no-op if it is gone."""
    gone = folder.with_name(_DELETED + folder.name)
    with host_disk_errors(folder):
        shutil.rmtree(gone, ignore_errors=True)
        with suppress(FileNotFoundError):
            folder.rename(gone)
            step("delete.renamed")
            sync_folder(gone.parent)
            shutil.rmtree(gone)


class ManagedDiskStore:
    """One managed disk, opened for applying parts."""

    def __init__(self, folder: Path, history: History, step: Step) -> None:
        self.folder = folder
        self._history = history
        self._meta = read_meta(folder / DISK_META, DiskMeta)
        self._step = step
        self._latest: tuple[Layer, list[tuple[int, int]]] | None = None

    @classmethod
    def create(
        cls, folder: Path, *, disk_id: str, size_bytes: int, created_ns: int, step: Step = _no_step
    ) -> ManagedDiskStore:
        """An empty disk.  It is there whole or not at all (``DiskExists``, ``InvalidDiskSize``, ``DiskFull``)."""
        if size_bytes <= 0 or size_bytes % 512:
            raise RigError("InvalidDiskSize", f"disk {disk_id}: size {size_bytes} is not a positive multiple of 512 bytes")
        if folder.exists():
            raise RigError("DiskExists", f"{folder}: there is a managed disk already")
        new = folder.with_name(_NEW + folder.name)
        with host_disk_errors(folder):
            shutil.rmtree(new, ignore_errors=True)
            (new / JOURNAL).mkdir(parents=True, mode=0o700)
            step("create.folder")
            with (new / BASE).open("xb") as base:
                base.truncate(size_bytes)
                os.fsync(base.fileno())
            step("create.base")
            write_meta(new / DISK_META, DiskMeta(disk_id=disk_id, size_bytes=size_bytes, created_ns=created_ns))
            step("create.meta")
            new.rename(folder)
            step("create.renamed")
            sync_folder(folder.parent)
        return cls.open(folder, step=step)

    @classmethod
    def open(cls, folder: Path, *, step: Step = _no_step) -> ManagedDiskStore:
        """Open and verify (``DiskNotFound``, ``StoreVersion``, ``StoreCorrupt``, ``LogCorrupt``)."""
        with host_disk_errors(folder):
            history = load_history(folder)
            sync_folder(folder / JOURNAL)  # a kill between rename and sync: what is counted now must stay
            sync_folder(folder)
        return cls(folder, history, step)

    @property
    def disk_id(self) -> str:
        """The disk's UUID."""
        return self._meta.disk_id

    @property
    def created_size_bytes(self) -> int:
        """The size of the base: that which it was made with, or which the disk had when it was first copied."""
        return self._meta.size_bytes

    def watermark(self) -> Watermark:
        """What is durably applied."""
        return self._history.watermark()

    def tags(self, first: int = 0) -> list[TagSeen]:
        """Tags found in applied log parts, in order, from the ``first``-th on; the list only ever grows."""
        return self._history.tags[first:]

    def want(self, part: PartName) -> Want:
        """Whether ``part`` is to be applied now (``next``), not needed any more (``applied``), ..."""
        return self._history.want(part)

    def apply_part(self, part: PartName, data: bytes) -> Watermark:
        """Apply a packed part durably; the watermark afterwards.  An applied part changes nothing.

        ``PartGap`` (something before it is missing), ``PartCorrupt``, ``PartRefused`` (sound, but not of this disk),
        ``PositionRegressed``, ``DiskFull`` (recoverable).  After an error the disk is as it was.
        """
        if part.disk_id != self.disk_id:
            raise RigError("PartRefused", f"part {part.blob()}: is of another disk than {self.disk_id}")
        want = self._history.want(part)
        if want == "applied":
            return self.watermark()
        if want != "next":
            raise RigError("PartGap", f"part {part.blob()}: {self._history.expected()} comes next")
        incoming = self.folder / JOURNAL / _INCOMING
        with host_disk_errors(self.folder):
            try:
                unpack(part, data, incoming)
                self._step("apply.unpacked")
                summary = summarize(JournalFile(incoming, part), self._history.size_bytes, verify=False)
                self._history.check_positions(summary)
                if self._history.seeded:
                    self._append(summary)
                else:
                    self._seed(summary)
            finally:
                with suppress(OSError):
                    incoming.unlink(missing_ok=True)
        return self.watermark()

    def _append(self, summary: SegmentSummary) -> None:
        """Move the verified, synced segment into the journal: from then on it counts."""
        incoming, part = summary.file.path, summary.file.part
        path = incoming.with_name(journal_name(part, incoming.stat().st_size))
        incoming.rename(path)
        self._step("append.renamed")
        sync_folder(path.parent)
        self._step("append.synced")
        self._forget_latest()
        self._history.add(
            SegmentSummary(
                file=JournalFile(path, part),
                first_position=summary.first_position,
                position=summary.position,
                time_ns=summary.time_ns,
                disk_size_bytes=summary.disk_size_bytes,
                sync_end_seq=summary.sync_end_seq,
                tags=summary.tags,
            )
        )

    def _seed(self, summary: SegmentSummary) -> None:
        """Write a part of the initial replication into the base, sync, then count it.

        Part 1 begins with an empty base, whatever an earlier, unfinished generation left in it: no point of that one is
        valid, and an initial replication does not send zeros.  The disk may have grown since the managed disk was made.
        """
        part, size_bytes = summary.file.part, summary.disk_size_bytes
        if part.first != 1 and size_bytes != self.created_size_bytes:
            raise RigError(
                "PartRefused",
                f"part {part.blob()}: is of a disk of {size_bytes} bytes; the parts before it are of one of "
                f"{self.created_size_bytes}",
            )
        if part.first == 1:
            # Counted first: were the base cleared before, a kill would leave the old generation's count over nothing.
            self._count_seed(SeedProgress.begun(part.generation))
            self._step("seed.restarted")
            if size_bytes != self.created_size_bytes:  # larger: a smaller one was refused before
                self._meta = self._meta.model_copy(update={"size_bytes": size_bytes})
                write_meta(self.folder / DISK_META, self._meta)
                self._history.size_bytes = size_bytes
                self._step("seed.grown")
        base = RawLayer(self.folder / BASE, writable=True)
        try:
            if part.first == 1:
                base.resize(0)
                base.resize(self.created_size_bytes)
                self._step("seed.cleared")
            _copy_into(base, summary.file.path)
            self._step("seed.written")
            base.sync()
            self._step("seed.synced")
        finally:
            base.close()
        done = summary.sync_end_seq is not None
        self._count_seed(
            SeedProgress(
                generation=part.generation,
                sync_parts=part.last,
                first_position=summary.first_position if part.first == 1 else self._history.epochs[0].first_position,
                complete=done,
                position=summary.position if done else 0,
                time_ns=summary.time_ns if done else 0,
                first_seq=summary.sync_end_seq or 0,
            )
        )
        self._step("seed.counted")

    def _count_seed(self, seed: SeedProgress) -> None:
        write_meta(self.folder / PROGRESS, seed)
        self._forget_latest()
        self._history.set_seed(seed)

    def view(self, position: int) -> Layer:
        """The disk as of ``position``, read-only; the caller closes it (``InvalidPosition``)."""
        with host_disk_errors(self.folder):
            return build_view(self.folder, self._history, position, verify=True)

    def latest_view(self) -> Layer:
        """With everything that was applied, even of an unfinished resync; the caller closes it."""
        with host_disk_errors(self.folder):
            return build_view(self.folder, self._history, None, verify=True)

    def checksums(self, key: bytes, chunk_bytes: int, first: int, count: int) -> list[bytes]:
        """Tags (:func:`cext.hashing.chunk_tag`) of ``count`` chunks of the latest state, for a resync to compare with.

        While the initial replication is not complete, every tag says *zeros*: the next generation begins anew.
        """
        if not self._history.seeded:
            return [bytes(TAG_BYTES)] * count
        with host_disk_errors(self.folder):
            if not self._history.files:
                base = RawLayer(self.folder / BASE)
                try:
                    return chunk_tags_fd(base.fileno(), key, chunk_bytes, first, count)
                finally:
                    base.close()
            if self._latest is None:
                view = self.latest_view()
                self._latest = (view, view.data_ranges())
            return list(_layer_tags(*self._latest, key, chunk_bytes, range(first, first + count)))

    def delete(self) -> None:
        """Remove the disk and everything in it.  Open views go on reading."""
        self.close()
        delete_disk(self.folder, self._step)

    def close(self) -> None:
        """Let go of open files."""
        self._forget_latest()

    def _forget_latest(self) -> None:
        if self._latest is not None:
            self._latest[0].close()
            self._latest = None


def _copy_into(base: RawLayer, segment: Path) -> None:
    """Apply a segment's records, just verified, to the base."""
    with SegmentReader(segment) as reader:
        for record in reader.records(verify=False):
            if record.type is RecordType.WRITE:
                base.pwrite(record.offset, reader.payload(record))
            elif record.type in (RecordType.ZERO, RecordType.DISCARD):
                base.zero(record.offset, record.length)


def _layer_tags(layer: Layer, ranges: list[tuple[int, int]], key: bytes, chunk_bytes: int, chunks: range) -> Iterator[bytes]:
    """As ``chunk_tags_fd`` does it for a file: chunks without data are zeros, what is past the end counts as zeros."""
    at = 0
    for index in chunks:
        start, stop = index * chunk_bytes, (index + 1) * chunk_bytes
        while at < len(ranges) and sum(ranges[at]) <= start:
            at += 1
        if at == len(ranges) or ranges[at][0] >= stop:
            yield bytes(TAG_BYTES)
        else:
            data = layer.pread(start, min(stop, layer.size_bytes) - start)
            yield chunk_tag(key, index, data.ljust(chunk_bytes, b"\0"))
