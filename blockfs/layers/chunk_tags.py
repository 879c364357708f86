"""Keyed tags of many chunks of a layer, in one call without the GIL; a hole costs nothing (cext/src/layers/chunk_tags.c).

Two sides compute the tags of the same chunks under the same key, and :func:`siterig.cext.packed_tags.differing` returns the
chunks that are not equal.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from siterig.blockfs.files.os_errors import raised_by_c
from siterig.blockfs.layers.layer import Layer
from siterig.cext._core import ffi, lib
from siterig.cext.checksums import check_key
from siterig.cext.packed_tags import PACKED_BYTES, PackedTags, Span

CHUNK_BYTES_MAX: int = lib.SR_TAG_CHUNK_BYTES_MAX
BLOCK_BYTES: int = lib.SR_BLOCK_BYTES
_NO_END = (1 << 64) - 1


class DataRanges:
    """The ranges of a disk that may be other than zeros, packed for C."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Pack (offset, length) pairs, which are sorted and do not overlap."""
        self.count = len(ranges)
        self.c = ffi.new("struct sr_data_range[]", [(offset, offset + length) for offset, length in ranges] or [(0, 0)])


def tag_chunks(
    layer: Layer,
    key: bytes,
    chunk_bytes: int,
    spans: Sequence[Span],
    *,
    tags_max: int,
    data: DataRanges | None = None,
    unreadable_differs: bool = False,
    threads: int | None = None,
) -> PackedTags:
    """Return the tags of the chunks of a layer that are not zeros, at most ``tags_max`` of them.

    Args:
        layer: the layer; bytes after its end are zeros.
        key: 32 random bytes, new for each comparison.
        chunk_bytes: a multiple of 4 KiB, at most 1 MiB.
        spans: the chunks, in ascending order.
        tags_max: after so many chunks with data the call ends, and ``upto`` is set.
        data: the ranges of the layer that are not holes; None: the layer is asked for them.
        unreadable_differs: a chunk that cannot be read gets a random tag, so that it differs from every other.
        threads: threads that compute; None: one for each core.

    Raises:
        OSError: a chunk cannot be read.
    """
    check_key(key)
    if not 0 < chunk_bytes <= CHUNK_BYTES_MAX or chunk_bytes % BLOCK_BYTES:
        raise ValueError(f"chunk_bytes is {chunk_bytes}; allowed: multiples of {BLOCK_BYTES} up to {CHUNK_BYTES_MAX}")
    key_c, spans_c = ffi.from_buffer(key), ffi.new("struct sr_chunk_span[]", list(spans))
    request = ffi.new("struct sr_tag_request *")
    request.key = ffi.cast("uint8_t *", key_c)
    request.chunk_bytes = chunk_bytes
    request.spans, request.span_count = spans_c, len(spans)
    if data is not None:
        request.data, request.data_count = data.c, data.count
    request.threads = os.cpu_count() or 1 if threads is None else threads
    request.unreadable_differs = unreadable_differs
    tags, upto = ffi.new("struct sr_chunk_tag[]", tags_max), ffi.new("uint64_t *")
    found = int(lib.sr_layer_tags(layer.c, request, tags, tags_max, upto))
    if found < 0:
        raise raised_by_c(found)
    end = int(upto[0])
    return PackedTags(bytes(ffi.buffer(tags, found * PACKED_BYTES)), None if end == _NO_END else end)
