"""Pins: positions of a managed disk that something has open.  Compaction never passes a pin.

A pin is a file ``pins/ID.json``.  Pins are made, and compactions announced, under one lock (flock on the file ``lock``).
Therefore a position is either pinned before a compaction reads the pins, or refused.

Fault contract: a pin is durable before :func:`pin` returns, and removed durably when :func:`unpin` returns.  After a kill,
the process that makes pins removes those that it does not need any more; a pin that stays too long costs only space.  If a
pin file cannot be read, :func:`pins` raises ``StoreCorrupt`` and nothing is compacted.  Any process may make pins.  The id
is computed from holder and position, so the same pin exists once.
"""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siterig.azure_emu.contracts.recovery_side import Pin
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.loader import load_history
from siterig.azure_emu.disks.metadata import read_meta, write_meta
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.durable_io import sync_folder

PINS = "pins"
LOCK = "lock"
_IDS = uuid.UUID("5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of the managed disk in ``folder`` during the block.

    Raises:
        RigError: ``DiskNotFound``.
    """
    fd = _lock(folder)
    try:
        yield
    finally:
        os.close(fd)


def _lock(folder: Path) -> int:
    """Return the descriptor that holds the lock; the managed disk may be replaced by another while this waits."""
    path = folder / LOCK
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise RigError(Code.DiskNotFound, f"{folder}: there is no managed disk") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), path.stat()):
                    return fd
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def pin(folder: Path, position: int, holder: str, clock: Clock = SYSTEM_CLOCK) -> str:
    """Keep ``position`` readable until it is unpinned.

    Args:
        folder: the managed disk's folder.
        position: the position.
        holder: who needs it: a kind, a space and a name, for example ``vm web01/os``.
        clock: the wall time of the pin.
    Returns:
        The id of the pin.
    Raises:
        RigError: ``InvalidPosition``, which names the valid positions; ``DiskNotFound``, ``DiskFull``.
    """
    pin_id = str(uuid.uuid5(_IDS, f"{position} {holder}"))
    with host_disk_errors(folder), locked(folder):
        load_history(folder).epoch_of(position)
        path = folder / PINS / f"{pin_id}.json"
        if path.exists():
            sync_folder(path.parent)  # a kill may have come before this sync
        else:
            write_meta(path, Pin(pin_id=pin_id, position=position, holder=holder, created_ns=clock.wall_ns()))
    return pin_id


def unpin(folder: Path, pin_id: str) -> None:
    """Remove a pin durably; no-op if the pin or the managed disk does not exist."""
    with host_disk_errors(folder), suppress(FileNotFoundError):
        (folder / PINS / f"{pin_id}.json").unlink(missing_ok=True)
        sync_folder(folder / PINS)


def pins(folder: Path) -> list[Pin]:
    """Return all pins, lowest position first.

    Raises:
        RigError: ``StoreCorrupt``, which names a pin that cannot be read.
    """
    found = []
    with host_disk_errors(folder):
        for path in _files(folder):
            try:
                found.append(read_meta(path, Pin))
            except RigError:
                if path.exists():  # otherwise it was unpinned just now
                    raise
    return sorted(found, key=lambda pin: (pin.position, pin.pin_id))


def unpin_holder(folder: Path, holder: str) -> None:
    """Remove all pins of ``holder``; no-op if there is none.  A pin that cannot be read stays."""
    with host_disk_errors(folder):
        for path in _files(folder):
            with suppress(RigError):
                each = read_meta(path, Pin)
                if each.holder == holder:
                    unpin(folder, each.pin_id)


def _files(folder: Path) -> list[Path]:
    return [path for path in (folder / PINS).glob("*.json") if not path.name.startswith(".")]
