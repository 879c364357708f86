"""Layers of a disk: a raw file, a view of a managed disk, and a writable overlay over either.

Fault contract
--------------
``RawLayer`` has no state except the bytes of its file.  ``ViewLayer`` never changes; each byte that is read through it is
checked, and a corrupt byte is an ``OSError``, never returned.  ``OverlayLayer`` has a bitmap of the blocks in its file.
Data reaches the file before its bit is set, so a kill between the two leaves the old block, and the disk's change log, which
precedes both, writes it again.  After a power loss bitmap and file can disagree; therefore a second bitmap records the
synced blocks (:mod:`siterig.blockfs.layers.overlay_map`), and no block that was written to loses its synced contents.  The
bitmap is read only when the layer is created.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Buffer

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import STAT_BLOCK_BYTES
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.os_errors import raised_by_c
from siterig.blockfs.layers import overlay_map
from siterig.blockfs.layers.disk_cipher import DiskCipher
from siterig.blockfs.layers.extent_map import ExtentMap
from siterig.cext._core import ffi, lib


class Layer(Protocol):
    """A readable level of a disk's storage."""

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        ...

    @property
    def stored_bytes(self) -> int:
        """Upper limit of the space that its contents take.

        It is below the disk's size if there are holes, except for a few blocks.
        """
        ...

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; the range must be within the disk."""
        ...

    def data_ranges(self) -> list[tuple[int, int]]:
        """Return (offset, length) of all bytes that may be other than zero, sorted, without overlap."""
        ...

    @property
    def c(self) -> Any:
        """The layer in C."""
        ...

    def transfer_ownership(self) -> Any:
        """Return the layer in C, which the caller then owns; this object cannot be used any more."""
        ...

    def close(self) -> None:
        """Close the files."""
        ...


def data_bytes(layer: Layer) -> int:
    """Return the number of bytes of a disk that may be other than zero."""
    return sum(length for _, length in layer.data_ranges())


class WritableLayer(Layer, Protocol):
    """A layer that one thread at a time writes to; reads and :meth:`sync` may run concurrently.

    ``path`` is the file that takes the writes.
    """

    path: Path

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        ...

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros, and free space where possible."""
        ...

    def resize(self, size_bytes: int) -> None:
        """Grow the disk."""
        ...

    def sync(self) -> None:
        """Make all earlier writes durable."""
        ...

    def fileno(self) -> int:
        """Return the descriptor of the file that takes the writes."""
        ...


def merge_ranges(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort (offset, length) pairs and join those that touch or overlap."""
    merged: list[tuple[int, int]] = []
    for offset, length in sorted(ranges):
        if merged and offset <= merged[-1][0] + merged[-1][1]:
            start, old = merged[-1]
            merged[-1] = (start, max(old, offset + length - start))
        else:
            merged.append((offset, length))
    return merged


class _CLayer:
    """A layer in C (cext/src/layers/layer.h), which owns the descriptors."""

    def __init__(self, layer: Any) -> None:
        self._c = layer

    @property
    def c(self) -> Any:
        """The layer in C; OSError EBADF after it was closed or transferred."""
        if self._c is None:
            raise OSError(errno.EBADF, "this layer is closed")
        return self._c

    @property
    def size_bytes(self) -> int:
        """Size of the disk."""
        return int(lib.sr_layer_bytes(self.c))

    def pread(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes."""
        data = bytearray(length)
        self.pread_into(offset, data)
        return bytes(data)

    def pread_into(self, offset: int, memory: Buffer) -> None:
        """Fill all of ``memory``, which is writable, from ``offset`` on."""
        into = ffi.from_buffer(memory, require_writable=True)
        _check(lib.sr_layer_read(self.c, into, len(into), offset))

    def data_ranges(self) -> list[tuple[int, int]]:
        """Return all ranges that are not holes."""
        ranges, at = [], 0
        while (start := self._seek(at, os.SEEK_DATA)) is not None:
            at = self._seek(start, os.SEEK_HOLE) or start
            ranges.append((start, at - start))
        return ranges

    def _seek(self, offset: int, whence: int) -> int | None:
        found = int(lib.sr_layer_seek(self.c, offset, whence))
        if found == -errno.ENXIO:
            return None
        _check(found)
        return found

    def transfer_ownership(self) -> Any:
        """Return the layer in C, which the caller then owns."""
        layer, self._c = self.c, None
        return layer

    def close(self) -> None:
        """Close the files, and the layers below."""
        if self._c is not None:
            lib.sr_layer_free(self._c)
            self._c = None


class _WritableCLayer(_CLayer):
    """The common operations of a raw file and an overlay."""

    def pwrite(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``."""
        done = lib.sr_layer_write(self.c, ffi.from_buffer(data), len(data), offset)
        _check(done)
        if done < len(data):
            raise OSError(errno.ENOSPC, f"only {done} of {len(data)} bytes could be written")

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros: a hole, or written zeros if the host's file system has no holes."""
        _check(lib.sr_layer_zero(self.c, offset, length))

    def resize(self, size_bytes: int) -> None:
        """Grow the disk; the new end reads as zeros.  A raw file can also be truncated."""
        _check(lib.sr_layer_resize(self.c, size_bytes))

    def sync(self) -> None:
        """Make all earlier writes durable."""
        _check(lib.sr_layer_sync(self.c))


def _check(result: int) -> None:
    if result < 0:
        raise raised_by_c(result)


def _made(layer: Any) -> Any:
    """Return the result of a constructor in C; ``OSError`` if it failed."""
    if layer == ffi.NULL:
        raise raised_by_c(-ffi.errno)
    return layer


class RawLayer(_WritableCLayer):
    """A raw (sparse) file whose first ``size_bytes`` are the disk (default: the whole file).

    ``fd`` is a descriptor of the file, which the layer owns from now on; without it the file is opened by its path.
    """

    def __init__(self, path: Path, *, writable: bool = False, size_bytes: int | None = None, fd: int | None = None) -> None:
        self.path = path
        self._fd = safe_files.open_named(path, os.O_RDWR if writable else os.O_RDONLY) if fd is None else fd
        try:
            size = os.fstat(self._fd).st_size if size_bytes is None else size_bytes
            super().__init__(_made(lib.sr_layer_raw(self._fd, size)))
        except BaseException:
            os.close(self._fd)
            raise

    @classmethod
    def of_overlay(cls, overlay: WritableLayer, path: Path) -> RawLayer:
        """Return the raw layer that an overlay has become in C after it detached its backing; its file is now ``path``."""
        raw = cls.__new__(cls)
        raw.path, raw._fd = path, overlay.fileno()
        _CLayer.__init__(raw, overlay.transfer_ownership())
        return raw

    @property
    def stored_bytes(self) -> int:
        """Bytes of the file that the host's file system stores."""
        return os.fstat(self._fd).st_blocks * STAT_BLOCK_BYTES

    def fileno(self) -> int:
        """Return the file's descriptor."""
        return self._fd


@dataclass(frozen=True, slots=True)
class Source:
    """A file with extents of a view, and the CRC32C of its pieces: four bytes each from the start of ``sums_fd``.

    ``sums_fd`` -1 means the file itself.  ``paired`` means a base, with two checksums a block
    (:mod:`siterig.blockfs.layers.base_update`).  ``name`` is shown to people.
    """

    fd: int
    sums_fd: int = -1
    paired: bool = False
    name: str = ""


@dataclass(frozen=True, slots=True)
class ViewFault:
    """A piece that a view did not return: its offset on the disk, its source, and its offset there.

    ``error`` is EIO if the checksum is ``found`` and not ``expected``, or if the piece cannot be read (both are 0 then).  It
    is ENODATA if the piece has no checksum.
    """

    offset: int
    source: int
    source_offset: int
    error: int
    expected: int
    found: int


class ViewFaults:
    """The faults that a view has met; it can be read even after the view was given to an overlay or closed."""

    def __init__(self) -> None:
        self.c = ffi.gc(_made(lib.sr_faults_new()), lib.sr_faults_put)

    def seen(self) -> tuple[int, list[ViewFault]]:
        """Return the number of faults so far, and the last few of them, oldest first."""
        last = ffi.new("struct sr_fault[]", lib.SR_FAULTS_KEPT)
        count = int(lib.sr_faults_seen(self.c, last))
        kept = ffi.unpack(last, min(count, lib.SR_FAULTS_KEPT))
        return count, [ViewFault(f.offset, f.source, f.source_offset, f.error, f.expected, f.found) for f in kept]


class ViewLayer(_CLayer):
    """A disk at one position: the extents of a merged map over zeros; every byte is checked when it is read.

    The layer owns the descriptors of ``sources``, even if the constructor fails; None is a source without extents.  The map
    may be changed afterwards.  A read of a corrupt byte is ``EIO`` and is recorded in ``faults``.
    """

    def __init__(self, extents: ExtentMap, sources: Sequence[Source | None], size_bytes: int) -> None:
        self.faults = ViewFaults()
        self.source_names = [source.name if source else "" for source in sources]
        rows = [(s.fd, s.sums_fd, s.paired) if s else (-1, -1, False) for s in sources]
        table = ffi.new("struct sr_source[]", rows)
        try:
            super().__init__(_made(lib.sr_layer_view(extents.c, table, len(rows), size_bytes, self.faults.c)))
        except BaseException:
            for fd in (fd for row in rows for fd in row[:2] if fd >= 0):
                os.close(fd)
            raise
        self._stored_bytes: int | None = None

    def decrypted(self, cipher: DiskCipher) -> ViewLayer:
        """Return a view that decrypts this one, which belongs to it from now on."""
        above = ViewLayer.__new__(ViewLayer)
        _CLayer.__init__(above, _made(lib.sr_layer_decrypted(self.c, cipher.c)))
        self.transfer_ownership()
        above.faults, above.source_names, above._stored_bytes = self.faults, self.source_names, None
        return above

    @property
    def stored_bytes(self) -> int:
        """Number of bytes outside holes; it never changes, and the first call counts it range by range."""
        if self._stored_bytes is None:
            found = int(lib.sr_layer_data_bytes(self.c))
            _check(found)
            self._stored_bytes = found
        return self._stored_bytes


class OverlayLayer(_WritableCLayer):
    """A sparse file that takes the writes over a read-only lower layer, with a bitmap of the blocks that it holds.

    ``path`` is the file, ``path`` + ``.present`` the bitmap: one bit for each 4 KiB block.  The overlay owns the lower
    layer; ``lower_fd`` is the descriptor of a raw lower layer.
    """

    def __init__(self, lower: Layer, path: Path) -> None:
        fd = map_fd = durable_fd = -1
        try:
            fd = safe_files.open_file(path, os.O_RDWR | os.O_CREAT)
            size = os.fstat(fd).st_size
            if size == 0:
                size = lower.size_bytes
                os.ftruncate(fd, size)
            _check_overlay(path, size, lower)
            map_fd, durable_fd = overlay_map.open_maps(path)
            super().__init__(_made(lib.sr_layer_overlay(lower.c, fd, map_fd, durable_fd, size)))
        except BaseException:
            for opened in (fd, map_fd, durable_fd):
                if opened >= 0:
                    os.close(opened)
            raise
        self.path = path
        self._fd = fd
        self._below_bytes = lower.stored_bytes
        self.lower_fd = lower.fileno() if isinstance(lower, RawLayer) else None
        lower.transfer_ownership()

    @property
    def stored_bytes(self) -> int:
        """Stored bytes of the file and of the lower layer together, although some of these may be overwritten."""
        return os.fstat(self._fd).st_blocks * STAT_BLOCK_BYTES + self._below_bytes

    def fileno(self) -> int:
        """Return the descriptor of the file that takes the writes."""
        return self._fd


def _check_overlay(path: Path, size: int, lower: Layer) -> None:
    if size < lower.size_bytes:
        raise RigError(
            Code.DiskCorrupt,
            f"{path}: the overlay has {size} bytes; allowed: at least the {lower.size_bytes} bytes of its backing",
        )
