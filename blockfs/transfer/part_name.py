"""A *part*: one closed piece of a disk's history on its way through the cache storage account.

A part is a change-log segment (docs/reference/formats/hrl.md), zstd-compressed, stored as one block blob.  A disk's
generation has two streams: ``sync`` (the chunks of an initial replication or a resync, numbered 1..n, ended by
a ``sync-end`` tag) and ``log`` (records by sequence number).  Log parts are applied after the sync is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from siterig.blockfs.changelog.segment import Stream
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel

SYNC_END = "sync-end"

_NUMBER_MAX = (1 << 63) - 1
_NAME = re.compile(r"([0-9a-f-]{36})/(\d{8})/(sync|log)/(\d{20})-(\d{20})\.hrl\.zst")


@dataclass(frozen=True, order=True, slots=True)
class PartName:
    """Identity of a part.  ``first``/``last``: sequence numbers (log) or the part's number, twice (sync)."""

    disk_id: str
    generation: int
    stream: Stream
    first: int
    last: int

    def blob(self) -> str:
        """The blob's name; sorts in the order of application within a stream."""
        return f"{self.disk_id}/{self.generation:08d}/{self.stream}/{self.first:020d}-{self.last:020d}.hrl.zst"

    @classmethod
    def parse(cls, blob: str) -> PartName:
        """Read a blob's name; ``RigError('BadPartName')`` if it is none of ours."""
        m = _NAME.fullmatch(blob)
        if m is None:
            raise RigError(Code.BadPartName, f"blob {blob!r} is not a replication part: DISK/GENERATION/STREAM/A-B.hrl.zst")
        stream: Stream = "sync" if m[3] == "sync" else "log"
        part = cls(m[1], int(m[2]), stream, int(m[4]), int(m[5]))
        if not 1 <= part.first <= part.last <= _NUMBER_MAX or (stream == "sync" and part.first != part.last):
            raise RigError(Code.BadPartName, f"blob {blob!r} is not a replication part: numbers {part.first} to {part.last}")
        return part


@dataclass(frozen=True, slots=True)
class Listing:
    """A disk's blobs in the cache account.

    ``sizes``: bytes of each part, in order.  ``foreign``: names of blobs that are no parts of this disk; they stay where
    they are and stop nothing.
    """

    sizes: dict[PartName, int]
    foreign: tuple[str, ...] = ()

    @classmethod
    def of(cls, disk_id: str, blobs: Iterable[tuple[str, int]]) -> Listing:
        """From names and sizes in bytes."""
        sizes, foreign = {}, []
        for name, size_bytes in blobs:
            try:
                part = PartName.parse(name)
            except RigError:
                part = None
            if part is None or part.disk_id != disk_id:
                foreign.append(name)
            else:
                sizes[part] = size_bytes
        return cls(dict(sorted(sizes.items())), tuple(sorted(foreign)))

    @property
    def parts(self) -> list[PartName]:
        """The parts, in order."""
        return list(self.sizes)


class Watermark(WireModel):
    """What the recovery side has *durably applied* of a disk.

    ``sync_parts``: parts of the sync stream; ``sync_complete``: the ``sync-end`` tag was seen.  ``log_seq``: last
    sequence number applied (0: none).  ``complete_position``: every record up to it is applied;
    ``complete_time_ns`` is the time of that record.
    """

    disk_id: str
    generation: int
    sync_parts: int
    sync_complete: bool
    log_seq: int
    complete_position: int
    complete_time_ns: int
