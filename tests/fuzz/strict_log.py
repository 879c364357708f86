"""A second reader of change logs, written from docs/reference/formats/hrl.md alone: slow, simple, whole file in memory.

It shares no code with :mod:`siterig.blockfs.changelog.segment`, so that each of them shows errors of the other.  It also
writes: valid segments that the fuzzers damage, and right checksums for damaged ones (:func:`reseal`).
"""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import dataclass

HEADER_BYTES = 128
RECORD_BYTES = 64
PAYLOAD_BYTES_MAX = 64 << 20
MAGIC = b"SRIGHRL\0"
RECORD_MAGIC = 0x52435253
WRITE, ZERO, DISCARD, FLUSH, TAG, RESIZE = range(1, 7)
CHANGES = (WRITE, ZERO, DISCARD)
CLOSED = 1

HEADER_FIELDS = {
    "magic": (0, "8s"),
    "version": (8, "H"),
    "header_bytes": (10, "H"),
    "stream": (12, "B"),
    "zero_a": (13, "B"),
    "disk_id": (16, "16s"),
    "generation": (32, "Q"),
    "first_seq": (40, "Q"),
    "boot_id": (48, "16s"),
    "created_ns": (64, "Q"),
    "disk_size_bytes": (72, "Q"),
    "key_id": (80, "16s"),
    "zero_b": (96, "I"),
    "zero_c": (120, "I"),
    "crc": (124, "I"),
}
RECORD_FIELDS = {
    "magic": (0, "I"),
    "type": (4, "B"),
    "flags": (5, "B"),
    "header_bytes": (6, "H"),
    "seq": (8, "Q"),
    "position": (16, "Q"),
    "time_ns": (24, "Q"),
    "offset": (32, "Q"),
    "length": (40, "Q"),
    "payload_bytes": (48, "I"),
    "zero_a": (52, "I"),
    "zero_b": (56, "I"),
    "crc": (60, "I"),
}


def _table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    return table


_TABLE = _table()


def crc32c(data: bytes, crc: int = 0) -> int:
    """Return the CRC32C of RFC 3720, appendix B.4."""
    crc ^= 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class BadLogError(Exception):
    """A bad log.

    ``code`` is the error code that siterig must report, ``at`` the byte of the error, or None if there is no such byte.
    """

    def __init__(self, code: str, why: str, at: int | None = None) -> None:
        super().__init__(why)
        self.code = code
        self.at = at


@dataclass(frozen=True)
class Header:
    stream: int
    disk_id: str
    generation: int
    first_seq: int
    boot_id: str
    created_ns: int
    disk_size_bytes: int
    crc: int
    key_id: bytes
    """Zeros, unless the payloads are encrypted."""

    @property
    def first_record_seq(self) -> int:
        return 1 if self.stream else self.first_seq


@dataclass(frozen=True)
class Record:
    type: int
    flags: int
    seq: int
    position: int
    time_ns: int
    offset: int
    length: int
    payload: bytes
    end: int


def field(raw: bytes | bytearray, fields: dict[str, tuple[int, str]], name: str, base: int = 0) -> int:
    at, form = fields[name]
    value: int = struct.unpack_from("<" + form, raw, base + at)[0]
    return value


def read_header(raw: bytes, *, of_disk: bool = True) -> Header:
    """Return the header of the log of a disk, or of a part, which is never encrypted."""
    if len(raw) < HEADER_BYTES:
        raise BadLogError("LogCorrupt", "no whole header", 0)
    if raw[:8] != MAGIC:
        raise BadLogError("LogCorrupt", "magic", 0)
    version = field(raw, HEADER_FIELDS, "version")
    if version not in ((1, 2) if of_disk else (1,)):
        raise BadLogError("LogVersion", "version")
    crc = field(raw, HEADER_FIELDS, "crc")
    header = Header(
        field(raw, HEADER_FIELDS, "stream"),
        str(uuid.UUID(bytes=raw[16:32])),
        field(raw, HEADER_FIELDS, "generation"),
        field(raw, HEADER_FIELDS, "first_seq"),
        str(uuid.UUID(bytes=raw[48:64])),
        field(raw, HEADER_FIELDS, "created_ns"),
        field(raw, HEADER_FIELDS, "disk_size_bytes"),
        crc,
        raw[80:96],
    )
    good = (
        crc32c(raw[:124]) == crc
        and field(raw, HEADER_FIELDS, "header_bytes") == HEADER_BYTES
        and header.stream in (0, 1)
        and not any(raw[13:16])
        and not any(raw[96:124])
        and any(header.key_id) == (version == 2)
        and not (version == 2 and header.stream)
        and header.generation < 1 << 63
        and 1 <= header.first_seq < 1 << 63
        and header.disk_size_bytes < 1 << 63
    )
    if not good:
        raise BadLogError("LogCorrupt", "header", 0)
    return header


def is_tag(payload: bytes) -> bool:
    try:
        tag = json.loads(payload.decode(), parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return False
    if not isinstance(tag, dict) or tag.keys() != {"tag_id", "kind", "name", "position", "time_ns"}:
        return False
    try:
        "".join(str(tag[name]) for name in ("tag_id", "kind", "name")).encode()
    except UnicodeEncodeError:  # one half of a surrogate pair
        return False
    return (
        tag["kind"] in ("CrashConsistent", "ApplicationConsistent")
        and all(type(tag[name]) is str for name in ("tag_id", "name"))
        and all(type(tag[name]) is int and 0 <= tag[name] < 1 << 63 for name in ("position", "time_ns"))
    )


def _makes_sense(kind: int, flags: int, length: int, payload: bytes) -> bool:
    if flags and (kind, flags) != (FLUSH, CLOSED):
        return False
    if kind == WRITE:
        return len(payload) == length
    if kind == TAG:
        return is_tag(payload)
    return kind in (ZERO, DISCARD, FLUSH, RESIZE) and not payload


def sealed_record(raw: bytes, at: int, seed: int) -> dict[str, int] | None:
    """Return the fields of the record at a byte, or None if there is no record with a right checksum."""
    if at + RECORD_BYTES > len(raw):
        return None
    values = {name: field(raw, RECORD_FIELDS, name, at) for name in RECORD_FIELDS}
    end = at + RECORD_BYTES + values["payload_bytes"]
    if values["magic"] != RECORD_MAGIC or values["payload_bytes"] > PAYLOAD_BYTES_MAX or end > len(raw):
        return None
    crc = crc32c(raw[at + RECORD_BYTES : end], crc32c(raw[at : at + 60], seed))
    return values if crc == values["crc"] else None


def read_record(raw: bytes, at: int, seed: int, *, is_encrypted: bool = False) -> Record | None:
    """Return the good record at a byte, or None if there is none; those of an encrypted log are whole lines."""
    values = sealed_record(raw, at, seed)
    if values is None:
        return None
    body, end = at + RECORD_BYTES, at + RECORD_BYTES + values["payload_bytes"]
    payload = raw[body:end]
    good = (
        values["header_bytes"] == RECORD_BYTES
        and values["zero_a"] == values["zero_b"] == 0
        and values["seq"] < 1 << 63
        and values["position"] < 1 << 63
        and values["time_ns"] < 1 << 63
        and values["offset"] + values["length"] < 1 << 63
        and _makes_sense(values["type"], values["flags"], values["length"], payload)
        and not (is_encrypted and values["type"] in CHANGES and (values["offset"] % 16 or values["length"] % 16))
    )
    if not good:
        return None
    return Record(
        values["type"],
        values["flags"],
        values["seq"],
        values["position"],
        values["time_ns"],
        values["offset"],
        values["length"],
        payload,
        end,
    )


@dataclass(frozen=True)
class Segment:
    """A segment.

    ``end`` is the end of the good records.  ``corrupt`` is True if the bytes after it are more than a torn record.
    """

    header: Header
    records: list[Record]
    end: int
    bytes: int
    corrupt: bool
    torn: bool
    """True if there is more than preallocated zeros after the good records."""

    @property
    def torn_bytes(self) -> int:
        return self.bytes - self.end


def read_segment(raw: bytes, *, of_disk: bool = True) -> Segment:
    header = read_header(raw, of_disk=of_disk)
    is_encrypted = any(header.key_id)
    records: list[Record] = []
    at, seq, position = HEADER_BYTES, header.first_record_seq, 0
    while (
        (record := read_record(raw, at, header.crc, is_encrypted=is_encrypted))
        and record.seq == seq
        and record.position >= position
    ):
        records.append(record)
        at, seq, position = record.end, seq + 1, record.position
    corrupt = sealed_record(raw, at, header.crc) is not None or _later_record(raw, at, seq, header.crc)
    return Segment(header, records, at, len(raw), corrupt, any(raw[at:]))


def _later_record(raw: bytes, at: int, seq: int, seed: int) -> bool:
    """Return True if there is a good record after a byte, with a number that only a later record can have."""
    magic = struct.pack("<I", RECORD_MAGIC)
    where = at
    while (where := raw.find(magic, where + 1)) >= 0:
        fields = sealed_record(raw, where, seed)
        if fields is not None and seq < fields["seq"] <= seq + (where - at) // RECORD_BYTES + 1:
            return True
    return False


def read_row(segments: list[Segment]) -> list[Record]:
    """Return all records of consecutive segments; raise ``BadLogError`` if they are not consecutive or not valid."""
    first = segments[0].header
    size = 0
    seq, position = first.first_seq, 0
    records: list[Record] = []
    for segment in segments:
        header = segment.header
        if header.disk_id != first.disk_id or (header.generation, header.stream) != (first.generation, first.stream):
            raise BadLogError("LogMismatch", "of another log")
        if header.key_id != first.key_id:
            raise BadLogError("LogMismatch", "of another key")
        if header.first_seq != seq:
            raise BadLogError("LogGap", "gap")
        if segment.corrupt or (segment.torn and segment is not segments[-1]):
            raise BadLogError("LogCorrupt", "corrupt, or torn but not the last")
        size = max(size, header.disk_size_bytes)
        for record in segment.records:
            if record.position < position:
                raise BadLogError("LogCorrupt", "position")
            if record.type == RESIZE and record.length < size:
                raise BadLogError("LogCorrupt", "shrinks")
            if record.type in CHANGES and record.offset + record.length > size:
                raise BadLogError("LogCorrupt", "beyond the disk")
            size = record.length if record.type == RESIZE else size
            position = record.position
        records += segment.records
        seq = header.first_seq + (1 if header.stream else len(segment.records))
    return records


def replay(image: bytes, records: list[Record]) -> bytes:
    data = bytearray(image)
    for record in records:
        if record.type == WRITE:
            data[record.offset : record.offset + record.length] = record.payload
        elif record.type in (ZERO, DISCARD):
            data[record.offset : record.offset + record.length] = bytes(record.length)
        elif record.type == RESIZE:
            data.extend(bytes(max(record.length - len(data), 0)))
    return bytes(data)


# --- writing ------------------------------------------------------------------------------------------------------


def make_header(
    *,
    disk_id: str,
    first_seq: int,
    disk_size_bytes: int,
    boot_id: str,
    stream: int = 0,
    generation: int = 2,
    created_ns: int = 1,
    key_id: bytes = bytes(16),
) -> bytes:
    raw = struct.pack(
        "<8sHHB3x16sQQ16sQQ16s28x",
        MAGIC,
        2 if any(key_id) else 1,
        HEADER_BYTES,
        stream,
        uuid.UUID(disk_id).bytes,
        generation,
        first_seq,
        uuid.UUID(boot_id).bytes,
        created_ns,
        disk_size_bytes,
        key_id,
    )
    return raw + struct.pack("<I", crc32c(raw))


def make_record(
    seed: int,
    kind: int,
    *,
    seq: int,
    position: int,
    offset: int = 0,
    length: int = 0,
    payload: bytes = b"",
    flags: int = 0,
    time_ns: int | None = None,
) -> bytes:
    when = seq * 10 if time_ns is None else time_ns
    raw = struct.pack(
        "<IBBHQQQQQIII", RECORD_MAGIC, kind, flags, RECORD_BYTES, seq, position, when, offset, length, len(payload), 0, 0
    )
    return raw + struct.pack("<I", crc32c(payload, crc32c(raw, seed))) + payload


def reseal(raw: bytes) -> bytes:
    """Return the same bytes with the right checksums, as far as header and records can be followed."""
    if len(raw) < HEADER_BYTES:
        return raw
    out = bytearray(raw)
    seed = crc32c(bytes(out[:124]))
    struct.pack_into("<I", out, 124, seed)
    at = HEADER_BYTES
    while at + RECORD_BYTES <= len(out):
        end = at + RECORD_BYTES + field(out, RECORD_FIELDS, "payload_bytes", at)
        if end > len(out):
            break
        struct.pack_into(
            "<I", out, at + 60, crc32c(bytes(out[at + RECORD_BYTES : end]), crc32c(bytes(out[at : at + 60]), seed))
        )
        at = end
    return bytes(out)
