"""Extent maps: where the bytes of a disk are stored; implemented in C (cext/src/index/extent_map.c).

Fault contract: the input of :meth:`ExtentMap.add` and :meth:`ExtentMap.load` may be any bytes.  Invalid rows raise
``RigError('ExtentsCorrupt')``, which names the first one, and leave the map unchanged.  The caller checks that the bytes are
the ones that were written, and that they belong to the right files.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from typing_extensions import Buffer

from siterig.blockfs.core.errors import Code, RigError
from siterig.cext._core import ffi, lib

EXTENT_BYTES: int = ffi.sizeof("struct sr_extent_row")
_BASE_RANGE = f"at least one byte, from a multiple of {lib.SR_PIECE_BYTES}"
_ENTRY_BYTES: int = ffi.sizeof("struct sr_entry")
ZEROS: int = lib.SR_SOURCE_ZEROS
"""The source of an extent that reads as zeros."""
GONE: int = lib.SR_SOURCE_GONE
BASE: int = lib.SR_SOURCE_BASE

_POSITION_MAX = (1 << 64) - 1
_PAIR = struct.Struct("<QQ")
_EXTENT = struct.Struct("<QQQQiHH")


@dataclass(frozen=True, slots=True)
class Extent:
    """One extent, with the fields of struct sr_extent_row (cext/src/index/extent_map.h)."""

    start: int
    end: int
    source_offset: int
    first_piece: int
    source: int
    before: int
    after: int


class ExtentMap:
    """Extents of a disk, sorted, without overlap; bytes outside all extents are zeros.  For one thread at a time."""

    def __init__(self) -> None:
        self._c = ffi.gc(_made(lib.sr_extents_new()), lib.sr_extents_free)

    @property
    def c(self) -> Any:
        """The map in C."""
        return self._c

    def __len__(self) -> int:
        return int(lib.sr_extents_count(self._c))

    def add_base(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Add ranges (offset, length) in which the base (source 0) holds data; offsets are multiples of 4096.

        The base lies under everything else, whenever it is added.
        """
        packed = pack_ranges(ranges)
        _check(
            lib.sr_extents_add_base(self._c, ffi.from_buffer("uint64_t[]", packed), len(ranges)),
            "a range of the base",
            _BASE_RANGE,
        )

    def add(
        self,
        source: int,
        entries: Buffer,
        *,
        segment_at: int,
        piece_at: int,
        after: int = -1,
        upto: int | None = None,
    ) -> int:
        """Add changes with ``after < position <= upto`` on top of the map; they are visible after :meth:`merge_pending`.

        Args:
            source: number of the file with the segment, from 1.
            entries: rows of a :class:`PartIndex`.
            segment_at: byte of the file at which the segment begins.
            piece_at: number of the segment's first piece in the file's table.
            after: lower limit of positions, not included.
            upto: upper limit of positions, included; None for no limit.
        Returns:
            The new disk size of the last RESIZE among the changes, or 0.
        """
        view = memoryview(entries).cast("B")
        if len(view) % _ENTRY_BYTES:
            raise RigError(Code.ExtentsCorrupt, f"index: {len(view)} bytes; allowed: a multiple of {_ENTRY_BYTES}")
        most = _POSITION_MAX if upto is None else upto
        rows = len(view) // _ENTRY_BYTES
        added = lib.sr_extents_add(self._c, source, ffi.from_buffer(view), rows, segment_at, piece_at, after, most)
        _check(added, "an entry of an index", "at least one byte, and numbers below 2^63")
        return int(added)

    def merge_pending(self) -> None:
        """Merge the added changes into the map."""
        _check(lib.sr_extents_merge(self._c))

    def used(self, sources: int) -> list[int]:
        """Return the numbers of the sources below ``sources`` that have a merged extent."""
        seen = bytearray(sources)
        lib.sr_extents_used(self._c, ffi.from_buffer(seen), sources)
        return [source for source, is_used in enumerate(seen) if is_used]

    def retarget(self, becomes: Sequence[int], least: Sequence[int] | None = None) -> None:
        """Change the source of merged extents from i to ``becomes[i]``, or remove them (``GONE``); the base stays 0.

        Extents before byte ``least[i]`` of source i are removed too.
        """
        from_byte = ffi.new("uint64_t[]", list(least) if least else len(becomes))
        new = ffi.new("int32_t[]", list(becomes))
        _check(
            lib.sr_extents_retarget(self._c, new, from_byte, len(becomes)),
            "the source of an extent",
            f"0 to {len(becomes) - 1}",
        )

    def ranges(self) -> list[tuple[int, int]]:
        """Return (offset, length) of all merged extents that are not zeros, sorted and joined."""
        return self._ranges(zeros=False, unit_bytes=1)

    def touched(self, unit_bytes: int = 1) -> list[tuple[int, int]]:
        """Return (offset, length) of all merged extents, zeros included, sorted and joined.

        Ranges are widened to whole ``unit_bytes``.
        """
        return self._ranges(zeros=True, unit_bytes=unit_bytes)

    def _ranges(self, *, zeros: bool, unit_bytes: int) -> list[tuple[int, int]]:
        room = ffi.new("uint64_t[]", 2 * len(self))
        count = lib.sr_extents_ranges(self._c, zeros, unit_bytes, room)
        return list(_PAIR.iter_unpack(bytes(ffi.buffer(room, count * _PAIR.size))))

    def extents(self) -> list[Extent]:
        """Return all merged extents; for tests."""
        raw = ffi.buffer(lib.sr_extents_rows(self._c), len(self) * EXTENT_BYTES) if len(self) else b""
        return [Extent(*row) for row in _EXTENT.iter_unpack(bytes(raw))]

    def dump(self) -> bytes:
        """Return all merged extents as bytes for :meth:`load`.

        The extents of the base are left out, because its own map records them.
        """
        rows = bytearray(len(self) * EXTENT_BYTES)
        count = lib.sr_extents_dump(self._c, ffi.from_buffer("struct sr_extent_row[]", rows))
        del rows[count * EXTENT_BYTES :]
        return bytes(rows)

    @classmethod
    def load(cls, data: Buffer, sources: int) -> ExtentMap:
        """Return a map from dumped bytes.

        Args:
            data: result of :meth:`dump`.
            sources: number of sources, the base included.
        Raises:
            RigError: ``ExtentsCorrupt``.
        """
        made = cls()
        view = memoryview(data).cast("B")
        if len(view) % EXTENT_BYTES:
            raise RigError(Code.ExtentsCorrupt, f"extents: {len(view)} bytes; allowed: a multiple of {EXTENT_BYTES}")
        count = len(view) // EXTENT_BYTES
        loaded = lib.sr_extents_load(made.c, ffi.from_buffer(view), count, sources)
        if 0 <= loaded < count:
            row = _EXTENT.unpack_from(view, loaded * EXTENT_BYTES)
            text = f"extent {loaded} of {count} is invalid: {Extent(*row)}; allowed: sources 0 to {sources - 1}, no overlap"
            raise RigError(Code.ExtentsCorrupt, text)
        _check(loaded)
        return made


def pack_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Return (offset, length) pairs in the form that functions in C take."""
    return struct.pack(f"<{2 * len(ranges)}Q", *chain.from_iterable(ranges))


def _made(pointer: Any) -> Any:
    if pointer == ffi.NULL:
        raise MemoryError
    return pointer


def _check(result: int, what: str = "the map", allowed: str = "") -> None:
    if result == -errno.EINVAL:
        raise RigError(Code.ExtentsCorrupt, f"{what} is invalid; allowed: {allowed}")
    if result < 0:
        raise MemoryError
