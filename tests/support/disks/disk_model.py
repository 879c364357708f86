"""The expected bytes of a disk: its start state with its log replayed onto it."""

from __future__ import annotations

from pathlib import Path

from siterig.blockfs.changelog.disk_log import find_segments
from siterig.blockfs.changelog.segment import Record, RecordType, SegmentReader, scan_tail
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.layers.disk_cipher import DiskCipher


def replay(start: bytes, disk: Disk, *, upto: int | None = None) -> bytes:
    """Return ``start`` after all records of the disk's log, or those with positions up to ``upto``."""
    disk.tracking.segments()  # the segment that the writer has just begun gets its name
    paths = [path for _, path in find_segments(disk.paths.folder, disk.paths.name)]
    return replay_files(start, paths, upto=upto, cipher=disk.cipher)


def replay_files(
    start: bytes, paths: list[Path], *, upto: int | None = None, after_seq: int = 0, cipher: DiskCipher | None = None
) -> bytes:
    """Return ``start`` after all records of these segments.

    The last segment may be still in use, with a preallocated end.  ``start`` has the records up to number ``after_seq``.
    """
    data = bytearray(start)
    for path in paths:
        with SegmentReader(path) as reader:
            for record in scan_tail(reader).records if path == paths[-1] else reader.records():
                if (upto is None or record.position <= upto) and record.seq > after_seq:
                    _apply(data, record, reader, cipher)
    return bytes(data)


def _apply(data: bytearray, record: Record, reader: SegmentReader, cipher: DiskCipher | None) -> None:
    match record.type:
        case RecordType.WRITE:
            payload = reader.stored_payload(record)
            payload = payload if cipher is None else cipher.decrypt(payload, record.offset)
            data[record.offset : record.offset + record.length] = payload
        case RecordType.ZERO | RecordType.DISCARD:
            data[record.offset : record.offset + record.length] = bytes(record.length)
        case RecordType.RESIZE:
            data.extend(bytes(record.length - len(data)))
        case _:
            pass
