"""Pins: positions of a managed disk that something has open.  The floor never passes one.

A pin is a file ``pins/ID.json``.  Pins are made, and folds announced, under one lock (flock on the file ``lock``), so that
a position is either pinned before a fold looks for pins, or refused.

Fault contract: a pin is durable before :func:`pin` returns, and gone for good when :func:`unpin` has.  Who makes pins looks
after a kill for those it does not need any more: a pin that is left too long costs space, nothing else.  A pin file that
cannot be read is ``StoreCorrupt``, and nothing is folded.  Any process may make pins; the id follows from holder and
position, so the same pin is made once.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from siterig.azure_emu.contracts.ports import Pin
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.loader import load_history
from siterig.azure_emu.disks.metadata import read_meta, write_meta
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.durable_io import sync_folder

PINS = "pins"
LOCK = "lock"
_IDS = uuid.UUID("5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42")


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store's lock; ``DiskNotFound``."""
    try:
        fd = os.open(store / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RigError(Code.DiskNotFound, f"{store}: there is no managed disk") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def pin(store: Path, position: int, holder: str) -> str:
    """Keep ``position`` from being folded away; the pin's id.  ``InvalidPosition`` (names what is valid)."""
    pin_id = str(uuid.uuid5(_IDS, f"{position} {holder}"))
    with host_disk_errors(store), locked(store):
        load_history(store).epoch_of(position)
        path = store / PINS / f"{pin_id}.json"
        if path.exists():
            sync_folder(path.parent)  # a kill may have come before that
        else:
            write_meta(path, Pin(pin_id=pin_id, position=position, holder=holder, created_ns=time.time_ns()))
    return pin_id


def unpin(store: Path, pin_id: str) -> None:
    """Let go; no-op if the pin, or the store, is gone."""
    with host_disk_errors(store), suppress(FileNotFoundError):
        (store / PINS / f"{pin_id}.json").unlink(missing_ok=True)
        sync_folder(store / PINS)


def pins(store: Path) -> list[Pin]:
    """All pins, lowest position first; ``StoreCorrupt`` names one that cannot be read."""
    found = []
    with host_disk_errors(store):
        for path in _files(store):
            try:
                found.append(read_meta(path, Pin))
            except RigError:
                if path.exists():  # else it was let go just now
                    raise
    return sorted(found, key=lambda pin: (pin.position, pin.pin_id))


def unpin_holder(store: Path, holder: str) -> None:
    """Let go of all that ``holder`` has of a store; no-op if there is none.  A pin that cannot be read stays."""
    with host_disk_errors(store):
        for path in _files(store):
            with suppress(RigError):
                each = read_meta(path, Pin)
                if each.holder == holder:
                    unpin(store, each.pin_id)


def _files(store: Path) -> list[Path]:
    return [path for path in (store / PINS).glob("*.json") if not path.name.startswith(".")]
