"""A managed disk as it was at a position: a read-only layer of journal extents over the base.

Fault contract
--------------
Building a view reads every journal record up to the position with its checksum; a changed byte, a missing or cut
file is an error that names the file, and no view.  Once built, payloads are read from the segments without another
checksum: what rots *while a view is open* is served as it is.  The base's bytes carry no checksum at all: only its
length is checked.  A view holds its files open: it outlives the deletion of the disk, and it never writes, so it
may be opened by any process while the applier goes on.
"""

from __future__ import annotations

import os
from pathlib import Path

from azure_emu.disk_journal import History
from azure_emu.disk_meta import DiskMeta, SeedProgress, read_meta, store_corrupt
from blockfs.changelog import Record, RecordType, SegmentReader
from blockfs.errors import RigError
from blockfs.layers import ZEROS, ExtentLayer, ExtentMap, Layer, RawLayer

BASE = "base.img"
DISK_META = "disk.json"
PROGRESS = "progress"
JOURNAL = "journal"


def open_view(store_folder: Path, position: int) -> Layer:
    """The managed disk in ``store_folder`` as of ``position``, for a process that is not the applier.

    ``DiskNotFound``, ``InvalidPosition`` (names the valid ranges), ``StoreCorrupt``, ``StoreVersion``, ``LogCorrupt``.
    """
    history = load_history(store_folder)
    return build_view(store_folder, history, position, verify=False)  # load_history just verified every byte


def load_history(folder: Path) -> History:
    """Read and verify a managed disk's folder, except for the bytes of the base."""
    if not folder.is_dir():
        raise RigError("DiskNotFound", f"{folder}: there is no managed disk")
    meta = read_meta(folder / DISK_META, DiskMeta)
    progress = folder / PROGRESS
    seed = read_meta(progress, SeedProgress) if progress.exists() else None
    base = folder / BASE
    if not base.is_file():
        raise store_corrupt(base, "is missing")
    size = base.stat().st_size
    # A seed that begins may have been cut while it cleared the base: its first part does that again
    if (seed is None or seed.sync_parts) and size != meta.size_bytes:
        raise store_corrupt(base, f"has {size} bytes; the disk was made with {meta.size_bytes}")
    return History.load(folder / JOURNAL, meta, seed)


def build_view(folder: Path, history: History, position: int | None, *, verify: bool) -> Layer:
    """The state at ``position``; None: with all that was applied, even of an unfinished resync.

    A generation's sync is made against everything applied before it, so earlier generations count as a whole.
    """
    if position is None and not history.seeded:
        raise RigError("InvalidPosition", f"disk {history.disk_id} has no state: its initial replication is not complete")
    epoch = None if position is None else history.epoch_of(position)
    base = RawLayer(folder / BASE)
    try:
        extents = ExtentMap()
        size = base.size_bytes
        for index, file in enumerate(history.files):
            if epoch is not None and file.part.generation > epoch.generation:
                break
            upto = position if epoch is not None and file.part.generation == epoch.generation else None
            after = history.contained(file.part.generation) if file.part.stream == "log" else -1
            with SegmentReader(file.path) as reader:
                if file.part.stream == "sync":
                    size = reader.header.disk_size_bytes
                for record in reader.records(verify=verify):
                    if record.position > after and (upto is None or record.position <= upto):
                        size = _insert(extents, record, index, size)
        return _with_sources(base, extents, [file.path for file in history.files], size)
    except BaseException:
        base.close()
        raise


def _insert(extents: ExtentMap, record: Record, index: int, size: int) -> int:
    """Add a record of journal file ``index`` to the map; returns the disk's size after it."""
    if record.type is RecordType.WRITE:
        extents.insert(record.offset, record.length, index, record.payload_offset)
    elif record.type in (RecordType.ZERO, RecordType.DISCARD):
        extents.insert(record.offset, record.length, ZEROS, 0)
    elif record.type is RecordType.RESIZE:
        return record.length
    return size


def _with_sources(base: Layer, extents: ExtentMap, paths: list[Path], size: int) -> Layer:
    """Open only the segments that the finished map still reads from: a long journal has more files than descriptors."""
    indices: dict[int, int] = {}
    needed = ExtentMap()
    for offset, length, source, source_offset in extents.lookup(0, size):
        if source is not None:
            index = ZEROS if source == ZEROS else indices.setdefault(source, len(indices))
            needed.insert(offset, length, index, source_offset)
    fds: list[int] = []
    for path in [paths[source] for source in indices]:
        try:
            fds.append(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as exc:
            for fd in fds:
                os.close(fd)
            raise RigError("StoreIo", f"{path}: cannot be opened: {exc.strerror}", recoverable=True) from exc
    return ExtentLayer(base, needed, fds, size)
