"""Packed tags of chunks: 24 bytes for each chunk that is not zeros, in ascending order.

A record is the number of the chunk (little-endian, 8 bytes) and its tag (16 bytes).  Two sides with equal contents have
equal bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

from siterig.cext._core import ffi

PACKED_BYTES: int = ffi.sizeof("struct sr_chunk_tag")

Span = tuple[int, int]
"""(first, count): a run of chunks."""


@dataclass(frozen=True, slots=True)
class PackedTags:
    """The tags of chunks of some spans.

    Attributes:
        packed: the packed tags of all chunks that are not zeros.
        upto: the first chunk of the spans that is not covered; None if all are.
    """

    packed: bytes
    upto: int | None


def unpack(packed: bytes) -> dict[int, bytes]:
    """Return the tags by chunk."""
    return {
        int.from_bytes(packed[at : at + 8], "little"): packed[at + 8 : at + PACKED_BYTES]
        for at in range(0, len(packed), PACKED_BYTES)
    }


def differing(ours: bytes, theirs: bytes) -> list[int]:
    """Return the chunks whose packed tags are not equal, in ascending order."""
    if ours == theirs:
        return []
    return sorted({chunk for chunk, _ in unpack(ours).items() ^ unpack(theirs).items()})


def below(packed: bytes, upto: int | None) -> bytes:
    """Return the packed tags of the chunks below ``upto``."""
    if upto is None:
        return packed
    low, high = 0, len(packed) // PACKED_BYTES
    while low < high:
        middle = (low + high) // 2
        at = middle * PACKED_BYTES
        if int.from_bytes(packed[at : at + 8], "little") < upto:
            low = middle + 1
        else:
            high = middle
    return packed[: low * PACKED_BYTES]
