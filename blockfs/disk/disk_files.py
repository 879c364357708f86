"""The files of a disk: their names, and the creation and opening of disks.

Fault contract: the state of a disk names a size only after the disk's file durably has that size.  An overlay that becomes
a raw disk is renamed before its state records that, and its maps are removed afterwards: a start continues after a kill at
any point.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import DISK_BYTES_MAX, SECTOR_BYTES, SectorBytes
from siterig.blockfs.disk.disk_state import DiskState, KeyNote, ParentNote
from siterig.blockfs.disk.parent_image import open_parent
from siterig.blockfs.disk.views import Views
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.files.os_errors import naming
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.layer import Layer, OverlayLayer, RawLayer, WritableLayer

HOLDER_KIND = "vm"
"""The kind of holder that a VM's disk is, among the holders of pins on managed disks."""


@dataclass(frozen=True, slots=True)
class DiskPaths:
    """Folder, VM and name of a disk, from which the names of its files follow; ``vm`` is empty for a stand-alone disk."""

    folder: Path
    vm: str
    name: str

    def file(self, suffix: str) -> Path:
        """Return the path ``NAME.suffix`` in the disk's folder."""
        return self.folder / f"{self.name}.{suffix}"

    @property
    def holder(self) -> str:
        """The disk's name as the holder of a pin on a managed disk (:mod:`siterig.blockfs.disk.views`)."""
        return f"{HOLDER_KIND} {self}"

    def __str__(self) -> str:
        return f"{self.vm}/{self.name}" if self.vm else self.name


MakeFiles = Callable[[DiskPaths], None]
"""Creates the files of a disk."""


def make_raw(paths: DiskPaths, size_bytes: int, sector_bytes: SectorBytes = 512) -> None:
    """Create the files of a disk of zeros; no file is left if that fails.

    Raises:
        RigError: ``InvalidDiskSize``.
    """
    if not 0 < size_bytes <= DISK_BYTES_MAX or size_bytes % sector_bytes:
        raise RigError(
            Code.InvalidDiskSize,
            f"disk {paths.name}: size is {size_bytes} bytes; it must be a positive multiple of {sector_bytes} and at "
            f"most {DISK_BYTES_MAX >> 40} TiB",
        )
    with _new_file(paths.file("img"), size_bytes):
        _save_new(paths, "raw", size_bytes, sector_bytes)


def _save_new(
    paths: DiskPaths,
    kind: Literal["raw", "top"],
    size_bytes: int,
    sector_bytes: SectorBytes,
    *,
    managed_disk: str | None = None,
    position: int | None = None,
    parent: ParentNote | None = None,
    key: KeyNote | None = None,
) -> None:
    """Save the state of a new disk: it has an id of its own, and no log."""
    DiskState(
        disk_id=str(uuid.uuid4()),
        size_bytes=size_bytes,
        kind=kind,
        generation=0,
        tracked=False,
        needs_resync=None,
        managed_disk=managed_disk,
        position=position,
        sector_bytes=sector_bytes,
        parent=parent,
        key=key,
    ).save(paths.file("disk"))


@contextmanager
def _new_file(path: Path, size_bytes: int) -> Iterator[None]:
    """Create a file of zeros, durably of that size, before a state names it; delete it if the state cannot be written."""
    fd = safe_files.create_file(path, os.O_WRONLY)
    try:
        with naming(path):
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)
        yield
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)


def make_over_managed_disk(
    paths: DiskPaths,
    *,
    managed_disk: str,
    position: int,
    size_bytes: int,
    sector_bytes: SectorBytes = 512,
    key_id: str | None = None,
) -> None:
    """Create the files of a writable disk over a managed disk, which has this size at this position.

    If the managed disk is encrypted, ``key_id`` is the id of its key, which encrypts the files of the disk, too.
    """
    key = None if key_id is None else KeyNote(managed_disk=managed_disk, key_id=key_id)
    _save_new(paths, "top", size_bytes, sector_bytes, managed_disk=managed_disk, position=position, key=key)


def make_over_image(paths: DiskPaths, parent: ParentNote, size_bytes: int, sector_bytes: SectorBytes = 512) -> None:
    """Create the files of a thin disk over an image; no file is left if that fails.

    Raises:
        RigError: ``InvalidDiskSize``.
    """
    if not parent.size_bytes <= size_bytes <= DISK_BYTES_MAX or size_bytes % sector_bytes:
        raise RigError(
            Code.InvalidDiskSize,
            f"disk {paths.name}: size is {size_bytes} bytes; it must be a multiple of {sector_bytes}, at least the "
            f"{parent.size_bytes} of its parent and at most {DISK_BYTES_MAX >> 40} TiB",
        )
    with _new_file(paths.file("top"), size_bytes):
        _save_new(paths, "top", size_bytes, sector_bytes, parent=parent)


def convert_to_raw(paths: DiskPaths, state: DiskState) -> DiskState:
    """Make an overlay whose file durably holds all blocks a raw disk, from the next start on; return its new state.

    After an error it can be called again, and continues.
    """
    if paths.file("top").exists():
        paths.file("top").rename(paths.file("img"))
    return _note_raw(paths, state)


def _note_raw(paths: DiskPaths, state: DiskState) -> DiskState:
    sync_folder(paths.folder)  # the rename first
    # The last copied blocks are in no log: after a kill, their time must not look like the write of another program.
    opened = state.opened
    if opened is not None:
        opened = opened.model_copy(update={"mtime_ns": paths.file("img").stat().st_mtime_ns})
    raw = state.model_copy(
        update={"kind": "raw", "managed_disk": None, "position": None, "promoting": False, "opened": opened}
    )
    raw.save(paths.file("disk"))
    return raw


def remove_maps(paths: DiskPaths) -> None:
    """Delete the maps of an overlay that has become a raw disk."""
    for suffix in ("top.present", "top.durable"):
        paths.file(suffix).unlink(missing_ok=True)


def remove_overlay(paths: DiskPaths) -> None:
    """Delete the overlay of a thin disk that was replaced by a raw disk."""
    paths.file("top").unlink(missing_ok=True)
    remove_maps(paths)


def finish_hydration(paths: DiskPaths, state: DiskState) -> DiskState:
    """Complete, at the start, the conversion of an overlay to a raw disk that a kill has interrupted; return the state."""
    if state.kind == "top" and state.promoting and not paths.file("top").exists() and paths.file("img").exists():
        state = _note_raw(paths, state)
    if state.kind == "raw":
        remove_maps(paths)
    return state


def _whole_sectors(path: Path) -> int:
    """Return the size of a raw disk's file in whole sectors; another program may have made the file longer."""
    return path.stat().st_size // SECTOR_BYTES * SECTOR_BYTES


def _open_below(paths: DiskPaths, state: DiskState, views: Views | None) -> Layer:
    if state.parent is not None:
        return open_parent(state.parent)
    if views is None or state.managed_disk is None or state.position is None:
        raise RigError(Code.NotARecoveryHost, f"disk {paths} lies over a managed disk; this host has none")
    if state.key is None:
        return views.open(state.managed_disk, state.position, paths.holder)
    return views.open(state.managed_disk, state.position, paths.holder, stored=True)


def open_cipher(paths: DiskPaths, state: DiskState, views: Views | None) -> DiskCipher | None:
    """Return the cipher of a disk; None if its files are not encrypted.

    Raises:
        RigError: ``KeyRevoked``, ``KeyMissing``, ``NotARecoveryHost``.
    """
    if state.key is None:
        return None
    if views is None:
        raise RigError(Code.NotARecoveryHost, f"disk {paths} is encrypted with a key of a vault; this host has none")
    return views.cipher(state.key.managed_disk, state.key.key_id)


def open_layer(paths: DiskPaths, state: DiskState, views: Views | None) -> WritableLayer:
    """Open the bytes of a disk, as they are stored.

    Raises:
        RigError: ``DiskCorrupt``, ``NotARecoveryHost``, ``BrokenVhdChain``.
    """
    layer: WritableLayer
    if state.kind == "raw":
        layer = RawLayer(paths.file("img"), writable=True, size_bytes=_whole_sectors(paths.file("img")))
    else:
        below = _open_below(paths, state, views)
        try:
            layer = OverlayLayer(below, paths.file("top"))
        except BaseException:
            below.close()
            raise
    if (found := layer.size_bytes) < state.size_bytes:
        layer.close()
        raise RigError(
            Code.DiskCorrupt, f"disk {paths}: {layer.path.name} has {found} bytes; its state says {state.size_bytes}"
        )
    return layer


def make_first(root: Path, paths: DiskPaths, make: MakeFiles) -> None:
    """Create the first disk of a VM: the VM's folder in ``root`` appears complete or not at all."""
    fresh = root / f".new-{paths.vm}"
    safe_files.make_folder(fresh)
    try:
        make(DiskPaths(fresh, paths.vm, paths.name))
        fresh.rename(paths.folder)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    sync_folder(root)
