"""Each reader of a file beside the change log is compared with a strict one, written from the page of the format."""

from __future__ import annotations

import copy
import json
import os
import re
import struct
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from siterig.azure_emu.vault.keys.key_file import KeyFile
from siterig.blockfs.changelog import dirty_bitmap
from siterig.blockfs.changelog.dm_log_writes import DmLogReader
from siterig.blockfs.changelog.exchange import import_log
from siterig.blockfs.changelog.replay import Replay, check
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.images.vhd import read_footer
from siterig.blockfs.layers import overlay_map
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.transfer.envelope import open_sealed
from tests.fuzz.log_targets import IMAGE_BYTES_MAX, assert_clear
from tests.fuzz.small_damage import PART_KEY, SEALED_PART
from tests.fuzz.strict_log import crc32c

# --- dm-log-writes: docs/reference/formats/dm-log-writes.md ---------------------------------------------------------

FLUSH, FUA, DISCARD, MARK, METADATA = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class DmEntry:
    flags: int
    offset: int
    length: int
    mark: bytes
    data: bytes | None


def _dm_entry(raw: bytes, at: int, sector_bytes: int) -> DmEntry | None:
    """Return the entry in the sector at a byte with its data, or None if it is invalid."""
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
    """Compare ``DmLogReader``, and a replay of the segments from ``import_log``, with the strict reader."""
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
    assert got == want, "the reader accepted a bad log"
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


# --- NAME.dirty: docs/reference/formats/dirty.md --------------------------------------------------------------------

REASONS = {0: None, 1: "LogOverflow", 2: "LogFull", 3: "SyncFailed", 4: "WriteFailed", 5: "ImageChanged", 6: "LogCorrupt"}


@dataclass(frozen=True)
class StrictDirty:
    disk_id: str
    generation: int
    boot_id: str
    reason: str | None
    chunks: set[int]
    newest_segment: int
    mtime_ns: int


def strict_dirty(raw: bytes) -> StrictDirty | None:
    """Return the contents of a dirty file, or None if it is invalid."""
    if len(raw) < 4096 or raw[:8] != b"SRIGDRTY":
        return None
    version, header_bytes, chunk_bytes = struct.unpack_from("<HHI", raw, 8)
    (generation,) = struct.unpack_from("<Q", raw, 32)
    crc, state, zero, newest_segment, mtime_ns = struct.unpack_from("<IIIQQ", raw, 60)
    chunks = {byte * 8 + bit for byte, bits in enumerate(raw[4096:]) for bit in range(8) if bits >> bit & 1}
    good = (
        version in (1, 2)
        and (header_bytes, chunk_bytes) == (4096, 65536)
        and (version == 2 or (newest_segment, mtime_ns) == (0, 0))
        and zero == 0
        and generation < 1 << 63
        and not any(raw[56:60])
        and not any(raw[88:4096])
        and crc32c(raw[:60]) == crc
        and state in REASONS
    )
    if not good:
        return None
    disk_id, boot_id = (str(uuid.UUID(bytes=raw[at : at + 16])) for at in (16, 40))
    return StrictDirty(disk_id, generation, boot_id, REASONS[state], chunks, newest_segment, mtime_ns)


def dirty_file(raw: bytes, folder: Path) -> str:
    """Compare ``dirty_bitmap.read`` with the strict reader."""
    path = folder / "os.dirty"
    path.write_bytes(raw)
    want = strict_dirty(raw)
    try:
        got = dirty_bitmap.read(path)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"DirtyCorrupt", "DirtyVersion"}, path)
        assert ("DirtyVersion" in error.code) == (
            raw[:8] == b"SRIGDRTY" and len(raw) >= 4096 and raw[8:10] not in (b"\1\0", b"\2\0")
        )
        return error.code
    assert want is not None, "the reader accepted a bad dirty file"
    assert (got.disk_id, got.generation, got.boot_id) == (want.disk_id, want.generation, want.boot_id)
    assert (got.reason, got.newest_segment, got.mtime_ns) == (want.reason, want.newest_segment, want.mtime_ns)
    assert {chunk for at, length in got.ranges for chunk in range(at // 65536, (at + length) // 65536)} == want.chunks
    assert all(at + length < after for (at, length), (after, _) in pairwise(got.ranges))
    return f"good, {want.reason}"


# --- NAME.top.present, NAME.top.durable: docs/reference/formats/disk.md ---------------------------------------------


def durable_header(boot_id: str) -> bytes:
    head = struct.pack("<8sHHI16s28x", b"SRIGTOPM", 1, 4096, 4096, uuid.UUID(boot_id).bytes)
    return (head + struct.pack("<I", crc32c(head))).ljust(4096, b"\0")


def top_maps(files: dict[str, bytes], folder: Path) -> str:
    """Compare ``overlay_map.open_maps`` of ``os.top.present`` and ``os.top.durable`` with the strict reader."""
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
        if durable[:4096] == durable_header(now):  # then the first map has all blocks of the second
            kept = all(b & ~a == 0 for a, b in zip_longest(present, durable[4096:], fillvalue=0))
            want = present if kept else None
    try:
        fds = overlay_map.open_maps(folder / "os.top")
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"DiskCorrupt"}, folder / "os.top.durable", folder / "os.top.present")
        assert not present or (folder / "os.top.present").read_bytes() == present
        return error.code
    for fd in fds:
        os.close(fd)
    assert want is not None, "the reader accepted bad maps"
    assert (folder / "os.top.present").read_bytes() == want
    assert (folder / "os.top.durable").read_bytes()[:4096] == durable_header(now)
    return "of this boot" if want is present else "of another boot"


# --- fixed VHD: Virtual Hard Disk Image Format Specification 1.0 ------------------------------------------------------


def vhd(raw: bytes, folder: Path) -> str:
    """Compare ``vhd.read_footer`` with the strict reader."""
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
            version >> 16 == 1
            and kind == 2
            and size == len(raw) - 512
            and checksum == ~sum(without) & 0xFFFFFFFF
            and footer[1:9] != b"conectix"
        )
    try:
        got = read_footer(path)
    except RigError as error:
        assert not good, error.message
        assert_clear(error, {"VhdCorrupt", "VhdUnsupported"}, path)
        return error.code
    assert good, "the reader accepted a bad VHD"
    assert got == len(raw) - 512
    return "good"


# --- NAME.disk: docs/reference/formats/disk.md ----------------------------------------------------------------------


def _whole(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_uuid(value: object) -> bool:
    try:
        return isinstance(value, str) and str(uuid.UUID(value)) == value
    except ValueError:
        return False


def _has(value: object, keys: Mapping[str, Callable[[Any], bool]], optional: Collection[str] = ()) -> bool:
    """Return True for an object with exactly these keys and allowed values."""
    if not isinstance(value, dict) or not keys.keys() - optional <= value.keys() <= keys.keys():
        return False
    return all(right(value[key]) for key, right in keys.items() if key in value)


def _number(value: object) -> bool:
    return type(value) is int and -(1 << 63) <= value < 1 << 63


def _shown(shown: object) -> dict[str, object] | None:
    """Return the attributes, with null for absent ones; None if they are invalid."""
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


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_digest(value: object) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch(r"[0-9a-f]{32}", value) is not None)


def _is_stamp(value: object) -> bool:
    keys = {
        "file": _is_text,
        "size_bytes": _whole,
        "mtime_ns": _number,
        "ctime_ns": _number,
        "inode": lambda inode: inode is None or _whole(inode),
        "digest": _is_digest,
    }
    return _has(value, keys, {"digest"})


def _is_closed(value: object) -> bool:
    log = {"first_seq": _whole, "next_seq": _whole}
    return _has(
        value,
        {
            "files": lambda files: isinstance(files, list) and all(map(_is_stamp, files)),
            "log": lambda extent: extent is None or _has(extent, log),
        },
    )


def _is_opened(value: object) -> bool:
    return _has(value, {"inode": _whole, "dirty_inode": _whole, "mtime_ns": _number}, {"mtime_ns"})


def _format_2(body: dict[str, Any]) -> dict[str, Any] | None:
    """Convert a document of format 1 to format 2."""
    if not body.keys().isdisjoint({"closed", "opened"}):
        return None
    note = body.get("image")
    if note is None:
        return body
    if not _has(note, {"file": _is_text, "closed": lambda _: True}):
        return None
    assert isinstance(note, dict)
    if note["closed"] is None:
        return body | {"image": note["file"]}
    if not _has(note["closed"], {"size_bytes": _whole, "mtime_ns": _number, "ctime_ns": _number}):
        return None
    stamp = {"file": note["file"], "inode": None, **note["closed"]}
    return body | {"image": note["file"], "closed": {"files": [stamp], "log": None}}


def _is_folder_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[0-9A-Za-z][0-9A-Za-z._-]*", value, re.ASCII) is not None


def _format_3(body: dict[str, Any]) -> dict[str, Any] | None:
    """Convert a document of format 2 to format 3."""
    body = dict(body)
    store = body.pop("store", None)
    if "managed_disk" in body or not (store is None or isinstance(store, str)):
        return None
    return body if store is None else body | {"managed_disk": Path(store).name}


def _body(raw: bytes) -> dict[str, Any] | None:
    """Return the description of the disk in format 3, or None if the document is invalid."""
    try:
        document = json.loads(raw, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not _has(document, {"format": _is_whole_number, "crc32c": _is_whole_number, "disk": _is_object}):
        return None
    body, version = document["disk"], document["format"]
    if document["crc32c"] != crc32c(json.dumps(body, sort_keys=True).encode()):
        return None
    if version in (1, 2, 3) and isinstance(body, dict) and "key" in body:
        return None
    if version == 1:
        body = _format_2(body)
    if version in (1, 2):
        return None if body is None else _format_3(body)
    return dict(body) if version in (3, 4) else None


def _is_key(key: object, managed_disk: object) -> bool:
    """Return True for a valid note of the key of an encrypted disk, which has this managed disk under it."""
    if not isinstance(key, dict) or key.keys() != {"managed_disk", "key_id"}:
        return False
    is_that = managed_disk in (None, key["managed_disk"])
    return _is_folder_name(key["managed_disk"]) and _is_uuid(key["key_id"]) and is_that


def _is_parent(parent: object) -> bool:
    """Return True for a valid description of a thin disk's parent image."""
    if not isinstance(parent, dict) or parent.keys() != {"path", "size_bytes", "file_bytes", "mtime_ns", "digest"}:
        return False
    size, mtime, digest = parent["size_bytes"], parent["mtime_ns"], parent["digest"]
    return (
        isinstance(parent["path"], str)
        and _whole(size)
        and size > 0
        and size % 512 == 0
        and _whole(parent["file_bytes"])
        and type(mtime) is int
        and -(1 << 63) <= mtime < 1 << 63
        and isinstance(digest, str)
        and re.fullmatch("[0-9a-f]{32}", digest) is not None
    )


def _is_whole_number(value: object) -> bool:
    return type(value) is int


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _strict_state(raw: bytes) -> dict[str, Any] | None:
    body = _body(raw)
    if body is None:
        return None
    optional = {
        "managed_disk",
        "position",
        "promoting",
        "image",
        "first_segment",
        "closed",
        "opened",
        "shown",
        "sector_bytes",
        "parent",
        "fenced",
        "key",
    }
    keys = {"disk_id", "size_bytes", "kind", "generation", "tracked", "needs_resync", *optional}
    if not keys - optional <= body.keys() <= keys:
        return None
    managed_disk, position = body.get("managed_disk"), body.get("position")
    over_managed_disk = body["kind"] == "top" and body.get("parent") is None
    over = (
        _is_folder_name(managed_disk) and _whole(position) if over_managed_disk else (managed_disk, position) == (None, None)
    )
    promoting = body.get("promoting", False)
    good = (
        _is_uuid(body["disk_id"])
        and _whole(body["size_bytes"])
        and body["size_bytes"] > 0
        and body["size_bytes"] % 512 == 0
        and body["kind"] in ("raw", "top")
        and over
        and type(promoting) is bool
        and (not promoting or over_managed_disk)
        and _whole(body["generation"])
        and _whole(body.get("first_segment", 1))
        and body.get("first_segment", 1) > 0
        and type(body["tracked"]) is bool
        and (body["needs_resync"] is None or isinstance(body["needs_resync"], str))
        and (body.get("image") is None or isinstance(body["image"], str))
        and (body.get("closed") is None or _is_closed(body["closed"]))
        and _shown(body.get("shown", {})) is not None
        and (body.get("opened") is None or _is_opened(body["opened"]))
        and type(body.get("sector_bytes", 512)) is int
        and body.get("sector_bytes", 512) in (512, 4096)
        and type(body.get("fenced", False)) is bool
        and (body.get("key") is None or _is_key(body["key"], managed_disk))
        and (body.get("parent") is None or (_is_parent(body["parent"]) and body["kind"] == "top"))
    )
    if not good:
        return None
    absent: dict[str, Any] = {
        "managed_disk": None,
        "position": None,
        "promoting": False,
        "image": None,
        "first_segment": 1,
        "closed": None,
        "opened": None,
        "sector_bytes": 512,
        "parent": None,
        "fenced": False,
        "key": None,
    }
    whole = copy.deepcopy(absent | body | {"shown": _shown(body.get("shown", {}))})
    for stamp in whole["closed"]["files"] if whole["closed"] else []:
        stamp.setdefault("digest", None)
    if whole["opened"]:
        whole["opened"].setdefault("mtime_ns", 0)
    return whole


def disk_state(raw: bytes, folder: Path) -> str:
    """Compare ``DiskState.load`` with the strict reader."""
    path = folder / "os.disk"
    path.write_bytes(raw)
    want = _strict_state(raw)
    try:
        state = DiskState.load(path)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"DiskStateCorrupt", "StateVersion"}, path)
        return error.code
    assert want is not None, "the reader accepted a bad state"
    assert state.model_dump() == want
    state.save(path)
    assert DiskState.load(path) == state
    return "good"


# --- the vault's keys: docs/reference/formats/vault-keys.md ------------------------------------------------------------


def _strict_keys(raw: bytes) -> list[dict[str, Any]] | None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not _has(document, {"format": lambda found: type(found) is int and found == 1, "crc32c": _is_whole_number,
                           "keys": _is_object}):  # fmt: skip
        return None
    body = document["keys"]
    if document["crc32c"] != crc32c(json.dumps(body, sort_keys=True).encode()) or body.keys() != {"versions"}:
        return None
    versions = body["versions"]
    if not isinstance(versions, list) or not 1 <= len(versions) <= 1000:
        return None
    for number, version in enumerate(versions, 1):
        good = (
            isinstance(version, dict)
            and version.keys() == {"version", "secret_hex", "state", "created_ns", "changed_ns"}
            and type(version["version"]) is int
            and version["version"] == number
            and isinstance(version["secret_hex"], str)
            and re.fullmatch("[0-9a-f]{64}", version["secret_hex"]) is not None
            and version["state"] in ("Enabled", "Revoked")
            and _whole(version["created_ns"])
            and _whole(version["changed_ns"])
        )
        if not good:
            return None
    return versions


def vault_keys(raw: bytes, folder: Path) -> str:
    """Compare ``KeyFile.load`` with the strict reader; no message shows a secret."""
    path = folder / "vault.keys"
    path.write_bytes(raw)
    path.chmod(0o600)
    want = _strict_keys(raw)
    try:
        file = KeyFile.load(path, SYSTEM_CLOCK)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"KeysUnreadable", "StateVersion"}, path)
        assert not any(secret.decode() in error.message for secret in re.findall(rb"[0-9a-f]{64}", raw))
        return error.code
    assert want is not None, "the reader accepted a bad file"
    assert [version.model_dump() for version in file.versions] == want
    assert not any(version["secret_hex"] in repr(file.versions) for version in want)
    return "good"


# --- envelopes of parts: docs/reference/formats/sealed-part.md --------------------------------------------------------


def _strict_envelope(raw: bytes) -> bytes | None:
    if len(raw) < 56 or raw[:12] != b"SRIGSEAL\1\0\x28\0" or raw[12:28] != PART_KEY.key_id.bytes:
        return None
    try:
        return AESGCM(PART_KEY.secret).decrypt(raw[28:40], raw[40:], raw[:40] + SEALED_PART.blob().encode())
    except InvalidTag:
        return None


def envelope(raw: bytes, _folder: Path) -> str:
    """Open an envelope with both readers."""
    want = _strict_envelope(raw)
    try:
        got = open_sealed(PART_KEY, SEALED_PART, raw)
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"PartCorrupt"})
        assert SEALED_PART.blob() in error.message
        return "PartCorrupt"
    assert got == want
    return "good"
