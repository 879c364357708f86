"""Readers of the files beside the change log, each beside a strict one that is written from the page of its format."""

from __future__ import annotations

import json
import os
import struct
import uuid
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

from blockfs import dirty, present_map
from blockfs.boot import current_boot_id
from blockfs.disk_state import DiskState
from blockfs.dm_log_writes import DmLogReader
from blockfs.errors import RigError
from blockfs.layers import RawLayer
from blockfs.log_exchange import import_log
from blockfs.log_replay import Replay, check
from blockfs.vhd import read_footer
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


# --- NAME.dirty: docs/formats/dirty.md ------------------------------------------------------------------------------

REASONS = {0: None, 1: "LogOverflow", 2: "LogFull", 3: "SyncFailed", 4: "WriteFailed"}


@dataclass(frozen=True)
class StrictDirty:
    disk_id: str
    generation: int
    boot_id: str
    reason: str | None
    chunks: set[int]


def strict_dirty(raw: bytes) -> StrictDirty | None:
    """What a dirty file says; None if it is none."""
    if len(raw) < 4096 or raw[:8] != b"SRIGDRTY":
        return None
    version, header_bytes, chunk_bytes = struct.unpack_from("<HHI", raw, 8)
    (generation,) = struct.unpack_from("<Q", raw, 32)
    crc, state = struct.unpack_from("<II", raw, 60)
    chunks = {byte * 8 + bit for byte, bits in enumerate(raw[4096:]) for bit in range(8) if bits >> bit & 1}
    good = (
        (version, header_bytes, chunk_bytes) == (1, 4096, 65536)
        and generation < 1 << 63
        and not any(raw[56:60])
        and not any(raw[68:4096])
        and crc32c(raw[:60]) == crc
        and state in REASONS
    )
    if not good:
        return None
    disk_id, boot_id = (str(uuid.UUID(bytes=raw[at : at + 16])) for at in (16, 40))
    return StrictDirty(disk_id, generation, boot_id, REASONS[state], chunks)


def dirty_file(raw: bytes, folder: Path) -> str:
    """``dirty.read``."""
    path = folder / "os.dirty"
    path.write_bytes(raw)
    want = strict_dirty(raw)
    try:
        got = dirty.read(path)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"DirtyCorrupt", "DirtyVersion"}, path)
        assert ("DirtyVersion" in error.code) == (raw[:8] == b"SRIGDRTY" and len(raw) >= 4096 and raw[8:10] != b"\1\0")
        return error.code
    assert want is not None, "taken for a good dirty file"
    assert (got.disk_id, got.generation, got.boot_id) == (want.disk_id, want.generation, want.boot_id)
    assert got.reason == want.reason
    assert {chunk for at, length in got.ranges for chunk in range(at // 65536, (at + length) // 65536)} == want.chunks
    assert all(at + length < after for (at, length), (after, _) in pairwise(got.ranges))
    return f"good, {want.reason}"


# --- NAME.top.present, NAME.top.durable: docs/formats/disk.md ---------------------------------------------------------


def durable_header(boot_id: str) -> bytes:
    head = struct.pack("<8sHHI16s28x", b"SRIGTOPM", 1, 4096, 4096, uuid.UUID(boot_id).bytes)
    return (head + struct.pack("<I", crc32c(head))).ljust(4096, b"\0")


def top_maps(files: dict[str, bytes], folder: Path) -> str:
    """``present_map.open_maps``; the files are ``os.top.present`` and ``os.top.durable``."""
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    present, durable = files.get("os.top.present", b""), files.get("os.top.durable")
    now = current_boot_id()
    if durable is None:
        want = None if any(present) else present
    elif len(durable) < 4096 or durable[:4096] != durable_header(str(uuid.UUID(bytes=durable[16:32]))):
        want = None
    else:
        want = durable[4096:]
        if durable[:4096] == durable_header(now):  # then the first has all that the second has
            kept = all(b & ~a == 0 for a, b in zip_longest(present, durable[4096:], fillvalue=0))
            want = present if kept else None
    try:
        fds = present_map.open_maps(folder / "os.top")
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"DiskCorrupt"}, folder / "os.top.durable", folder / "os.top.present")
        assert not present or (folder / "os.top.present").read_bytes() == present
        return error.code
    for fd in fds:
        os.close(fd)
    assert want is not None, "taken for good maps"
    assert (folder / "os.top.present").read_bytes() == want
    assert (folder / "os.top.durable").read_bytes()[:4096] == durable_header(now)
    return "of this boot" if want is present else "of another boot"


# --- fixed VHD: Virtual Hard Disk Image Format Specification 1.0 ------------------------------------------------------


def vhd(raw: bytes, folder: Path) -> str:
    """``vhd.read_footer``."""
    path = folder / "os.vhd"
    path.write_bytes(raw)
    footer = raw[-512:]
    good = False
    if len(footer) == 512 and footer[:8] == b"conectix":
        (version,) = struct.unpack_from(">I", footer, 12)
        (size,) = struct.unpack_from(">Q", footer, 48)
        kind, checksum = struct.unpack_from(">II", footer, 60)
        without = footer[:64] + bytes(4) + footer[68:]
        good = (
            version >> 16 == 1 and kind == 2 and size == len(raw) - 512 and checksum == ~sum(without) & 0xFFFFFFFF
            and footer[1:9] != b"conectix"
        )  # fmt: skip
    try:
        got = read_footer(path)
    except RigError as error:
        assert not good, error.message
        assert_clear(error, {"VhdCorrupt", "VhdUnsupported"}, path)
        return error.code
    assert good, "taken for a good VHD"
    assert got == len(raw) - 512
    return "good"


# --- NAME.disk: docs/formats/disk.md --------------------------------------------------------------------------------


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _is_image_note(note: object) -> bool:
    if note is None:
        return True
    if not isinstance(note, dict) or note.keys() != {"file", "closed"} or not isinstance(note["file"], str):
        return False
    stamp = note["closed"]
    if stamp is None:
        return True
    times = {"size_bytes", "mtime_ns", "ctime_ns"}
    return isinstance(stamp, dict) and stamp.keys() == times and all(type(value) is int for value in stamp.values())


def _number(value: object) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _shown(shown: object) -> dict[str, object] | None:
    """With null for what is absent; None: it is none."""
    absent: dict[str, object] = {"mode": None, "uid": None, "gid": None, "touched": None}
    if not isinstance(shown, dict) or not shown.keys() <= absent.keys():
        return None
    whole = absent | shown
    limits = {"mode": 0o777, "uid": (1 << 32) - 1, "gid": (1 << 32) - 1}
    for key, most in limits.items():
        value = whole[key]
        if value is not None and not (type(value) is int and 0 <= value <= most):
            return None
    touched = whole["touched"]
    if touched is not None:
        times = {"atime_ns", "mtime_ns", "file_mtime_ns"}
        if not isinstance(touched, dict) or touched.keys() != times or not all(map(_number, touched.values())):
            return None
    return whole


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
    optional = {"store", "position", "promoting", "image", "first_segment", "shown"}
    keys = {"disk_id", "size_bytes", "kind", "generation", "tracked", "needs_resync", *optional}
    if not keys - optional <= body.keys() <= keys:
        return None
    store, position = body.get("store"), body.get("position")
    over = isinstance(store, str) and _whole(position) if body["kind"] == "top" else (store, position) == (None, None)
    promoting = body.get("promoting", False)
    good = (
        _is_uuid(body["disk_id"])
        and _whole(body["size_bytes"]) and body["size_bytes"] > 0 and body["size_bytes"] % 512 == 0
        and body["kind"] in ("raw", "top")
        and over
        and type(promoting) is bool and (not promoting or body["kind"] == "top")
        and _whole(body["generation"])
        and _whole(body.get("first_segment", 1)) and body.get("first_segment", 1) > 0
        and type(body["tracked"]) is bool
        and (body["needs_resync"] is None or isinstance(body["needs_resync"], str))
        and _is_image_note(body.get("image"))
        and _shown(body.get("shown", {})) is not None
    )  # fmt: skip
    absent: dict[str, object] = {"store": None, "position": None, "promoting": False, "image": None, "first_segment": 1}
    return absent | body | {"shown": _shown(body.get("shown", {}))} if good else None


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
