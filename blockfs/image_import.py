"""An image of any format that we or qemu-img can read, as the first contents of a disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import trio

from blockfs import image, qemu_img, vhd
from blockfs.disk_files import SECTOR_BYTES
from blockfs.errors import RigError
from blockfs.qemu_img import Advance
from blockfs.sparse_copy import SparseCopy

_QEMU_NAMES = {"qcow2", "vhdx", "vmdk", "vpc"}
_CHECKED = _QEMU_NAMES - {"vpc"}  # of which qemu-img sees that it was cut off when it opens it


@dataclass(frozen=True, slots=True)
class Source:
    """An image that can be imported.  ``format``: ``raw``, ``vhd`` (fixed), or qemu-img's name of another one."""

    path: Path
    format: str
    size_bytes: int
    """Of the disk: a fixed VHD's footer is no part of it."""


async def look_at(path: Path) -> Source:
    """What it is; ``ImageUnusable``, ``ImageBusy``, ``InvalidDiskSize``, ``VhdCorrupt``, ``ToolMissing``."""
    path = Path(await trio.to_thread.run_sync(os.path.realpath, path))
    other = await trio.to_thread.run_sync(_other_format, path)
    if other is None:
        opened = await image.open_image(path, read_only=True)
        opened.close()
        return Source(path, opened.format, opened.size_bytes)
    if other not in _QEMU_NAMES:
        raise RigError("ImageUnusable", f"{path}: is a {other} image; raw, vhd, qcow2, vhdx and vmdk can be imported")
    found = await qemu_img.facts(path, other)
    if found.backing is not None:
        # It could be anywhere, on another machine too.
        raise RigError(
            "ImageUnusable", f"{path}: needs another file, {found.backing}: qemu-img convert makes one image of both"
        )
    if found.size_bytes <= 0 or found.size_bytes % SECTOR_BYTES:
        raise RigError(
            "InvalidDiskSize", f"{path}: is a disk of {found.size_bytes} bytes; it must be a multiple of {SECTOR_BYTES}"
        )
    if other in _CHECKED:
        await qemu_img.check(path, other)
    return Source(path, other, found.size_bytes)


def _other_format(path: Path) -> str | None:
    """qemu-img's name of a format that is not ours; None: raw or a fixed VHD, or no file at all."""
    try:
        with path.open("rb") as file:
            head = file.read(image.SECTOR_BYTES)
    except OSError:
        return None  # opening it says why
    if head.startswith(vhd.COOKIE):  # a fixed one has its footer at the end only
        return "vpc"
    return image.other_format(head)


async def fill(path: Path, disk: Path, *, advance: Advance) -> None:
    """Write an image's disk to ``disk``, a file of zeros that is as large or larger; durable on return."""
    source = await look_at(path)
    size_bytes = disk.stat().st_size
    if source.size_bytes > size_bytes:
        raise RigError("DiskTooSmall", f"{disk}: has {size_bytes} bytes; the disk in {path} has {source.size_bytes}")
    if source.format in ("raw", "vhd"):
        opened = await image.open_image(source.path, read_only=True)
        try:
            with disk.open("r+b", buffering=0) as target:
                await SparseCopy(source.path, opened.fd, disk, target.fileno(), source.size_bytes).run(advance)
        finally:
            opened.close()
    else:
        options = ("-n", "--target-is-zero")  # into the disk that is there
        await qemu_img.convert(
            source.path, disk, from_=source.format, to="raw", size_bytes=source.size_bytes, advance=advance, options=options
        )
    with disk.open("rb") as target:
        await trio.to_thread.run_sync(os.fsync, target.fileno())
