"""A *part*: one object in transfer through the cache account, a closed piece of a disk's history.

A part is a change-log segment (docs/reference/formats/hrl.md), zstd-compressed, stored as one block blob.  A generation of
a disk has two streams: ``sync`` (the chunks of an initial replication or a resync, numbered 1..n, with a ``sync-end`` tag
at the end) and ``log`` (records by sequence number).  Log parts are applied after the sync stream is complete.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from siterig.blockfs.changelog.segment import Stream
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import NUMBER_MAX
from siterig.blockfs.core.wire_model import WireModel

SYNC_END = "sync-end"
GENERATION_MAX = 99_999_999
"""The largest generation that a name can hold."""

_NAME = re.compile(r"([0-9a-f-]{36})/(\d{8})/(sync|log)/(\d{20})-(\d{20})\.hrl\.zst")


@dataclass(frozen=True, order=True, slots=True)
class PartName:
    """Name of a part.  ``first`` and ``last`` are sequence numbers (log), or both are the part's number (sync)."""

    disk_id: str
    generation: int
    stream: Stream
    first: int
    last: int

    def blob(self) -> str:
        """Return the name of the blob; within a stream, names sort in the order of application."""
        return f"{self.disk_id}/{self.generation:08d}/{self.stream}/{self.first:020d}-{self.last:020d}.hrl.zst"

    @classmethod
    def parse(cls, blob: str) -> PartName:
        """Return the part of a blob's name; raise ``BadPartName`` if it is no name of a part."""
        m = _NAME.fullmatch(blob)
        if m is None:
            raise RigError(Code.BadPartName, f"blob {blob!r} is not a replication part: DISK/GENERATION/STREAM/A-B.hrl.zst")
        stream: Stream = "sync" if m[3] == "sync" else "log"
        part = cls(m[1], int(m[2]), stream, int(m[4]), int(m[5]))
        if not 1 <= part.first <= part.last <= NUMBER_MAX or (stream == "sync" and part.first != part.last):
            raise RigError(Code.BadPartName, f"blob {blob!r} is not a replication part: numbers {part.first} to {part.last}")
        return part


@dataclass(frozen=True, slots=True)
class Listing:
    """The blobs of a disk in the cache account.

    Attributes:
        sizes: bytes of each part, in the order of the parts.
        foreign: names of blobs that are no parts of this disk; they are ignored.
        unreadable: names of bundles that cannot be read, and may have parts of this disk.
    """

    sizes: dict[PartName, int]
    foreign: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()

    @classmethod
    def of(cls, disk_id: str, blobs: Iterable[tuple[str, int]]) -> Listing:
        """Make a listing from names of blobs and their sizes in bytes."""
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
        """The parts, in their order."""
        return list(self.sizes)


class Watermark(WireModel):
    """The parts of a disk that the recovery side has *durably applied*.

    Attributes:
        generation: their generation.
        sync_parts: number of applied parts of the sync stream.
        sync_complete: True if the part with the ``sync-end`` tag is applied.
        log_seq: last sequence number that is applied; 0: none.
        complete_position: every record up to this position is applied.
        complete_time_ns: the time of that record.
    """

    disk_id: str
    generation: int
    sync_parts: int
    sync_complete: bool
    log_seq: int
    complete_position: int
    complete_time_ns: int
