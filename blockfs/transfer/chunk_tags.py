"""The tags of chunks as they travel from the recovery side to the agent, for a comparison of both sides."""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Sequence

from pydantic import Field

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel
from siterig.cext.packed_tags import PACKED_BYTES, PackedTags, Span

TAGS_MAX = 4096
"""Limit of the tags in one answer; the chunks after them are asked for again."""
SPANS_MAX = 4096
"""Limit of the spans in one call."""


class ChunkTags(WireModel):
    """The tags of the chunks of some spans.

    Attributes:
        tags: packed tags (:mod:`siterig.cext.packed_tags`) in base64.
        upto: the first chunk of the spans that is not covered; None if all are.
    """

    tags: str = Field(max_length=TAGS_MAX * PACKED_BYTES * 2)
    upto: int | None = Field(default=None, ge=0, lt=1 << 64)

    @classmethod
    def of(cls, tags: PackedTags) -> ChunkTags:
        """Return the form that travels."""
        return cls(tags=base64.b64encode(tags.packed).decode(), upto=tags.upto)

    def checked(self, spans: Sequence[Span]) -> PackedTags:
        """Return the tags.

        Raises:
            RigError: ``BadChecksums`` if these are not tags of the chunks of ``spans``.
        """
        try:
            packed = base64.b64decode(self.tags, validate=True)
        except (binascii.Error, ValueError) as exc:
            raise RigError(Code.BadChecksums, f"the tags of chunks are not base64: {exc}") from exc
        if len(packed) % PACKED_BYTES:
            raise RigError(Code.BadChecksums, f"{len(packed)} bytes are no whole number of tags of {PACKED_BYTES} bytes")
        chunks = [int.from_bytes(packed[at : at + 8], "little") for at in range(0, len(packed), PACKED_BYTES)]
        if any(earlier >= later for earlier, later in itertools.pairwise(chunks)):
            raise RigError(Code.BadChecksums, "the tags of chunks are not in ascending order")
        rest = iter(spans)
        span = next(rest, None)
        for chunk in chunks:
            while span is not None and sum(span) <= chunk:
                span = next(rest, None)
            if span is None or chunk < span[0] or (self.upto is not None and chunk >= self.upto):
                raise RigError(Code.BadChecksums, f"the tag of chunk {chunk} was not requested")
        if self.upto is not None and not any(first <= self.upto < first + count for first, count in spans):
            raise RigError(Code.BadChecksums, f"tags up to chunk {self.upto}, which was not requested")
        return PackedTags(packed, self.upto)
