"""Imports an image, of any format that siterig or qemu-img can read, as the first contents of a disk.

Fault contract: an image is opened once, locked, and read through that descriptor.  Header, check and copy read one file,
even if its name is given to another file meanwhile.  A file that is written to while it is copied is an error.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.files import block_device
from siterig.blockfs.files.sparse_copy import STEP_BYTES, SparseCopy, write_data
from siterig.blockfs.images import image_file, image_headers, image_kind, qemu_img, vhd, vhdx
from siterig.blockfs.images.image_file import LockedFile, Note, ignore_note
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.images.qemu_img import OpenImage

_QEMU_NAMES: dict[ImageFormat, str] = {"vhd": "vpc"}
_CHECKED = ("qcow2", "vhdx", "vmdk", "vdi", "qed", "parallels")  # the formats that qemu-img check knows


@dataclass(frozen=True, slots=True)
class ImageSource:
    """An image that can be imported.

    Attributes:
        size_bytes: size of the disk, without the footer of a fixed VHD.
        sector_bytes: logical sector size that the image, or the block device, declares.
        remark: a remark for the user about the detected format, or None.
    """

    path: Path
    format: ImageFormat
    size_bytes: int
    sector_bytes: int = SECTOR_BYTES
    remark: str | None = None


@dataclass(frozen=True, slots=True)
class OpenedImage:
    """An open, locked and checked image.

    ``copied_by`` is ``bytes`` (of a raw disk), ``vhdx`` (4096-byte sectors) or ``qemu-img``.
    """

    file: LockedFile
    source: ImageSource
    copied_by: str

    def qemu(self) -> OpenImage:
        """Return the image as qemu-img gets it."""
        return _qemu(self.file, self.source.format)


def _qemu(file: LockedFile, format_: ImageFormat) -> OpenImage:
    return OpenImage(file.path, file.fd, _QEMU_NAMES.get(format_, format_))


async def look_at(path: Path, format_: ImageFormat | None = None, *, note: Note = ignore_note) -> ImageSource:
    """Return the format and size of an image.

    Args:
        path: the image.
        format_: overrides the detected format.
        note: hears of a wait for a mount that ends.
    Raises:
        RigError: ``ImageUnusable``, ``ImageBusy``, ``InvalidDiskSize``, ``VhdCorrupt``, ``ToolMissing``.
    """
    async with opened_image(path, format_, note) as found:
        return found.source


@asynccontextmanager
async def opened_image(path: Path, format_: ImageFormat | None, note: Note = ignore_note) -> AsyncIterator[OpenedImage]:
    """Open, lock and check an image for the time of the block."""
    file = await image_file.open_locked(path, read_only=True, note=note)
    try:
        yield await _examined(file, format_)
    finally:
        file.close()


async def _examined(file: LockedFile, expected: ImageFormat | None) -> OpenedImage:
    contents = await trio.to_thread.run_sync(file.contents, abandon_on_cancel=True)
    format_ = expected or image_kind.guess(file.path, contents, is_device=file.is_device)
    sector_bytes = SECTOR_BYTES
    if format_ == "raw" or (format_ == "vhd" and not contents.head.startswith(vhd.COOKIE)):
        copied_by = "bytes"
        if format_ == "vhd":
            size_bytes = vhd.read_fixed(file.bytes())
        else:
            image_file.check_raw_size(file)
            size_bytes = file.size_bytes
            sector_bytes = block_device.logical_sector_bytes(file.fd) if file.is_device else SECTOR_BYTES
    else:
        header = await trio.to_thread.run_sync(image_headers.read_header, file.bytes(), format_, abandon_on_cancel=True)
        sector_bytes = header.sector_bytes
        copied_by = "vhdx" if format_ == "vhdx" and sector_bytes != SECTOR_BYTES else "qemu-img"
        size_bytes = await _checked(file, format_, header.size_bytes, copied_by)
    if size_bytes <= 0 or size_bytes % SECTOR_BYTES:
        raise RigError(Code.InvalidDiskSize, f"{file.path}: is a disk of {size_bytes} bytes; it must be a multiple of 512")
    remark = None if expected else image_kind.remark(file.path, format_, contents, size_bytes)
    return OpenedImage(file, ImageSource(file.path, format_, size_bytes, sector_bytes, remark), copied_by)


async def _checked(file: LockedFile, format_: ImageFormat, header_bytes: int | None, copied_by: str) -> int:
    """Return the size of the disk in a container, after a check that all of its data are in the file."""
    if format_ == "vhdx":
        await trio.to_thread.run_sync(partial(_check_vhdx, file), abandon_on_cancel=True)
    if copied_by == "vhdx":
        return header_bytes or 0
    opened = _qemu(file, format_)
    size_bytes = await qemu_img.disk_bytes(opened)
    if header_bytes is not None and size_bytes != header_bytes:
        raise RigError(Code.ImageUnusable, f"{file.path}: was changed by another program while its header was read")
    await qemu_img.check_whole(opened, file.size_bytes)
    if format_ in _CHECKED:
        await qemu_img.check(opened)
    return size_bytes


def _check_vhdx(file: LockedFile) -> None:
    header = vhdx.read_header(file.bytes())
    for _ in vhdx.blocks(file.bytes(), header):
        pass


async def fill(path: Path, disk: Path, *, advance: Advance, format_: ImageFormat | None = None) -> None:
    """Write the disk in an image to ``disk``, a file of zeros that is at least as large; it is durable on return.

    Raises:
        RigError: the errors of :func:`look_at`; ``DiskTooSmall``, ``DiskFull``, ``InvalidDiskSize``, ``HostIoError``,
            ``ReadFailed``, ``ConvertFailed``.
    """
    async with opened_image(path, format_) as opened:
        source, before = opened.source, os.fstat(opened.file.fd)
        with disk.open("r+b", buffering=0) as target:
            size_bytes = os.fstat(target.fileno()).st_size
            if source.size_bytes > size_bytes:
                raise RigError(
                    Code.DiskTooSmall, f"{disk}: has {size_bytes} bytes; the disk in {path} has {source.size_bytes}"
                )
            await _copy(opened, disk, target.fileno(), advance)
            await trio.to_thread.run_sync(os.fsync, target.fileno())
        after = os.fstat(opened.file.fd)
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise RigError(
                Code.ImageBusy, f"{source.path}: was written to while it was read; import it when nothing writes to it"
            )


async def _copy(opened: OpenedImage, disk: Path, fd: int, advance: Advance) -> None:
    source = opened.source
    if opened.copied_by == "bytes":
        await SparseCopy(source.path, opened.file.fd, disk, fd, source.size_bytes).run(advance)
    elif opened.copied_by == "vhdx":
        await _copy_vhdx(opened.file, disk, fd, advance)
    else:
        options = ("-n", "--target-is-zero")  # into the existing disk
        await qemu_img.convert(
            opened.qemu(),
            qemu_img.Target(disk, fd),
            to="raw",
            size_bytes=source.size_bytes,
            advance=advance,
            options=options,
        )


async def _copy_vhdx(file: LockedFile, disk: Path, fd: int, advance: Advance) -> None:
    header = vhdx.read_header(file.bytes())
    done = 0
    for place, at, length in vhdx.blocks(file.bytes(), header):
        for step in range(0, length, STEP_BYTES):
            step_bytes = min(STEP_BYTES, length - step)
            data = await trio.to_thread.run_sync(file.bytes().read, at + step, step_bytes, abandon_on_cancel=True)
            await trio.to_thread.run_sync(write_data, disk, fd, data, place + step)
        advance(place + length - done)
        done = place + length
    advance(header.size_bytes - done)
