"""Writes the parts of a sync stream: the chunks of an initial replication, a resync or a failback.

Fault contract: a finished part is durable under its final name.  An unfinished part has a ``.tmp`` name; the next stream
deletes it.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from siterig.blockfs.changelog.segment import RecordType, SegmentHeader, SegmentWriter
from siterig.blockfs.changelog.tags import TagSeen, encode_tag
from siterig.blockfs.core import boot
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.transfer.part_name import SYNC_END, PartName


def sync_part_path(folder: Path, generation: int, number: int) -> Path:
    """Return the path at which part ``number`` of a stream is kept until it is applied."""
    return folder / f"{generation:08d}-{number:08d}.sync.hrl"


class SyncStream:
    """The sync stream of one disk, in parts of about ``part_bytes_max`` bytes.

    Attributes:
        position: position of the snapshot that is copied.
        time_ns: time of that snapshot.
        first_seq: first sequence number of the log that is not in the snapshot; the ``sync-end`` tag carries it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        disk_id: str,
        generation: int,
        disk_size_bytes: int,
        position: int,
        time_ns: int,
        first_seq: int,
        part_bytes_max: int = 8 << 20,
        first_part: int = 1,
    ) -> None:
        self.folder = folder
        self.disk_id = disk_id
        self.generation = generation
        self.disk_size_bytes = disk_size_bytes
        self.position = position
        self.time_ns = time_ns
        self.first_seq = first_seq
        self.part_bytes_max = part_bytes_max
        self.next_part = first_part
        self._writer: SegmentWriter | None = None
        self._next_seq = 1

    def add(self, offset: int, data: bytes | None, length: int) -> tuple[PartName, Path] | None:
        """Add a chunk (``data`` None: zeros); return a finished part, with its path, when one is full."""
        writer = self._open()
        kind = RecordType.ZERO if data is None else RecordType.WRITE
        self._append(writer, kind, offset, length, data or b"")
        return self._finish_part(writer) if writer.end >= self.part_bytes_max else None

    def finish(self) -> tuple[PartName, Path]:
        """Write the ``sync-end`` tag and return the last part."""
        writer = self._open()
        tag = TagSeen(
            tag_id=str(uuid.uuid4()), kind="CrashConsistent", name=SYNC_END, position=self.position, time_ns=self.time_ns
        )
        self._append(writer, RecordType.TAG, self.first_seq, 0, encode_tag(tag))
        return self._finish_part(writer)

    def abandon(self) -> None:
        """Delete the unfinished part."""
        if self._writer is not None:
            self._writer.close()
            self._writer.path.unlink()
            self._writer = None

    def _append(self, writer: SegmentWriter, kind: RecordType, offset: int, length: int, payload: bytes) -> None:
        writer.append(
            kind,
            seq=self._next_seq,
            position=self.position,
            time_ns=self.time_ns,
            offset=offset,
            length=length,
            payload=payload,
        )
        self._next_seq += 1

    def _open(self) -> SegmentWriter:
        if self._writer is None:
            path = sync_part_path(self.folder, self.generation, self.next_part).with_suffix(".tmp")
            path.unlink(missing_ok=True)
            self._writer = SegmentWriter.create(
                path,
                SegmentHeader(
                    disk_id=self.disk_id,
                    generation=self.generation,
                    stream="sync",
                    first_seq=self.next_part,
                    boot_id=boot.current_boot_id(),
                    created_ns=self.time_ns,
                    disk_size_bytes=self.disk_size_bytes,
                ),
            )
            self._next_seq = 1
        return self._writer

    def _finish_part(self, writer: SegmentWriter) -> tuple[PartName, Path]:
        writer.sync()
        writer.close()
        self._writer = None
        number = self.next_part
        self.next_part += 1
        path = sync_part_path(self.folder, self.generation, number)
        writer.path.rename(path)
        sync_folder(self.folder)
        return PartName(self.disk_id, self.generation, "sync", number, number), path
