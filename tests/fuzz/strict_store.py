"""A second reader of a managed disk's files, written from docs/reference/formats/managed-disk.md alone.

It is slow and reads whole files into memory.

It shares no code with ``azure_emu``, and raises :class:`BadStoreError` for everything that the page does not allow.
"""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.fuzz import strict_log
from tests.fuzz.strict_log import DISCARD, RESIZE, WRITE, ZERO

HEADER_BYTES = 176
ENTRY = struct.Struct("<QQQQQII")
BLOCK = 4096
SECTOR = 512
NUMBER_MAX = (1 << 63) - 1
crc32c = lru_cache(maxsize=4096)(strict_log.crc32c)
"""The checksum is cached, because most pieces are the same as in the example before."""
FRONT, BACK = b"SRIGFRM\0", b"SRIGFRE\0"


class BadStoreError(Exception):
    """A file is not what the page of its format allows; the text has the reason."""


def need(good: object, why: str) -> None:
    """Raise ``BadStoreError`` if ``good`` is false."""
    if not good:
        raise BadStoreError(why)


# --- disk.json, progress, pins --------------------------------------------------------------------------------------

NUMBERS_BEFORE = ("generation", "sync_parts", "first_position")
NUMBERS_BEHIND = (
    "position",
    "time_ns",
    "first_seq",
    "log_seq",
    "log_position",
    "log_time_ns",
    "frame",
    "floor",
    "floor_time_ns",
    "size_bytes",
)


def whole(value: object) -> bool:
    return type(value) is int and 0 <= value <= NUMBER_MAX


def is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def meta(raw: bytes, kind: str) -> dict[str, object]:
    """Return the keys of a ``disk.json``, ``progress`` or ``pin`` without ``format`` and ``crc32c``."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadStoreError("no JSON") from None
    need(isinstance(body, dict), "no object")
    crc = body.pop("crc32c", None)
    need(crc == f"{crc32c(json.dumps(body, sort_keys=True).encode()):08x}", "checksum")
    version = body.pop("format", None)
    need(type(version) is int and (version == 2 or (version, kind) == (3, "disk.json")), "version")
    match kind:
        case "disk.json":
            keys = {"disk_id", "size_bytes", "created_ns"}
            need(body.keys() == (keys if version == 2 else {*keys, "key_id"}), "keys")
            need(version == 2 or is_uuid(body["key_id"]), "key")
            body.setdefault("key_id", None)
            need(is_uuid(body["disk_id"]) and whole(body["size_bytes"]) and whole(body["created_ns"]), "a value")
            need(body["size_bytes"] and body["size_bytes"] % SECTOR == 0, "size")
        case "progress":
            numbers = {*NUMBERS_BEFORE, *NUMBERS_BEHIND}
            need(body.keys() == {*numbers, "complete", "fold", "opened"}, "keys")
            need(all(whole(body[key]) for key in numbers) and type(body["complete"]) is bool, "a value")
            need(body["size_bytes"] % SECTOR == 0, "size")
            fold = body["fold"]
            if fold is not None:
                need(isinstance(fold, dict) and fold.keys() == {"frame", "position"}, "fold")
                need(all(map(whole, fold.values())), "fold")
            opened = body["opened"]
            need(isinstance(opened, dict) and opened.keys() == {"boot", "frame"}, "opened")
            need(is_uuid(opened["boot"]) and whole(opened["frame"]), "opened")
            need(body["complete"] or (fold is None and not any(body[key] for key in NUMBERS_BEHIND)), "not complete")
        case _:
            need(body.keys() == {"pin_id", "position", "holder", "created_ns"}, "keys")
            need(whole(body["position"]) and whole(body["created_ns"]), "a value")
            need(is_uuid(body["pin_id"]) and isinstance(body["holder"], str), "a value")
    return dict(body)


# --- base.map, intent -----------------------------------------------------------------------------------------------


def _map_header(raw: bytes, magic: bytes) -> tuple[int, int, tuple[int, ...]]:
    need(len(raw) >= 48, "header")
    found, version, crc, count, *three = struct.unpack_from("<8sIIQQQQ", raw)
    need((found, version) == (magic, 2), "magic, version")
    return crc, count, tuple(three)


def base_map(raw: bytes) -> list[tuple[int, int]]:
    crc, count, three = _map_header(raw, b"SRIGMAP\0")
    need(not any(three) and len(raw) == 48 + 16 * count, "length")
    need(crc32c(raw[48:], count) == crc, "checksum")
    end, rows = 0, list(struct.iter_unpack("<QQ", raw[48:]))
    for offset, length in rows:
        need(offset >= end and length and offset % BLOCK == length % BLOCK == 0, "order, multiples")
        end = offset + length
    need(end <= NUMBER_MAX, "beyond any disk")
    return rows


def intent(raw: bytes) -> tuple[tuple[int, ...], dict[int, bytes]]:
    crc, count, three = _map_header(raw, b"SRIGINT\0")
    need(len(raw) == 48 + (8 + BLOCK) * count, "length")
    need(crc32c(raw[48:], crc32c(struct.pack("<QQQ", *three))) == crc, "checksum")
    blocks = {
        int.from_bytes(raw[at : at + 8], "little"): raw[at + 8 : at + 8 + BLOCK] for at in range(48, len(raw), 8 + BLOCK)
    }
    need(len(blocks) == count and all(offset % BLOCK == 0 for offset in blocks), "blocks")
    return three, blocks


# --- journal files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Frame:
    journal_file: int
    start: int
    raw: bytes
    """The header of the frame, with the magic of the front header."""

    def _at(self, at: int, form: str) -> int:
        (number,) = struct.unpack_from("<" + form, self.raw, at)
        return int(number)

    @property
    def stream(self) -> int:
        return self._at(12, "B")

    @property
    def number(self) -> int:
        return self._at(32, "Q")

    @property
    def generation(self) -> int:
        return self._at(48, "Q")

    @property
    def seqs(self) -> tuple[int, int]:
        return self._at(56, "Q"), self._at(64, "Q")

    @property
    def positions(self) -> tuple[int, int]:
        return self._at(72, "Q"), self._at(80, "Q")

    @property
    def size_after(self) -> int:
        return self._at(104, "Q")

    @property
    def segment(self) -> tuple[int, int]:
        """Return the first byte of the segment, and the first one after it."""
        return self.start + HEADER_BYTES, self.start + HEADER_BYTES + self._at(120, "Q")

    @property
    def index(self) -> tuple[int, int]:
        at = -(-self.segment[1] // 8) * 8
        return at, at + self._at(128, "I") * ENTRY.size + self._at(132, "I") * 4

    @property
    def pieces_at(self) -> int:
        return self.index[0] + self._at(128, "I") * ENTRY.size

    @property
    def tags(self) -> tuple[int, int]:
        return self.index[1], self.index[1] + self._at(136, "I")

    @property
    def end(self) -> int:
        return -(-self.tags[1] // 8) * 8 + HEADER_BYTES

    @property
    def crcs(self) -> tuple[int, int, int]:
        return self._at(144, "I"), self._at(148, "I"), self._at(152, "I")


def header(raw: bytes, disk: bytes, magic: bytes = FRONT) -> bytes | None:
    """Return a frame header with the magic of the front header, or None if it is not a header of that disk."""
    if len(raw) != HEADER_BYTES or raw[:8] != magic or crc32c(raw[:172]) != struct.unpack_from("<I", raw, 172)[0]:
        return None
    good = (
        raw[8:12] == struct.pack("<HH", 2, HEADER_BYTES)
        and max(raw[12:14]) <= 1
        and not any(raw[14:16])
        and raw[16:32] == disk
        and max(struct.unpack_from("<12Q", raw, 32)) <= NUMBER_MAX
        and not any(raw[156:172])
        and (raw[13] or not any(raw[112:120]))
        and struct.unpack_from("<Q", raw, 104)[0] % SECTOR == 0
    )
    if not good:
        return None
    front = FRONT + raw[8:172]
    return front + struct.pack("<I", crc32c(front))


@dataclass
class Journal:
    """The valid frames; ``stop`` is ``end``, ``torn`` or ``broken``, and ``at`` is the journal file and byte of the stop."""

    frames: list[Frame] = field(default_factory=list)
    stop: str = "end"
    at: tuple[int, int] = (0, 0)


def _frame_at(journal_file: int, raw: bytes, at: int, number: int, disk: bytes) -> Frame | None:
    """Return the frame at a byte, found by its header or else by the copy at its end."""
    found = header(raw[at : at + HEADER_BYTES], disk)
    if found is not None:
        frame = Frame(journal_file, at, found)
        if (frame.number, struct.unpack_from("<Q", found, 40)[0]) == (number, at):
            return frame
    place = at
    while (place := raw.find(BACK, place + 1)) >= 0:
        found = header(raw[place : place + HEADER_BYTES], disk, BACK)
        if found is not None:
            frame = Frame(journal_file, at, found)
            if (frame.number, struct.unpack_from("<Q", found, 40)[0], frame.end) == (number, at, place + HEADER_BYTES):
                return frame
    return None


def _later_frame(raw: bytes, at: int, disk: bytes) -> bool:
    while (at := raw.find(FRONT, at + 1)) >= 0:
        found = header(raw[at : at + HEADER_BYTES], disk)
        if found is not None and struct.unpack_from("<Q", found, 40)[0] == at:
            return True
    return False


def _stop(raw: bytes, at: int, disk: bytes, *, power_lost: bool) -> str:
    """Return the kind of a stop in the newest journal file, at a byte where no frame begins."""
    if len(raw) - at < HEADER_BYTES:
        return "torn"
    lost = not any(raw[at : at + HEADER_BYTES]) or power_lost
    return "torn" if lost and not _later_frame(raw, at, disk) else "broken"


def journal(journal_files: dict[int, bytes], disk_id: str, *, counted: int = 0, power_lost: bool = False) -> Journal:
    """Return all frames from number 1 on, sorted by number; the journal is broken if there are fewer than ``counted``."""
    found = _journal(journal_files, disk_id, counted, power_lost=power_lost)
    if len(found.frames) < counted:
        found.stop = "broken"
    return found


def _journal(journal_files: dict[int, bytes], disk_id: str, counted: int, *, power_lost: bool) -> Journal:
    disk, found, expected = uuid.UUID(disk_id).bytes, Journal(), 1
    for journal_file, raw in sorted(journal_files.items()):
        if journal_file != expected:
            found.stop = "broken"
            return found
        newest, at = journal_file == max(journal_files), 0
        while at < len(raw):
            found.at = journal_file, at
            frame = _frame_at(journal_file, raw, at, expected, disk) if len(raw) - at >= HEADER_BYTES else None
            if frame is None:
                found.stop = _stop(raw, at, disk, power_lost=power_lost) if newest else "broken"
                return found
            if frame.end > len(raw):
                found.stop = "torn" if newest else "broken"
                return found
            tearable = newest and frame.end == len(raw) and power_lost and expected > counted
            if tearable and crc32c(raw[slice(*frame.segment)]) != frame.crcs[0]:
                found.stop = "torn"
                return found
            found.frames.append(frame)
            at, expected = frame.end, expected + 1
        found.at = journal_file, at
    return found


def made_index(journal_file: bytes, frame: Frame) -> bytes | None:
    """Return the index of a frame, built from its segment alone; None if the segment is bad or does not match the header."""
    raw = journal_file[slice(*frame.segment)]
    if crc32c(raw) != frame.crcs[0]:
        return None
    try:
        segment = strict_log.read_segment(raw, of_disk=False)
    except strict_log.BadLogError:
        return None
    head, count = segment.header, len(segment.records)
    seqs = (head.first_seq, head.first_seq if head.stream else head.first_seq + count - 1)
    if segment.torn_bytes or (head.stream, head.generation, *seqs) != (frame.stream, frame.generation, *frame.seqs):
        return None
    entries, sums = b"", b""
    for record in segment.records:
        payload_at = first_piece = 0
        if record.type == WRITE:
            payload_at, first_piece = record.end - record.length, len(sums) // 4
            cuts = [0, *range(BLOCK - record.offset % BLOCK, record.length, BLOCK), record.length]
            pieces = [record.payload[start:stop] for start, stop in pairwise(cuts)]
            sums += b"".join(struct.pack("<I", crc32c(piece)) for piece in pieces if piece)
        if record.type == RESIZE or (record.type in strict_log.CHANGES and record.length):
            entries += ENTRY.pack(
                record.position, record.time_ns, record.offset, record.length, payload_at, first_piece, record.type
            )
    index = entries + sums
    lengths = (frame.pieces_at - frame.index[0], frame.index[1] - frame.pieces_at)
    return index if (len(entries), len(sums)) == lengths and crc32c(index) == frame.crcs[1] else None


# --- the disk at a position ---------------------------------------------------------------------------------------


class Picture:
    """A disk's bytes, and in ``bad`` those that cannot be read because their piece does not match its checksum."""

    def __init__(self, size: int) -> None:
        self.data, self.bad = bytearray(size), bytearray(size)

    def put(self, at: int, data: bytes, *, bad: bool = False) -> None:
        end = min(len(self.data), at + len(data))
        if at < end:
            self.data[at:end] = data[: end - at]
            self.bad[at:end] = bytes([bad]) * (end - at)

    def base(self, ranges: list[tuple[int, int]], img: bytes, sums: bytes) -> None:
        for offset, length in ranges:
            for at in range(offset, min(offset + length, len(self.data)), BLOCK):
                block = img[at : at + BLOCK].ljust(BLOCK, b"\0")
                pair = struct.unpack("<II", sums[at // BLOCK * 8 : at // BLOCK * 8 + 8].ljust(8, b"\0"))
                self.put(at, block, bad=crc32c(block) not in pair)

    def entry(self, journal_file: bytes, frame: Frame, row: tuple[int, ...]) -> None:
        _, _, offset, length, payload_at, piece, kind = row
        if kind in (ZERO, DISCARD):
            self.put(offset, bytes(max(0, min(length, len(self.data) - offset))))
        elif kind == WRITE:
            at = offset
            while at < min(offset + length, len(self.data)):
                stop = min(at - at % BLOCK + BLOCK, offset + length)
                place = frame.segment[0] + payload_at + at - offset
                data = journal_file[place : place + stop - at]
                crc = journal_file[frame.pieces_at + 4 * piece : frame.pieces_at + 4 * piece + 4]
                fits = len(data) == stop - at and crc == struct.pack("<I", crc32c(data))
                self.put(at, data.ljust(stop - at, b"\0"), bad=not fits)
                at, piece = stop, piece + 1


def decrypted(data: bytes, secret: bytes) -> bytes:
    """Return the bytes of an encrypted disk from its begin on: AES-256-XTS by blocks, and lines of zeros stay zeros."""
    plain, zeros = bytearray(), bytes(16)
    for number, at in enumerate(range(0, len(data), BLOCK)):
        block = data[at : at + BLOCK]
        if block.count(0) == len(block):
            plain += block
            continue
        decryptor = Cipher(algorithms.AES(secret), modes.XTS(number.to_bytes(16, "little"))).decryptor()
        found = decryptor.update(block) + decryptor.finalize()
        for line in range(0, len(block), 16):
            plain += found[line : line + 16] if block[line : line + 16] != zeros else zeros
    return bytes(plain)


def odd(row: tuple[int, ...], frame: Frame) -> bool:
    """Return True for an entry that no record can have."""
    position, _, offset, length, payload_at, _, kind = row
    return (
        kind not in (WRITE, ZERO, DISCARD, RESIZE)
        or not frame.positions[0] <= position <= frame.positions[1]
        or not length
        or max(offset + length, position) > NUMBER_MAX
        or (kind == RESIZE and length % SECTOR != 0)
        or (kind == WRITE and payload_at + length > frame.segment[1] - frame.segment[0])
    )
