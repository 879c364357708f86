"""The files of a disk: where they are, and how new ones are made.

Fault contract: a disk's state names a size only after the disk's file durably has it.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from blockfs.disk_state import DiskState
from blockfs.errors import RigError
from blockfs.log_recovery import DISK_BYTES_MAX

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
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
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
