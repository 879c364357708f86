"""The files of a disk: where they are, and how new ones are made.

Fault contract: a disk's state names a size only after the disk's file durably has it.  A top that becomes a raw disk is
renamed before its state says so, and its maps are removed after that: a start goes on from wherever a kill came.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from blockfs import safe_files
from blockfs.disk_state import DiskState
from blockfs.durable import sync_folder
from blockfs.errors import RigError
from blockfs.log_recovery import DISK_BYTES_MAX
from blockfs.os_errors import naming

SECTOR_BYTES = 512
HOLDER_KIND = "vm"
"""What a VM's disk is among the holders of managed disks."""


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """Whose disk it is (no VM's: ``vm`` is empty), and the folder that holds its files."""

    folder: Path
    vm: str
    name: str

    def file(self, suffix: str) -> Path:
        """``NAME.suffix`` in the disk's folder."""
        return self.folder / f"{self.name}.{suffix}"

    @property
    def holder(self) -> str:
        """As what the disk holds a position of a managed disk (:mod:`blockfs.views`)."""
        return f"{HOLDER_KIND} {self}"

    def __str__(self) -> str:
        return f"{self.vm}/{self.name}" if self.vm else self.name


def make_raw(place: DiskPlace, size_bytes: int) -> None:
    """The files of a new all-zero disk; nothing is left behind if it fails."""
    if not 0 < size_bytes <= DISK_BYTES_MAX or size_bytes % SECTOR_BYTES:
        raise RigError(
            "InvalidDiskSize",
            f"disk {place.name}: size is {size_bytes} bytes; it must be a positive multiple of {SECTOR_BYTES} and at "
            f"most {DISK_BYTES_MAX >> 40} TiB",
        )
    path = place.file("img")
    fd = safe_files.create_file(path, os.O_WRONLY)
    try:
        with naming(path):
            os.ftruncate(fd, size_bytes)
            os.fsync(fd)  # before the state says that it is so long
        DiskState(
            disk_id=str(uuid.uuid4()), size_bytes=size_bytes, kind="raw", generation=0, tracked=False, needs_resync=None
        ).save(place.file("disk"))
    except BaseException:
        path.unlink()
        raise
    finally:
        os.close(fd)


def make_top(place: DiskPlace, *, store: Path, position: int, size_bytes: int) -> None:
    """The files of a new writable disk over managed disk ``store`` at ``position``, which has that size."""
    DiskState(
        disk_id=str(uuid.uuid4()),
        size_bytes=size_bytes,
        kind="top",
        generation=0,
        tracked=False,
        needs_resync=None,
        store=str(store),
        position=position,
    ).save(place.file("disk"))


def make_raw_of_top(place: DiskPlace, state: DiskState) -> DiskState:
    """A top whose file durably holds all blocks is a raw disk from the next start on; its new state, saved.

    Called again, after an error, it goes on.
    """
    if place.file("top").exists():
        place.file("top").rename(place.file("img"))
    return _note_raw(place, state)


def _note_raw(place: DiskPlace, state: DiskState) -> DiskState:
    sync_folder(place.folder)  # the rename first
    raw = state.model_copy(update={"kind": "raw", "store": None, "position": None, "promoting": False})
    raw.save(place.file("disk"))
    return raw


def remove_maps(place: DiskPlace) -> None:
    """What is left of a top that has become a raw disk."""
    for suffix in ("top.present", "top.durable"):
        place.file(suffix).unlink(missing_ok=True)


def finish_promotion(place: DiskPlace, state: DiskState) -> DiskState:
    """At start: if a kill came between the steps by which a top becomes a raw disk, take the rest of them."""
    if state.kind == "top" and state.promoting and not place.file("top").exists() and place.file("img").exists():
        state = _note_raw(place, state)
    if state.kind == "raw":
        remove_maps(place)
    return state
