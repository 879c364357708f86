"""The file format of the change log: segments (``.hrl``) of records.  Layout: docs/reference/formats/hrl.md.

Fault contract
--------------
May break: the last record of the segment that was being written (a kill or a full disk tears it), and any byte, by bit rot.
Stays recoverable: every record before the first torn one.  The checksum of a record is seeded with the checksum of its
segment's header, so a record of another segment is never accepted.  A corrupt byte raises ``RigError('LogCorrupt')`` with
file, offset and reason.  A torn tail is distinguished from corruption by a search for a later record (:func:`scan_tail`).  A
record with a good checksum is never torn: if it is invalid or out of sequence, it is corrupt.

Files are read, not mapped: the last segment of a log in use is truncated when it is closed, and a reader must see its end,
not a SIGBUS.
"""

from __future__ import annotations

import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Literal

from typing_extensions import Buffer

from siterig.blockfs.changelog.tags import decode_tag
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import NUMBER_MAX
from siterig.blockfs.files import host_calls, safe_files
from siterig.blockfs.files.os_errors import naming, reason
from siterig.blockfs.files.user_files import open_file
from siterig.blockfs.layers.disk_cipher import LINE_BYTES
from siterig.cext.checksums import crc32c

FORMAT_VERSION = 1
ENCRYPTED_VERSION = 2
"""Format of the log of an encrypted disk."""
HEADER_BYTES = 128
RECORD_HEADER_BYTES = 64
PAYLOAD_BYTES_MAX = 64 << 20
FLAG_CLEAN_CLOSE = 1
"""On a FLUSH record: the disk was closed cleanly; log and disk are durable."""

_MAGIC = b"SRIGHRL\0"
_RECORD_MAGIC = 0x52435253
_RECORD_MAGIC_BYTES = _RECORD_MAGIC.to_bytes(4, "little")
_HEADER = struct.Struct("<8sHHB3x16sQQ16sQQ16s28x")  # then CRC32C
_RECORD = struct.Struct("<IBBHQQQQQIQ")  # then CRC32C
_CRC = struct.Struct("<I")
_CLAIM = struct.Struct("<I44xI")
"""The part of a record's header with the magic number and the payload's length."""
"""Limit of sequence numbers, positions, generations and disk offsets: a signed 64-bit number."""
_WINDOW_BYTES = 4 << 20
_SEARCHED_TIMES_MAX = 16
"""Limit of the search for a later record, in lengths of the segment: a guest's bytes can look like many records."""
Stream = Literal["sync", "log"]
"""The contents of a segment: chunks of a copy, or records of a log."""
_STREAMS: dict[int, Stream] = {0: "log", 1: "sync"}


class RecordType(IntEnum):
    """The type of a record.  In a RESIZE, ``length`` is the disk's new size in bytes."""

    WRITE = 1
    ZERO = 2
    DISCARD = 3
    FLUSH = 4
    TAG = 5
    RESIZE = 6


CHANGES = (RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD)
"""The types of records that change bytes of a disk."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record; ``offset`` and ``length`` are bytes on the disk, ``payload_offset`` is in the segment's file."""

    type: RecordType
    flags: int
    seq: int
    position: int
    time_ns: int
    offset: int
    length: int
    payload_offset: int
    payload_bytes: int

    @property
    def end(self) -> int:
        """File offset after the record."""
        return self.payload_offset + self.payload_bytes


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """Header of a segment.

    ``first_seq`` is the sequence number of the first record (stream ``log``), or the number of the part (stream ``sync``,
    whose records are numbered from 1 in each part).  ``boot_id`` is the kernel's boot id at the start of the segment.
    ``key_id`` is the id of the key that encrypts the payloads of WRITE records; None if they are not encrypted.
    """

    disk_id: str
    generation: int
    stream: Stream
    first_seq: int
    boot_id: str
    created_ns: int
    disk_size_bytes: int
    key_id: str | None = None

    @property
    def first_record_seq(self) -> int:
        """Expected sequence number of the first record."""
        return self.first_seq if self.stream == "log" else 1


def encode_header(header: SegmentHeader) -> bytes:
    """Return the bytes of the header, with its checksum."""
    raw = _HEADER.pack(
        _MAGIC,
        FORMAT_VERSION if header.key_id is None else ENCRYPTED_VERSION,
        HEADER_BYTES,
        1 if header.stream == "sync" else 0,
        uuid.UUID(header.disk_id).bytes,
        header.generation,
        header.first_seq,
        uuid.UUID(header.boot_id).bytes,
        header.created_ns,
        header.disk_size_bytes,
        bytes(16) if header.key_id is None else uuid.UUID(header.key_id).bytes,
    )
    return raw + _CRC.pack(crc32c(raw))


def record_seed(raw: bytes) -> int:
    """Return the checksum of an encoded header, with which the checksum of each of its records begins."""
    return int(_CRC.unpack_from(raw, HEADER_BYTES - 4)[0])


def encode_record(
    seed: int,
    kind: RecordType,
    *,
    seq: int,
    position: int,
    time_ns: int,
    offset: int,
    length: int,
    payload: bytes | memoryview,
    flags: int = 0,
) -> bytes:
    """Return the header of a record with its checksum; the payload follows it in the segment.

    Args:
        seed: :func:`record_seed` of the segment's header.
        kind: the type of the record.
        seq: its sequence number.
        position: its position.
        time_ns: its time, by the wall clock.
        offset: the first byte of its range on the disk.
        length: the bytes of that range.
        payload: the bytes that are written, or none.
        flags: ``FLAG_CLEAN_CLOSE`` or 0.
    """
    head = _RECORD.pack(
        _RECORD_MAGIC, kind, flags, RECORD_HEADER_BYTES, seq, position, time_ns, offset, length, len(payload), 0
    )
    return head + _CRC.pack(crc32c(payload, crc32c(head, seed)))


def decode_header(path: Path | str, raw: bytes, *, of_disk: bool = False) -> SegmentHeader:
    """Return the header in the first bytes of a segment.

    Args:
        path: name of the segment in errors.
        raw: the first bytes.
        of_disk: it is the log of a disk, which may be encrypted; False for a part.
    Raises:
        RigError: ``LogCorrupt``, ``LogVersion``.
    """
    if len(raw) < HEADER_BYTES:
        raise corrupt(path, 0, f"header has {len(raw)} bytes; it must have {HEADER_BYTES}")
    magic, version, header_bytes, stream, disk, generation, first_seq, boot, created, size, key = _HEADER.unpack_from(raw)
    if magic != _MAGIC:
        raise corrupt(path, 0, f"magic is {magic!r}; a change log begins with {_MAGIC!r}")
    if version not in (FORMAT_VERSION, ENCRYPTED_VERSION):
        known = f"{FORMAT_VERSION} and {ENCRYPTED_VERSION}"
        raise RigError(Code.LogVersion, f"{path}: change log format {version}; this siterig reads {known}")
    if version == ENCRYPTED_VERSION and not of_disk:
        raise RigError(
            Code.LogVersion, f"{path}: change log format {version} is of a disk's log; a part has {FORMAT_VERSION}"
        )
    if crc32c(raw[: HEADER_BYTES - 4]) != _CRC.unpack_from(raw, HEADER_BYTES - 4)[0]:
        raise corrupt(path, 0, "header checksum does not match")
    if header_bytes != HEADER_BYTES or stream not in _STREAMS or any(raw[13:16]) or any(raw[96:124]):
        raise corrupt(path, 0, f"header names {header_bytes} bytes and stream {stream}, or is not zero where it must be")
    if any(key) != (version == ENCRYPTED_VERSION) or (any(key) and stream):
        raise corrupt(path, 0, f"header of format {version} and stream {stream} names key {uuid.UUID(bytes=key)}")
    if not 1 <= first_seq <= NUMBER_MAX or max(generation, size) > NUMBER_MAX:
        raise corrupt(path, 0, f"header names generation {generation}, first record {first_seq} and {size} bytes")
    return SegmentHeader(
        disk_id=str(uuid.UUID(bytes=disk)),
        generation=generation,
        stream=_STREAMS[stream],
        first_seq=first_seq,
        boot_id=str(uuid.UUID(bytes=boot)),
        created_ns=created,
        disk_size_bytes=size,
        key_id=str(uuid.UUID(bytes=key)) if any(key) else None,
    )


def corrupt(path: Path | str, offset: int, why: str) -> RigError:
    """Return ``LogCorrupt`` with the byte offset."""
    return RigError(Code.LogCorrupt, f"{path}: change log is corrupt at byte {offset}: {why}")


class _BadRecordError(Exception):
    """A torn or corrupt record; the text is the reason.  ``sealed`` means that its checksum is right all the same."""

    def __init__(self, why: str, *, sealed: bool = False) -> None:
        super().__init__(why)
        self.sealed = sealed


class _Window:
    """Access to a file piece by piece: ``view`` is the piece in memory, which begins at byte ``start`` of the file."""

    def __init__(self, fd: int) -> None:
        self.size = os.fstat(fd).st_size
        self.start = 0
        self._data = b""
        self.view = memoryview(self._data)
        self._fd = fd

    def index_of(self, at: int, length: int) -> int:
        """Return the index of file byte ``at`` in ``view``.

        The view then has ``length`` bytes from there, or up to the file's end.
        """
        index = at - self.start
        if index < 0 or index + length > len(self._data):
            self._data = host_calls.pread(self._fd, min(max(length, _WINDOW_BYTES), max(self.size - at, 0)), at)
            self.view = memoryview(self._data)
            self.start = at
            return 0
        return index

    def find(self, magic: bytes, at: int) -> int:
        """Return the offset of the next ``wanted`` from ``at``; -1 if there is none."""
        while True:
            index = self.index_of(at, len(magic))
            if len(self._data) - index < len(magic):
                return -1
            found = self._data.find(magic, index)
            if found >= 0:
                return self.start + found
            at = self.start + len(self._data) - len(magic) + 1


class _Memory:
    """Access to a segment that is in memory, with the interface of :class:`_Window`."""

    def __init__(self, data: Buffer) -> None:
        self.view = memoryview(data).cast("B")
        self.size = len(self.view)

    def index_of(self, at: int, _length: int) -> int:
        return at


def _parse_record(window: _Window | _Memory, at: int, seed: int, *, verify: bool) -> Record:
    index = window.index_of(at, RECORD_HEADER_BYTES)
    head = window.view[index : index + RECORD_HEADER_BYTES]
    if len(head) < RECORD_HEADER_BYTES:
        raise _BadRecordError(f"{len(head)} bytes left; a record header has {RECORD_HEADER_BYTES}")
    magic, kind, flags, header_bytes, seq, position, time_ns, offset, length, payload, reserved = _RECORD.unpack_from(head)
    if magic != _RECORD_MAGIC:
        raise _BadRecordError("no record begins here")
    body = at + RECORD_HEADER_BYTES
    if payload > PAYLOAD_BYTES_MAX:
        raise _BadRecordError(f"payload of {payload} bytes; at most {PAYLOAD_BYTES_MAX}")
    if body + payload > window.size:
        raise _BadRecordError(f"payload of {payload} bytes runs past the end of the file")
    if verify:
        index = window.index_of(body, payload)
        carried = window.view[index : index + payload]
        if crc32c(carried, crc32c(head[:-4], seed)) != _CRC.unpack_from(head, RECORD_HEADER_BYTES - 4)[0]:
            raise _BadRecordError("record checksum does not match")
    if header_bytes != RECORD_HEADER_BYTES or reserved:
        raise _BadRecordError(f"record header of {header_bytes} bytes, or not zero where it must be", sealed=verify)
    if max(seq, position, time_ns, offset + length) > NUMBER_MAX:
        raise _BadRecordError(
            f"record {seq}, position {position}, time {time_ns}, range {offset}+{length}: beyond any disk", sealed=verify
        )
    rtype = _checked_type(kind, flags, length, payload, sealed=verify)
    if verify and rtype is RecordType.TAG:
        try:
            decode_tag(bytes(carried))
        except RigError as exc:
            raise _BadRecordError(exc.message, sealed=True) from exc
    return Record(rtype, flags, seq, position, time_ns, offset, length, body, payload)


def _checked_type(kind: int, flags: int, length: int, payload: int, *, sealed: bool) -> RecordType:
    try:
        rtype = RecordType(kind)
    except ValueError:
        raise _BadRecordError(f"record type {kind} is unknown", sealed=sealed) from None
    if flags and (rtype, flags) != (RecordType.FLUSH, FLAG_CLEAN_CLOSE):
        raise _BadRecordError(f"{rtype.name} has flags {flags:#x}", sealed=sealed)
    if rtype is RecordType.WRITE and payload != length:
        raise _BadRecordError(f"WRITE of {length} bytes carries {payload}", sealed=sealed)
    if rtype not in (RecordType.WRITE, RecordType.TAG) and payload:
        raise _BadRecordError(f"{rtype.name} carries {payload} bytes of payload; it has none", sealed=sealed)
    return rtype


def _next_record(window: _Window | _Memory, at: int, seed: int, seq: int, position: int, *, verify: bool) -> Record:
    """Return the record with number ``seq`` and a position of at least ``position``."""
    record = _parse_record(window, at, seed, verify=verify)
    if record.seq != seq:
        raise _BadRecordError(f"sequence number {record.seq}; {seq} comes next", sealed=verify)
    if record.position < position:
        raise _BadRecordError(f"position {record.position} after {position}", sealed=verify)
    return record


def claimed_payload_bytes(segment: memoryview, at: int) -> int | None:
    """Return the unverified payload length in the record header at byte ``at``; None if no record begins there."""
    magic, payload = _CLAIM.unpack_from(segment, at)
    return payload if magic == _RECORD_MAGIC and payload <= PAYLOAD_BYTES_MAX else None


def bad_record(name: str, segment: Buffer, at: int, seq: int, position: int) -> RigError:
    """Return the error for the bad record at byte ``at`` of a segment in memory; the C core only reports its place."""
    memory = _Memory(segment)
    try:
        _next_record(memory, at, _CRC.unpack_from(memory.view, HEADER_BYTES - 4)[0], seq, position, verify=True)
    except _BadRecordError as bad:
        return corrupt(name, at, str(bad))
    raise AssertionError(f"{name}: the record at byte {at} is sound")


class SegmentReader:
    """Reads one segment strictly: any torn or corrupt record is ``RigError('LogCorrupt')``.

    The records of an encrypted segment can be read, and checked, without its key; their payloads cannot.  It is a context
    manager.  ``fd`` stays open until :meth:`close`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = open_file(path, os.O_RDONLY, code=Code.LogUnreadable, purpose="a change log is a file")
        try:
            head = host_calls.pread(self.fd, HEADER_BYTES, 0)
            self.header = decode_header(path, head, of_disk=True)
        except OSError as exc:
            os.close(self.fd)
            raise RigError(Code.LogUnreadable, f"{path}: cannot be read: {reason(exc, path)}") from exc
        except BaseException:
            os.close(self.fd)
            raise
        self._seed: int = _CRC.unpack_from(head, HEADER_BYTES - 4)[0]

    def __enter__(self) -> SegmentReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)

    def records(self, *, verify: bool = True) -> Iterator[Record]:
        """Yield all records in order; ``verify=False`` trusts checksums and still checks the headers.

        Raises:
            RigError: ``LogCorrupt`` at the first record that is torn, corrupt, or out of sequence.
        """
        for at, item in _walk(self, verify=verify):
            if isinstance(item, _BadRecordError):
                raise corrupt(self.path, at, str(item))
            yield item

    def payload(self, record: Record) -> bytes:
        """Return the payload of a WRITE or TAG record.

        Raises:
            RigError: ``KeyMissing`` if it is encrypted; ``LogCorrupt``.
        """
        if self.header.key_id is not None and record.type is RecordType.WRITE:
            raise RigError(
                Code.KeyMissing,
                f"{self.path}: the bytes of its records are encrypted with key {self.header.key_id}; read the log in the "
                "folder of its VM in the rig's mount, which decrypts it",
            )
        return self.stored_payload(record)

    def stored_payload(self, record: Record) -> bytes:
        """Return the payload of a record as the segment has it: encrypted, if the segment is."""
        data = host_calls.pread(self.fd, record.payload_bytes, record.payload_offset)
        if len(data) != record.payload_bytes:
            raise corrupt(self.path, record.payload_offset, "payload is cut short")
        return data


_CHANGES = frozenset({RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD})


def _check_lines(record: Record, *, verify: bool) -> None:
    """Check that a record of an encrypted log begins and ends between lines."""
    if record.type in _CHANGES and (record.offset | record.length) % LINE_BYTES:
        why = f"{record.type.name} of {record.length} bytes at {record.offset} of an encrypted disk covers a part of a line"
        raise _BadRecordError(why, sealed=verify)


def _walk(reader: SegmentReader, *, verify: bool) -> Iterator[tuple[int, Record | _BadRecordError]]:
    """Yield the records, then the fault at which the file stops being good, if any."""
    window = _Window(reader.fd)
    at, seq, position = HEADER_BYTES, reader.header.first_record_seq, 0
    while at < window.size:
        try:
            record = _next_record(window, at, reader._seed, seq, position, verify=verify)
            if reader.header.key_id is not None:
                _check_lines(record, verify=verify)
        except _BadRecordError as bad:
            yield at, bad
            return
        yield at, record
        at, seq, position = record.end, seq + 1, record.position


@dataclass(frozen=True, slots=True)
class TailScan:
    """The good records of a segment that a kill may have torn, and their end."""

    records: list[Record]
    end: int
    torn_bytes: int


def scan_tail(reader: SegmentReader) -> TailScan:
    """Read a segment up to its torn tail.

    Raises:
        RigError: ``LogCorrupt`` if a good record follows a bad one: that is corruption, not a torn tail.
    """
    records: list[Record] = []
    size = os.fstat(reader.fd).st_size
    end = HEADER_BYTES
    for at, item in _walk(reader, verify=True):
        if isinstance(item, _BadRecordError):
            if item.sealed:
                raise corrupt(reader.path, at, str(item))
            if _later_record(reader, at, reader.header.first_record_seq + len(records)):
                raise corrupt(reader.path, at, f"{item}, but good records follow")
            break
        records.append(item)
        end = item.end
    return TailScan(records, end, size - end)


def _later_record(reader: SegmentReader, bad_at: int, seq: int) -> bool:
    """Return True if a record with a higher number than the missing ``seq`` follows ``bad_at``.

    A record with an earlier number proves nothing: the log can be read through the mount, so a guest may have written a copy
    of it to this disk, and the copy is part of the torn payload.
    """
    window = _Window(reader.fd)
    searched = 0
    at = bad_at
    while (at := window.find(_RECORD_MAGIC_BYTES, at + 1)) >= 0:
        index = window.index_of(at, RECORD_HEADER_BYTES)
        if len(window.view) - index < RECORD_HEADER_BYTES:
            return False
        fields = _RECORD.unpack_from(window.view, index)
        record_bytes = RECORD_HEADER_BYTES + fields[9]
        if at + record_bytes > window.size or not seq < fields[4] <= seq + (at - bad_at) // RECORD_HEADER_BYTES + 1:
            continue
        searched += record_bytes
        if searched > _SEARCHED_TIMES_MAX * window.size:
            raise corrupt(reader.path, bad_at, "too many bytes after it look like records to find out if one is good")
        try:
            _parse_record(window, at, reader._seed, verify=True)
        except _BadRecordError as bad:
            if bad.sealed:
                return True
        else:
            return True
    return False


class SegmentWriter:
    """Appends records to a new segment; for one thread at a time."""

    def __init__(self, path: Path, fd: int, seed: int, header: SegmentHeader) -> None:
        self.path = path
        self.fd = fd
        self.header = header
        self.end = HEADER_BYTES
        self._seed = seed

    @classmethod
    def create(cls, path: Path, header: SegmentHeader) -> SegmentWriter:
        """Create the file, which must not exist, and write its header."""
        raw = encode_header(header)
        fd = safe_files.create_file(path)
        try:
            with naming(path):
                host_calls.pwrite(fd, raw, 0)
        except BaseException:
            os.close(fd)
            path.unlink()
            raise
        return cls(path, fd, record_seed(raw), header)

    def append(
        self,
        kind: RecordType,
        *,
        seq: int,
        position: int,
        time_ns: int,
        offset: int = 0,
        length: int = 0,
        payload: bytes | memoryview = b"",
        flags: int = 0,
    ) -> int:
        """Append one record and return the file offset of its payload.

        Raises:
            OSError: the disk is full, for example; the segment is truncated to its previous length, so a log never has a
                partial record in its middle.
        """
        size = len(payload)
        head = encode_record(
            self._seed,
            kind,
            seq=seq,
            position=position,
            time_ns=time_ns,
            offset=offset,
            length=length,
            payload=payload,
            flags=flags,
        )
        at = self.end
        try:
            with naming(self.path):
                done = host_calls.pwritev(self.fd, [head, payload], at)
                if done < RECORD_HEADER_BYTES + size:  # rare: a short write, usually followed by the error
                    rest = memoryview(b"".join((head, payload)))
                    while done < len(rest):
                        done += host_calls.pwrite(self.fd, rest[done:], at + done)
        except OSError:
            self.truncate(at)
            raise
        self.end = at + done
        return at + RECORD_HEADER_BYTES

    def truncate(self, end: int) -> None:
        """Remove everything from file offset ``end``."""
        with naming(self.path):
            os.ftruncate(self.fd, end)
        self.end = end

    def sync(self) -> None:
        """Make all records durable."""
        with naming(self.path):
            host_calls.fdatasync(self.fd)

    def close(self) -> None:
        """Close the file (no sync)."""
        os.close(self.fd)
