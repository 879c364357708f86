"""The files of a disk: where they are, and how new ones are made.

Fault contract: a disk's state names a size only after the disk's file durably has it.  A top that becomes a raw disk is
renamed before its state says so, and its maps are removed after that: a start goes on from wherever a kill came.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import DISK_BYTES_MAX, SECTOR_BYTES, SectorBytes
from siterig.blockfs.disk.disk_state import DiskState, ParentNote
from siterig.blockfs.disk.parent_image import open_parent
from siterig.blockfs.disk.views import Views
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.files.os_errors import naming
from siterig.blockfs.layers.layer import Layer, OverlayLayer, RawLayer, WritableLayer

HOLDER_KIND = "vm"
"""What a VM's disk is among the holders of managed disks."""


@dataclass(frozen=True, slots=True)
class DiskPaths:
    """Whose disk it is (no VM's: ``vm`` is empty), and the folder that holds its files."""

    folder: Path
    vm: str
    name: str

    def file(self, suffix: str) -> Path:
        """``NAME.suffix`` in the disk's folder."""
        return self.folder / f"{self.name}.{suffix}"

    @property
    def holder(self) -> str:
        """As what the disk holds a position of a managed disk (:mod:`siterig.blockfs.disk.views`)."""
        return f"{HOLDER_KIND} {self}"

    def __str__(self) -> str:
        return f"{self.vm}/{self.name}" if self.vm else self.name


MakeFiles = Callable[[DiskPaths], None]
"""Makes a disk's files at its place."""


def make_raw(paths: DiskPaths, size_bytes: int, sector_bytes: SectorBytes = 512) -> None:
    """The files of a new all-zero disk; nothing is left behind if it fails."""
    if not 0 < size_bytes <= DISK_BYTES_MAX or size_bytes % sector_bytes:
        raise RigError(
            Code.InvalidDiskSize,
            f"disk {paths.name}: size is {size_bytes} bytes; it must be a positive multiple of {sector_bytes} and at "
            f"most {DISK_BYTES_MAX >> 40} TiB",
        )
    with _new_file(paths.file("img"), size_bytes):
        DiskState(
            disk_id=str(uuid.uuid4()),
            size_bytes=size_bytes,
            kind="raw",
            generation=0,
            tracked=False,
            needs_resync=None,
            sector_bytes=sector_bytes,
        ).save(paths.file("disk"))


@contextmanager
def _new_file(path: Path, size_bytes: int) -> Iterator[None]:
    """Make a file of zeros, durably that long, before a state names it; delete it if the state cannot be written."""
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
    paths: DiskPaths, *, managed_disk: str, position: int, size_bytes: int, sector_bytes: SectorBytes = 512
) -> None:
    """The files of a new writable disk over managed disk ``managed_disk`` at ``position``, which has that size."""
    DiskState(
        disk_id=str(uuid.uuid4()),
        size_bytes=size_bytes,
        kind="top",
        generation=0,
        tracked=False,
        needs_resync=None,
        managed_disk=managed_disk,
        position=position,
        sector_bytes=sector_bytes,
    ).save(paths.file("disk"))


def make_over_image(paths: DiskPaths, parent: ParentNote, size_bytes: int, sector_bytes: SectorBytes = 512) -> None:
    """The files of a new thin disk over an image; nothing is left behind if it fails."""
    if not parent.size_bytes <= size_bytes <= DISK_BYTES_MAX or size_bytes % sector_bytes:
        raise RigError(
            Code.InvalidDiskSize,
            f"disk {paths.name}: size is {size_bytes} bytes; it must be a multiple of {sector_bytes}, at least the "
            f"{parent.size_bytes} of its parent and at most {DISK_BYTES_MAX >> 40} TiB",
        )
    with _new_file(paths.file("top"), size_bytes):
        DiskState(
            disk_id=str(uuid.uuid4()),
            size_bytes=size_bytes,
            kind="top",
            generation=0,
            tracked=False,
            needs_resync=None,
            sector_bytes=sector_bytes,
            parent=parent,
        ).save(paths.file("disk"))


def convert_to_raw(paths: DiskPaths, state: DiskState) -> DiskState:
    """A top whose file durably holds all blocks is a raw disk from the next start on; its new state, saved.

    Called again, after an error, it goes on.
    """
    if paths.file("top").exists():
        paths.file("top").rename(paths.file("img"))
    return _note_raw(paths, state)


def _note_raw(paths: DiskPaths, state: DiskState) -> DiskState:
    sync_folder(paths.folder)  # the rename first
    # What was copied last is in no log: after a kill its time must not pass for another's write.
    opened = state.opened
    if opened is not None:
        opened = opened.model_copy(update={"mtime_ns": paths.file("img").stat().st_mtime_ns})
    raw = state.model_copy(
        update={"kind": "raw", "managed_disk": None, "position": None, "promoting": False, "opened": opened}
    )
    raw.save(paths.file("disk"))
    return raw


def remove_maps(paths: DiskPaths) -> None:
    """What is left of a top that has become a raw disk."""
    for suffix in ("top.present", "top.durable"):
        paths.file(suffix).unlink(missing_ok=True)


def remove_overlay(paths: DiskPaths) -> None:
    """The files of a thin disk in whose place a raw one was put."""
    paths.file("top").unlink(missing_ok=True)
    remove_maps(paths)


def finish_promotion(paths: DiskPaths, state: DiskState) -> DiskState:
    """At start: if a kill came between the steps by which a top becomes a raw disk, take the rest of them."""
    if state.kind == "top" and state.promoting and not paths.file("top").exists() and paths.file("img").exists():
        state = _note_raw(paths, state)
    if state.kind == "raw":
        remove_maps(paths)
    return state


def _whole_sectors(path: Path) -> int:
    """How many bytes of a raw disk's file are whole sectors: another program may have made it longer."""
    return path.stat().st_size // SECTOR_BYTES * SECTOR_BYTES


def _open_below(paths: DiskPaths, state: DiskState, views: Views | None) -> Layer:
    if state.parent is not None:
        return open_parent(state.parent)
    if views is None or state.managed_disk is None or state.position is None:
        raise RigError(Code.NotARecoveryHost, f"disk {paths} lies over a managed disk; this host has none")
    return views.open(state.managed_disk, state.position, paths.holder)


def open_layer(paths: DiskPaths, state: DiskState, views: Views | None) -> WritableLayer:
    """The bytes of a disk with that state; ``DiskCorrupt``, ``NotARecoveryHost``, ``BrokenVhdChain``."""
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
    """Make the first disk of a VM: its folder, in the host's ``root``, appears whole or not at all."""
    fresh = root / f".new-{paths.vm}"
    safe_files.make_folder(fresh)
    try:
        make(DiskPaths(fresh, paths.vm, paths.name))
        fresh.rename(paths.folder)
    except BaseException:
        shutil.rmtree(fresh)
        raise
    sync_folder(root)
