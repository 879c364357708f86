"""Readers of the files beside the change log, each beside a strict one that is written from the page of its format."""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from blockfs.disk_state import DiskState
from blockfs.dm_log_writes import DmLogReader
from blockfs.errors import RigError
from blockfs.layers import RawLayer
from blockfs.log_exchange import import_log
from blockfs.log_replay import Replay, check
from tests.fuzz.log_targets import IMAGE_BYTES_MAX, assert_clear
from tests.fuzz.strict_log import crc32c

# --- dm-log-writes: docs/formats/dm-log-writes.md -------------------------------------------------------------------

FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class DmEntry:
    flags: int
    offset: int
    length: int
    mark: bytes
    data: bytes | None


def _dm_entry(raw: bytes, at: int, sector_bytes: int) -> DmEntry | None:
    """The entry in the sector at a byte, with its data; None if it makes no sense."""
    if at + sector_bytes > len(raw):
        return None
    sector, sectors, flags, data_len = struct.unpack_from("<QQQQ", raw, at)
    text = raw[at + 32 : at + sector_bytes]
    length = sectors * sector_bytes
    makes_sense = flags < 32 and (flags or sectors) and sector * sector_bytes + length <= 1 << 62
    mark: bytes = b""
    data: bytes | None = None
    if flags & MARK:
        makes_sense = makes_sense and flags == MARK and not sectors and data_len <= len(text)
        mark = text[:data_len]
    else:
        makes_sense = makes_sense and data_len <= length
        if length and not flags & DISCARD:
            data = raw[at + sector_bytes : at + sector_bytes + length]
    if not makes_sense or any(text[len(mark) :]) or (data is not None and len(data) < length):
        return None
    return DmEntry(flags, sector * sector_bytes, length, mark, data)


def _dm_entries(raw: bytes) -> list[DmEntry] | None:
    if len(raw) < 28:
        return None
    magic, version, count, sector_bytes = struct.unpack_from("<QQQI", raw)
    sizes = {1 << shift for shift in range(9, 24)}
    if magic != 0x6A736677736872 or version != 1 or sector_bytes not in sizes:
        return None
    entries: list[DmEntry] = []
    at = sector_bytes
    while len(entries) < count:
        entry = _dm_entry(raw, at, sector_bytes)
        if entry is None:
            return None
        entries.append(entry)
        at += sector_bytes + len(entry.data or b"")
    return entries


def dm_log(raw: bytes, folder: Path) -> str:
    """``DmLogReader``, and ``import_log`` as far as a replay of what it makes."""
    source = folder / "log"
    source.write_bytes(raw)
    want = _dm_entries(raw)
    try:
        with DmLogReader(source) as reader:
            got = [
                DmEntry(int(e.flags), e.offset, e.length, e.mark, reader.data(e, 0, e.length) if e.has_data else None)
                for e in reader.entries()
            ]
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"DmLogCorrupt", "LogVersion"}, source)
        return error.code
    assert got == want, "taken for a good log"
    made = import_log(source, folder, "back")
    checked = check(made.paths)
    if made.disk_size_bytes > IMAGE_BYTES_MAX:
        return "good, large"
    image = folder / "image"
    image.write_bytes(b"\xee" * made.disk_size_bytes)
    onto = RawLayer(image, writable=True)
    Replay(checked, onto).run()
    onto.close()
    expected = bytearray(b"\xee" * made.disk_size_bytes)
    for entry in got:
        expected[entry.offset : entry.offset + entry.length] = entry.data or bytes(entry.length)
    assert image.read_bytes() == expected
    return "good"


# --- NAME.disk: docs/formats/disk.md --------------------------------------------------------------------------------


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _strict_state(raw: bytes) -> dict[str, object] | None:
    try:
        document = json.loads(raw, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.keys() != {"format", "crc32c", "disk"}:
        return None
    body, crc = document["disk"], document["crc32c"]
    if type(document["format"]) is not int or document["format"] != 1 or type(crc) is not int:
        return None
    if crc != crc32c(json.dumps(body, sort_keys=True).encode()) or not isinstance(body, dict):
        return None
    keys = {"disk_id", "size_bytes", "kind", "generation", "tracked", "needs_resync", "store", "position"}
    optional = {"store", "position"}
    if not keys - optional <= body.keys() <= keys:
        return None
    store, position = body.get("store"), body.get("position")
    over = isinstance(store, str) and _whole(position) if body["kind"] == "top" else (store, position) == (None, None)
    good = (
        _is_uuid(body["disk_id"])
        and _whole(body["size_bytes"]) and body["size_bytes"] > 0 and body["size_bytes"] % 512 == 0
        and body["kind"] in ("raw", "top")
        and over
        and _whole(body["generation"])
        and type(body["tracked"]) is bool
        and (body["needs_resync"] is None or isinstance(body["needs_resync"], str))
    )  # fmt: skip
    return {**body, "store": store, "position": position} if good else None


def disk_state(raw: bytes, folder: Path) -> str:
    """``DiskState.load``."""
    path = folder / "os.disk"
    path.write_bytes(raw)
    want = _strict_state(raw)
    try:
        state = DiskState.load(path)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"DiskStateCorrupt", "StateVersion"}, path)
        return error.code
    assert want is not None, "taken for a good state"
    assert state.model_dump() == want
    state.save(path)
    assert DiskState.load(path) == state
    return "good"
