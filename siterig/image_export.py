"""A disk of a mounted point as an image file, in any of the formats people ask for.

Fault contract: the image is written under a hidden name beside its own, made durable, and then named: it is there whole or
not at all.  An error or Ctrl-C takes the hidden file away; only a kill leaves it (``.NAME.XXXXXXXX.part``).
"""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Literal

import trio

from blockfs import qemu_img
from blockfs.durable import sync_folder
from blockfs.errors import RigError
from blockfs.qemu_img import Advance
from blockfs.sparse_copy import SparseCopy

OWN_FORMATS = ("raw", "vhd")
Format = Literal["raw", "vhd", "qcow2", "vhdx", "vmdk"]


def check(to: Path, format_: Format, *, force: bool) -> None:
    """What can be told before anything is mounted: ``FileExists``, ``BadRequest``, ``ToolMissing``."""
    if to.is_dir() or not to.parent.is_dir():
        raise RigError("BadRequest", f"{to}: is a folder, or in a folder that is not there; name the image file to make")
    if to.exists() and not force:
        raise _exists(to)
    if format_ not in OWN_FORMATS:
        qemu_img.require(f"format {format_}")


def _exists(to: Path) -> RigError:
    return RigError("FileExists", f"{to} is there already: name another file, or replace it with --force")


async def export(source: Path, to: Path, format_: Format, *, force: bool, advance: Advance) -> None:
    """Write the disk in ``source`` (for ``vhd`` the one with a footer) to ``to``."""
    part = to.with_name(f".{to.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if format_ in OWN_FORMATS:
            await _copy(source, part, advance)
        else:
            size_bytes = source.stat().st_size
            await qemu_img.convert(source, part, from_="raw", to=format_, size_bytes=size_bytes, advance=advance)
        await trio.to_thread.run_sync(_publish, part, to, force)
    finally:
        part.unlink(missing_ok=True)


async def _copy(source: Path, part: Path, advance: Advance) -> None:
    with source.open("rb", buffering=0) as reading, part.open("xb", buffering=0) as writing:
        size_bytes = os.fstat(reading.fileno()).st_size
        os.ftruncate(writing.fileno(), size_bytes)
        await SparseCopy(source, reading.fileno(), part, writing.fileno(), size_bytes).run(advance)


def _publish(part: Path, to: Path, force: bool) -> None:
    fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    if force:
        part.rename(to)
    else:
        try:
            os.link(part, to)  # unlike a rename, it replaces nothing that came meanwhile
        except FileExistsError:
            raise _exists(to) from None
        except PermissionError:  # a file system without hard links
            part.rename(to)
    sync_folder(to.parent)
