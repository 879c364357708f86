"""What a disk must be: the start state with its log replayed onto it."""

from __future__ import annotations

from pathlib import Path

from blockfs.changelog import RecordType, SegmentReader
from blockfs.disk import Disk
from blockfs.disk_log import find_segments


def replay(start: bytes, disk: Disk, *, upto: int | None = None) -> bytes:
    """``start`` after all records of the disk's log (with a position up to ``upto``)."""
    return replay_files(start, [path for _, path in find_segments(disk.place.folder, disk.place.name)], upto=upto)


def replay_files(start: bytes, paths: list[Path], *, upto: int | None = None) -> bytes:
    """The same over given segments."""
    data = bytearray(start)
    for path in paths:
        with SegmentReader(path) as reader:
            for record in reader.records():
                if upto is not None and record.position > upto:
                    continue
                if record.type is RecordType.WRITE:
                    data[record.offset : record.offset + record.length] = reader.payload(record)
    return bytes(data)
