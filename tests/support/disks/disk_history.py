"""A site's disk for tests: a bytearray, the parts from its log, and its earlier states."""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from siterig.blockfs.changelog.segment import RecordType, SegmentHeader, SegmentWriter
from siterig.blockfs.changelog.tags import TagSeen, encode_tag
from siterig.blockfs.contracts.control import TagKind
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.transfer.codec import pack
from siterig.blockfs.transfer.part_name import PartName
from siterig.blockfs.transfer.sync_stream import SyncStream

DISK_ID = "6f1c2f5e-8a51-4d10-9a7e-0d6f5f3c2b1a"
SIZE_BYTES = 256 * 1024
CHUNK_BYTES = 16 * 1024

Packed = tuple[PartName, bytes]


@dataclass
class SiteDisk:
    """A disk whose changes are made to ``data`` and logged; ``close_log`` and ``sync`` return packed parts.

    ``states`` has the disk's bytes by position.
    """

    folder: Path
    rng: random.Random
    disk_id: str = DISK_ID
    data: bytearray = field(default_factory=lambda: bytearray(SIZE_BYTES))
    position: int = 1000
    generation: int = 1
    seq: int = 0
    states: dict[int, bytes] = field(default_factory=dict)
    _notes: list[tuple[RecordType, int, int, bytes, int]] = field(default_factory=list)

    def note(self, kind: RecordType, offset: int = 0, length: int = 0, payload: bytes = b"") -> int:
        """Log one record and return its position; positions have gaps, as if other disks used the same counter."""
        self.position += self.rng.randrange(1, 4)
        self._notes.append((kind, offset, length, payload, self.position))
        return self.position

    @property
    def has_notes(self) -> bool:
        """True if a record was logged after the last log part."""
        return bool(self._notes)

    def write(self, offset: int, payload: bytes) -> None:
        """Write bytes, and log the write."""
        self.data[offset : offset + len(payload)] = payload
        self.states[self.note(RecordType.WRITE, offset, len(payload), payload)] = bytes(self.data)

    def zero(self, offset: int, length: int, kind: RecordType = RecordType.ZERO) -> None:
        """Zero a range, and log this."""
        self.data[offset : offset + length] = bytes(length)
        self.states[self.note(kind, offset, length)] = bytes(self.data)

    def resize(self, size_bytes: int) -> None:
        """Grow the disk, and log this."""
        self.data.extend(bytes(size_bytes - len(self.data)))
        self.states[self.note(RecordType.RESIZE, 0, size_bytes)] = bytes(self.data)

    def scribble(self, count: int) -> None:
        """Make random overlapping writes, zeros, discards and flushes."""
        for _ in range(count):
            offset = self.rng.randrange(0, len(self.data) - 1)
            length = self.rng.randrange(1, min(12_000, len(self.data) - offset) + 1)
            match self.rng.randrange(10):
                case 0:
                    self.zero(offset, length)
                case 1:
                    self.zero(offset, length, RecordType.DISCARD)
                case 2:
                    self.note(RecordType.FLUSH)
                case _:
                    self.write(offset, self.rng.randbytes(length))

    def tag(self, name: str, kind: TagKind = "CrashConsistent", tag_id: str | None = None) -> TagSeen:
        """Tag the present state; other disks may have a tag with the same ``tag_id``."""
        tag_id = tag_id or str(uuid.UUID(int=self.rng.getrandbits(128)))
        tag = TagSeen(tag_id=tag_id, kind=kind, name=name, position=0, time_ns=0)
        tag = tag.model_copy(update={"position": self.position + 1, "time_ns": (self.position + 1) * 10})
        self.put_tag(tag)
        return tag

    def put_tag(self, tag: TagSeen) -> None:
        """Log a tag; its position is after all logged records."""
        self.position = tag.position
        self._notes.append((RecordType.TAG, 0, 0, encode_tag(tag), self.position))
        self.states[self.position] = bytes(self.data)

    def close_log(self) -> Packed:
        """Return a log part with all records since the last one."""
        first = self.seq + 1
        header = SegmentHeader(self.disk_id, self.generation, "log", first, current_boot_id(), 1, len(self.data))
        path = self.folder / "log.hrl"
        path.unlink(missing_ok=True)
        writer = SegmentWriter.create(path, header)
        for kind, offset, length, payload, position in self._notes:
            self.seq += 1
            writer.append(
                kind, seq=self.seq, position=position, time_ns=position * 10, offset=offset, length=length, payload=payload
            )
        writer.close()
        self._notes.clear()
        return PartName(self.disk_id, self.generation, "log", first, self.seq), pack(path)

    def sync(
        self, against: bytes | None = None, *, start: int = 0, first_part: int = 1, first_seq: int | None = None
    ) -> list[Packed]:
        """Return sync parts of the present state: all chunks that differ from ``against`` (None: from zeros).

        The snapshot includes all earlier records, so that their log part is not needed.  ``start``, ``first_part`` and
        ``first_seq`` are for an interrupted copy that continues with this snapshot.
        """
        if self._notes and first_seq is None:
            self.close_log()
        old = against if against is not None else bytes(len(self.data))
        old = old.ljust(len(self.data), b"\0")
        self.position += 1
        self.states[self.position] = bytes(self.data)
        folder = self.folder / "sync"
        folder.mkdir(exist_ok=True)
        stream = SyncStream(
            folder,
            disk_id=self.disk_id,
            generation=self.generation,
            disk_size_bytes=len(self.data),
            position=self.position,
            time_ns=self.position * 10,
            first_seq=self.seq + 1 if first_seq is None else first_seq,
            part_bytes_max=48 * 1024,
            first_part=first_part,
        )
        done = []
        for at in range(start, len(self.data), CHUNK_BYTES):
            chunk = bytes(self.data[at : at + CHUNK_BYTES])
            if chunk != old[at : at + CHUNK_BYTES]:
                done.append(stream.add(at, chunk if any(chunk) else None, len(chunk)))
        done.append(stream.finish())
        return [(part, pack(path)) for part, path in filter(None, done)]

    def new_generation(self) -> None:
        """Abandon the log: its records are lost, and a new generation has its own sequence numbers."""
        self.generation += 1
        self.seq = self.rng.randrange(0, 5)
        self._notes.clear()
