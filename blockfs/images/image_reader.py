"""Reads the disk in an image range by range; no file gets a byte of it.

Raw disks, fixed VHDs, and VHDX images with sectors of 4096 bytes are read directly.  All other formats are read by qemu-img,
one window of ``WINDOW_BYTES`` at a time, into memory.

Fault contract: the image is opened read-only, and locked against writers until the reader is closed.  Nothing is written.
"""

from __future__ import annotations

import bisect
import os
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.sparse_copy import read_data, seek, unreadable
from siterig.blockfs.images import qemu_img, vhdx
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.images.importer import ImageSource, OpenedImage, opened_image

UNIT_BYTES = 64 << 10
"""Ranges of data begin and end at multiples of this, or at the end of the disk."""
WINDOW_BYTES = 64 << 20
"""Bytes that one run of qemu-img reads into memory."""

DiskRange = tuple[int, int]
"""(offset, length) in bytes of the disk."""


class ImageReader:
    """Reads one image; :func:`open_reader` makes it.  One call at a time."""

    def __init__(self, opened: OpenedImage) -> None:
        self._opened = opened

    @property
    def source(self) -> ImageSource:
        """The format and the size of the disk in the image."""
        return self._opened.source

    async def data_ranges(self) -> list[DiskRange]:
        """Return the ranges that may be other than zeros, in ascending order and without overlap.

        Raises:
            RigError: ``ReadFailed``, ``ImageUnusable``.
        """
        return whole_units(await self._data_ranges(), self.source.size_bytes)

    async def _data_ranges(self) -> Iterable[DiskRange]:
        return await trio.to_thread.run_sync(lambda: list(self._extents()), abandon_on_cancel=True)

    def _extents(self) -> Iterator[DiskRange]:
        file, end = self._opened.file, self.source.size_bytes
        at = 0
        while at < end:
            try:
                start = seek(file.fd, at, os.SEEK_DATA, end)
                at = seek(file.fd, start, os.SEEK_HOLE, end) if start < end else end
            except OSError as exc:
                raise unreadable(file.path, at, reason(exc, file.path)) from exc
            if at > start:
                yield start, at - start

    async def read(self, offset: int, length: int) -> bytes:
        """Return ``length`` bytes from byte ``offset``; bytes after the end of the disk are zeros.

        Raises:
            RigError: ``ReadFailed``, ``ImageUnusable``, ``ConvertFailed``.
        """
        inside = max(0, min(length, self.source.size_bytes - offset))
        data = await self._read(offset, inside) if inside else b""
        return data.ljust(length, b"\0")

    async def _read(self, offset: int, length: int) -> bytes:
        return await trio.to_thread.run_sync(partial(self._read_file, offset, length), abandon_on_cancel=True)

    def _read_file(self, at: int, length: int) -> bytes:
        file, pieces = self._opened.file, []
        while length:
            pieces.append(read_data(file.path, file.fd, at, length))
            at, length = at + len(pieces[-1]), length - len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Release the memory of the reader."""


class _VhdxReader(ImageReader):
    """A VHDX image, block by block."""

    def __init__(self, opened: OpenedImage) -> None:
        super().__init__(opened)
        file = opened.file.bytes()
        self._blocks = list(vhdx.blocks(file, vhdx.read_header(file)))
        self._places = [place for place, _, _ in self._blocks]

    def _extents(self) -> Iterator[DiskRange]:
        return ((place, length) for place, _, length in self._blocks)

    def _read_file(self, at: int, length: int) -> bytes:
        found, end = bytearray(length), at + length
        for place, in_file, block_bytes in self._blocks[max(0, bisect.bisect_right(self._places, at) - 1) :]:
            if place >= end:
                break
            first, last = max(at, place), min(end, place + block_bytes)
            if first < last:
                found[first - at : last - at] = super()._read_file(in_file + first - place, last - first)
        return bytes(found)


class _QemuReader(ImageReader):
    """An image that qemu-img reads, one window after the other."""

    def __init__(self, opened: OpenedImage) -> None:
        super().__init__(opened)
        self._window: int | None = None
        self._fd = -1

    async def _data_ranges(self) -> Iterable[DiskRange]:
        return await qemu_img.data_ranges(self._opened.qemu())

    async def _read(self, offset: int, length: int) -> bytes:
        pieces = []
        while length:
            window = offset - offset % WINDOW_BYTES
            await self._fill(window)
            some = min(length, window + WINDOW_BYTES - offset)
            pieces.append(os.pread(self._fd, some, offset - window))
            offset, length = offset + some, length - some
        return b"".join(pieces)

    async def _fill(self, window: int) -> None:
        if self._window != window:
            self.close()
            fd = os.memfd_create("window", os.MFD_CLOEXEC)
            try:
                length = min(WINDOW_BYTES, self.source.size_bytes - window)
                await qemu_img.read_into(self._opened.qemu(), fd, window, length)
            except BaseException:
                os.close(fd)
                raise
            self._window, self._fd = window, fd

    def close(self) -> None:
        if self._window is not None:
            os.close(self._fd)
            self._window = None


_READERS = {"bytes": ImageReader, "vhdx": _VhdxReader, "qemu-img": _QemuReader}


@asynccontextmanager
async def open_reader(path: Path, format_: ImageFormat | None = None) -> AsyncIterator[ImageReader]:
    """Open, lock and check an image for the time of the block.

    Args:
        path: the image.
        format_: overrides the detected format.
    Raises:
        RigError: the errors of :func:`siterig.blockfs.images.importer.look_at`.
    """
    async with opened_image(path, format_) as opened:
        reader = await trio.to_thread.run_sync(_READERS[opened.copied_by], opened)
        try:
            yield reader
        finally:
            reader.close()


def whole_units(ranges: Iterable[DiskRange], size_bytes: int) -> list[DiskRange]:
    """Return ascending ranges extended to whole units, and joined where they touch."""
    found: list[DiskRange] = []
    for offset, length in ranges:
        start = offset - offset % UNIT_BYTES
        end = min(size_bytes, -(-(offset + length) // UNIT_BYTES) * UNIT_BYTES)
        if found and start <= sum(found[-1]):
            found[-1] = (found[-1][0], max(end, sum(found[-1])) - found[-1][0])
        elif end > start:
            found.append((start, end - start))
    return found
