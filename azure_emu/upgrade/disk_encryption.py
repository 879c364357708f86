"""Encrypts a managed disk that an older siterig made without encryption; all its positions stay.

An encrypted copy is made beside the managed disk: the base block by block, then each frame of the journal as if its part
were applied.  Checkpoints are not copied; the next ones come when they are due.

Fault contract: the copy takes the place of the managed disk in one step (an exchange of two names), after everything
in it is durable; then the old files are deleted.  A kill or an error before that step leaves the managed disk as it
was, and the encryption begins again; after it, the next start deletes the older files
(:func:`..store.discard_leftovers`).  Other processes may read and pin all the time: a view has its files open, and
pins are copied under the lock of the managed disk.  A block of the base that cannot be read stays unreadable.  A
frame that is damaged, or cannot be encrypted, is an error that names it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from siterig.azure_emu.disks.base_image import (
    BASE,
    PAIR,
    IntentOwner,
    grow_base,
    opened_base,
    poison_block,
    read_map,
    redo_intent,
    unpack_map,
    unreadable_blocks,
    write_map,
)
from siterig.azure_emu.disks.frames import Frame
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.journal import journal_file_path
from siterig.azure_emu.disks.loader import load_history
from siterig.azure_emu.disks.metadata import PROGRESS, OpenRecord, store_corrupt, write_meta
from siterig.azure_emu.disks.pins import PINS, locked
from siterig.azure_emu.disks.store import ManagedDiskStore, make_disk, new_folder
from siterig.azure_emu.disks.view import DiskMap, view_of
from siterig.blockfs.core import boot
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.failpoint import Failpoint
from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.files.durable_io import sync_folder, write_atomically
from siterig.blockfs.layers.base_update import BLOCK_BYTES
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.blockfs.layers.layer import ViewLayer
from siterig.blockfs.transfer.envelope import DataKey
from siterig.cext.checksums import crc32c, is_zero

STEP_BYTES = 8 << 20

_BASE_ENCRYPTED = Failpoint("store.encrypt.base")
_JOURNAL_ENCRYPTED = Failpoint("store.encrypt.journal")
_EXCHANGED = Failpoint("store.encrypt.exchanged")


def encrypt_disk(folder: Path, key: DataKey, clock: Clock) -> Iterator[int]:
    """Encrypt the managed disk in ``folder``, which nothing else applies to or compacts meanwhile.

    Args:
        folder: the managed disk's folder.
        key: its new key.
        clock: delays the next attempt to read a block that cannot be read.
    Yields:
        The bytes that are encrypted so far, after each step; the caller may stop between two steps.
    Raises:
        RigError: ``StoreCorrupt``; ``DiskFull``, ``StoreIo`` (recoverable).
    """
    with host_disk_errors(folder):
        ManagedDiskStore.open(folder, clock=clock).close()  # it repairs, and completes a compaction that a kill has cut
        loaded, new = load_history(folder), new_folder(folder)
        if loaded.journal.broken is not None:
            raise loaded.journal.broken
        if loaded.progress is not None and not loaded.progress.complete:
            redo_intent(folder, IntentOwner(generation=loaded.progress.generation, part=loaded.progress.sync_parts + 1))
        make_disk(new, folder.name, loaded.meta.size_bytes, loaded.meta.created_ns, key)
        done = 0
        for done in _encrypt_base(folder, new, DiskCipher(key.secret), clock):
            yield done
        _BASE_ENCRYPTED.reach()
        if loaded.progress is not None:
            opened = OpenRecord(boot=boot.current_boot_id(), frame=loaded.progress.frame)
            write_meta(new / PROGRESS, loaded.progress.model_copy(update={"opened": opened}))
        store = ManagedDiskStore.open(new, clock=clock, key=key)
        try:
            for frame in loaded.history.frames:
                _encrypt_frame(folder, store, frame)
                done += frame.segment_bytes
                yield done
        finally:
            store.close()
        _JOURNAL_ENCRYPTED.reach()
        with locked(folder):
            for path in (folder / PINS).glob("*.json"):
                write_atomically(new / PINS / path.name, host_calls.read_file(path))
            with safe_files.held(folder.parent) as parent:
                parent.exchange(new.name, folder.name)
            _EXCHANGED.reach()
            sync_folder(folder.parent)
        shutil.rmtree(new)


def _encrypt_base(folder: Path, new: Path, cipher: DiskCipher, clock: Clock) -> Iterator[int]:
    """Write the encrypted base, and yield the bytes so far."""
    ranges, size = unpack_map(read_map(folder)), (folder / BASE).stat().st_size
    grow_base(new, size)
    disk_map = DiskMap(ExtentMap(), size, {}, {})
    disk_map.extents.add_base(ranges)
    disk_map.extents.merge_pending()
    view = view_of(folder, disk_map)
    done = 0
    try:
        with opened_base(new) as (base_fd, sums_fd):
            for offset, length in ranges:
                for start in range(offset, min(offset + length, size), STEP_BYTES):
                    stop = min(start + STEP_BYTES, offset + length, size)
                    plain, bad = _read(view, start, stop, clock)
                    _write(base_fd, sums_fd, cipher.encrypt(plain, start), start)
                    for block in bad:
                        poison_block(base_fd, sums_fd, block)
                    done += stop - start
                    yield done
            host_calls.fsync(base_fd)
            host_calls.fsync(sums_fd)
    finally:
        view.close()
    write_map(new, ranges)


def _read(view: ViewLayer, start: int, stop: int, clock: Clock) -> tuple[bytes, set[int]]:
    """Return a range of the base, with zeros in place of the blocks that cannot be read, and the offsets of these."""
    try:
        return view.pread(start, stop - start), set()
    except OSError:
        bad, data = unreadable_blocks(view, [(start, stop - start)], clock), bytearray(stop - start)
    for block in range(start, stop, BLOCK_BYTES):
        end = min(block + BLOCK_BYTES, stop)
        if block not in bad:
            data[block - start : end - start] = view.pread(block, end - block)
    return bytes(data), bad


def _write(base_fd: int, sums_fd: int, data: bytes, offset: int) -> None:
    """Write whole blocks with their checksums; blocks of zeros stay holes."""
    sums = bytearray()
    for at in range(0, len(data), BLOCK_BYTES):
        block = data[at : at + BLOCK_BYTES].ljust(BLOCK_BYTES, b"\0")
        sums += PAIR.pack(*[crc32c(block)] * 2)
        if not is_zero(block):
            host_calls.pwrite(base_fd, data[at : at + BLOCK_BYTES], offset + at)
    host_calls.pwrite(sums_fd, bytes(sums), offset // BLOCK_BYTES * PAIR.size)


def _encrypt_frame(folder: Path, store: ManagedDiskStore, frame: Frame) -> None:
    path = journal_file_path(folder, frame.journal_file)
    fd = host_calls.open_path(path, os.O_RDONLY)
    try:
        segment = host_calls.pread(fd, frame.segment_bytes, frame.segment_at)
    finally:
        os.close(fd)
    try:
        store.apply_segment(frame.part, segment)
    except RigError as exc:
        if exc.code not in (Code.PartCorrupt, Code.PartRefused, Code.PartGap):
            raise
        raise store_corrupt(path, f"byte {frame.start}: frame {frame.number} cannot be encrypted: {exc.message}") from exc
