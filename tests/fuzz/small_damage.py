"""Damaged small formats: dm-log-writes logs, a disk's state and dirty files, fixed VHDs, envelopes of parts, and bundles."""

from __future__ import annotations

import json
import struct
import uuid
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from siterig.blockfs.images.vhd import FOOTER_BYTES, fixed_footer
from siterig.blockfs.transfer.envelope import DataKey
from siterig.blockfs.transfer.part_name import PartName
from tests.fuzz.damage import DISK_ID, EDGES, OTHER_ID, Choices, damage_bytes, poke
from tests.fuzz.strict_log import crc32c

SECTOR = 512
DM_SUPER_FIELDS = {"magic": (0, "Q"), "version": (8, "Q"), "entries": (16, "Q"), "sector": (24, "I")}
DM_ENTRY_FIELDS = {
    "sector": (0, "Q"),
    "sectors": (8, "Q"),
    "flags": (16, "Q"),
    "data_len": (24, "Q"),
    "data": (32, "B"),
    "far": (400, "Q"),
}


def dm_log(pick: Choices) -> bytes:
    """Return a dm-log-writes log of up to five entries, mostly damaged."""
    entries = []
    for _ in range(pick.below(6)):
        sector, sectors = pick.below(128), pick.below(3)
        flags = pick.of([0, 0, 0, 1, 2, 3, 4, 8, 16])
        mark = b"mark" if flags == 8 else b""
        if flags == 8:
            sectors = 0
        elif flags == 0:
            sectors += 1
        head = (struct.pack("<QQQQ", sector, sectors, flags, len(mark)) + mark).ljust(SECTOR, b"\0")
        if pick.once_in(6):
            head = poke(head, DM_ENTRY_FIELDS, pick)
        entries.append(head + (b"" if flags & 4 else bytes([pick.below(4)]) * (SECTOR * sectors)))
    raw = struct.pack("<QQQI", 0x6A736677736872, 1, len(entries), SECTOR).ljust(SECTOR, b"\0")
    if pick.once_in(8):
        raw = poke(raw, DM_SUPER_FIELDS, pick)
    raw += b"".join(entries)
    return damage_bytes(raw, pick) if pick.once_in(3) else raw


VALUES: list[object] = [
    None,
    True,
    False,
    0,
    1,
    1.0,
    0.5,
    -1,
    512,
    "512",
    "",
    "raw",
    "top",
    [],
    {},
    [512],
    {"a": 1},
    1e300,
    "\x1b[2J",
    "ä",
    OTHER := "6a83da7e-b542-496d-a113-08b9b71d9e22",
    OTHER.upper(),
    OTHER.replace("-", ""),
    *EDGES[-6:],
    1 << 80,
]


def seal_state(body: object, *, version: object = 1) -> bytes:
    """Return a state file with the right checksum."""
    crc = crc32c(json.dumps(body, sort_keys=True).encode())
    return json.dumps({"format": version, "crc32c": crc, "disk": body}).encode()


def _key_note(pick: Choices) -> dict[str, Any]:
    """Return the key ``key`` of an encrypted disk, or nothing."""
    note: dict[str, Any] = {"managed_disk": OTHER, "key_id": pick.of([OTHER, OTHER, OTHER.upper(), None])}
    if pick.once_in(4):
        note[pick.of(sorted(note))] = pick.of(VALUES)
    return {"key": note} if pick.once_in(2) else {}


def disk_state(pick: Choices) -> bytes:
    """Return a ``NAME.disk``, mostly damaged."""
    top = pick.once_in(2)
    body: dict[str, Any] = {
        "disk_id": DISK_ID,
        "size_bytes": 65536,
        "kind": "top" if top else "raw",
        "generation": 3,
        "tracked": pick.once_in(2),
        "needs_resync": pick.of([None, "PowerLoss"]),
        "position": 77 if top else None,
    }
    version = pick.of([1, 2, 3, 4, 4])
    key, values = ("store", ["/stores/a", "/", "/stores/.a", "a"]) if version < 3 else ("managed_disk", [OTHER, ".a", "a/b"])
    body[key] = pick.of(values) if top else None
    if pick.once_in(3):
        body["promoting"] = top or pick.once_in(2)
    closed: dict[str, Any] = {"size_bytes": 65536, "mtime_ns": 5, "ctime_ns": 6}
    if pick.once_in(2):
        closed[pick.of(sorted(closed))] = pick.of(VALUES)
    if pick.once_in(3):
        body["image"] = {"file": "os.raw", "closed": pick.of([None, closed])} if version == 1 else "os.raw"
    if version > 1 and pick.once_in(2):
        stamp = {"file": "os.img", "inode": pick.of([None, 7]), "digest": pick.of([None, "0" * 32, "0" * 31]), **closed}
        body["closed"] = {"files": [stamp], "log": pick.of([None, {"first_seq": 1, "next_seq": 9}, {"first_seq": 1}])}
    if version > 1 and pick.once_in(3):
        body["opened"] = {"inode": 7, "dirty_inode": 8, "mtime_ns": pick.of([0, 5, "5"])}
    if pick.once_in(3):
        touched = {"atime_ns": 1, "mtime_ns": -2, "file_mtime_ns": pick.of([3, *VALUES])}
        shown = {"mode": 0o640, "uid": 0, "gid": 5, "touched": pick.of([None, touched])}
        body["shown"] = pick.of([shown, {}, {"mode": 0o1777}, {**shown, pick.of(sorted(shown)): pick.of(VALUES)}])
    body |= _key_note(pick) if version == 4 else {}
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: body.update({pick.of(sorted(body)): pick.of(VALUES)}),
        lambda: body.pop(pick.of(sorted(body))),
        lambda: body.update(unknown=1),
    ]
    for _ in range(pick.below(3)):
        if body:
            pick.of(changes)()
    raw = seal_state(pick.of(VALUES) if pick.once_in(16) else body, version=pick.of(VALUES) if pick.once_in(8) else version)
    match pick.below(8):
        case 1 | 2:
            return damage_bytes(raw, pick)
        case 3:
            return pick.of(
                [b"[" * 100_000, b'{"format":' * 50_000, b"9" * 5000, b"NaN", raw.replace(b"65536", b"NaN"), b"\xff"]
            )
        case 4:
            return raw.replace(b" ", b"\n")
        case _:
            return raw


DIRTY_FIELDS = {
    "magic": (0, "8s"),
    "version": (8, "H"),
    "header_bytes": (10, "H"),
    "chunk_bytes": (12, "I"),
    "disk_id": (16, "16s"),
    "generation": (32, "Q"),
    "boot_id": (40, "16s"),
    "zero_b": (56, "I"),
    "crc": (60, "I"),
    "state": (64, "I"),
    "zero_c": (68, "B"),
    "newest": (72, "Q"),
    "mtime": (80, "Q"),
    "zero_d": (88, "B"),
    "zero_e": (4095, "B"),
}


def seal_dirty(raw: bytes) -> bytes:
    """Return the same bytes with the right checksum."""
    return raw[:60] + struct.pack("<I", crc32c(raw[:60])) + raw[64:]


def make_dirty(disk_id: str, generation: int, *, version: int = 2, state: int = 0, bits: bytes = b"") -> bytes:
    """Return a ``NAME.dirty``."""
    head = struct.pack("<8sHHI16sQ28xI", b"SRIGDRTY", version, 4096, 65536, uuid.UUID(disk_id).bytes, generation, state)
    head = head[:60] + bytes(4) + struct.pack("<I", state)
    return seal_dirty(head.ljust(4096, b"\0") + bits)


def dirty_file(pick: Choices) -> bytes:
    """Return a ``NAME.dirty``, mostly damaged."""
    version = pick.of([1, 2])
    raw = make_dirty(DISK_ID, 3, version=version, state=pick.of([0, 1, 2, 3, 4, 5, 6]), bits=pick.bytes(pick.below(4)))
    if pick.once_in(2):
        raw = poke(raw, DIRTY_FIELDS, pick)
    if pick.once_in(2):
        raw = seal_dirty(raw)
    return damage_bytes(raw, pick) if pick.once_in(4) else raw


DURABLE_FIELDS = {
    "magic": (0, "8s"),
    "version": (8, "H"),
    "header_bytes": (10, "H"),
    "block_bytes": (12, "I"),
    "boot_id": (16, "16s"),
    "zero_a": (32, "I"),
    "crc": (60, "I"),
    "zero_b": (64, "I"),
    "zero_c": (4095, "B"),
}


def make_durable(boot_id: str, bits: bytes) -> bytes:
    """Return a ``NAME.top.durable``."""
    head = struct.pack("<8sHHI16s", b"SRIGTOPM", 1, 4096, 4096, uuid.UUID(boot_id).bytes)
    return seal_dirty(head.ljust(4096, b"\0") + bits)


def top_maps(pick: Choices, boot_id: str) -> dict[str, bytes]:
    """Return the maps of an overlay, mostly damaged."""
    bits = pick.bytes(4)
    more = bytes(a | b for a, b in zip(bits, pick.bytes(4), strict=True))
    durable = make_durable(pick.of([boot_id, DISK_ID]), bits)
    if pick.once_in(2):
        durable = poke(durable, DURABLE_FIELDS, pick)
        durable = seal_dirty(durable) if pick.once_in(2) else durable
    if pick.once_in(4):
        durable = damage_bytes(durable, pick)
    files = {"os.top.present": pick.of([more, more, bits, more[:3], b"", pick.bytes(4)]), "os.top.durable": durable}
    for name in sorted(files):
        if pick.once_in(8):
            del files[name]
    return files


VHD_FIELDS = {
    "cookie": (0, "8s"),
    "features": (8, "I"),
    "version": (12, "I"),
    "data": (16, "Q"),
    "size": (48, "Q"),
    "type": (60, "I"),
    "checksum": (64, "I"),
    "saved": (84, "B"),
    "reserved": (511, "B"),
}


def seal_vhd(raw: bytes) -> bytes:
    """Return the same bytes with the right checksum in the last 512 bytes."""
    if len(raw) < FOOTER_BYTES:
        return raw
    footer = raw[-FOOTER_BYTES:]
    total = sum(footer) - sum(footer[64:68])
    return raw[:-FOOTER_BYTES] + footer[:64] + struct.pack(">I", ~total & 0xFFFFFFFF) + footer[68:]


def vhd(pick: Choices) -> bytes:
    """Return a fixed VHD, mostly damaged."""
    size = pick.of([512, 1024, 4096])
    footer = fixed_footer(size, DISK_ID)
    if pick.once_in(2):
        # poke() is little endian and the footer big endian; the edge values matter in either byte order
        footer = poke(footer, VHD_FIELDS, pick)
    raw = pick.of([bytes(size), footer.ljust(size, b"\0")[:size]]) + footer
    if pick.once_in(2):
        raw = seal_vhd(raw)
    return damage_bytes(raw, pick) if pick.once_in(3) else raw


def seal_keys(body: object, *, version: object = 1) -> bytes:
    """Return a ``vault.keys`` with the right checksum."""
    crc = crc32c(json.dumps(body, sort_keys=True).encode())
    return json.dumps({"format": version, "crc32c": crc, "keys": body}).encode() + b"\n"


def vault_keys(pick: Choices) -> bytes:
    """Return a ``vault.keys``, mostly damaged."""
    versions: list[dict[str, Any]] = [
        {
            "version": number,
            "secret_hex": pick.bytes(2).hex() * 16,
            "state": pick.of(["Enabled", "Enabled", "Revoked"]),
            "created_ns": number,
            "changed_ns": number + 5,
        }
        for number in range(1, 1 + pick.of([1, 1, 2, 3]))
    ]
    body: dict[str, Any] = {"versions": versions}
    one = pick.of(versions)
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: None,
        lambda: one.update({pick.of(sorted(one)): pick.of([*VALUES, *EDGES])}),
        lambda: one.pop(pick.of(sorted(one))),
        lambda: one.update(unknown=1),
        lambda: one.update(secret_hex=pick.of(["A" * 64, "0" * 63, "0" * 65, "0" * 64 + "\n", "\uff10" * 64])),
        versions.reverse,
        lambda: versions.append(dict(one)),
        lambda: body.update({pick.of(["versions", "unknown"]): pick.of(VALUES)}),
    ]
    for _ in range(pick.below(3)):
        if one:
            pick.of(changes)()
    raw = seal_keys(pick.of(VALUES) if pick.once_in(16) else body, version=pick.of(VALUES) if pick.once_in(8) else 1)
    match pick.below(8):
        case 1 | 2:
            return damage_bytes(raw, pick)
        case 3:
            return pick.of([b"[" * 100_000, b'{"format":' * 50_000, b"9" * 5000, b"NaN", b"\xff", b""])
        case _:
            return raw


SEALED_PART = PartName(DISK_ID, 2, "log", 5, 9)
PART_KEY = DataKey(uuid.UUID(int=77), bytes(range(32)))
ENVELOPE_FIELDS = {
    "magic": (0, "Q"),
    "version": (8, "H"),
    "header_bytes": (10, "H"),
    "key_id": (20, "Q"),
    "nonce": (30, "Q"),
}


def envelope(pick: Choices) -> bytes:
    """Return an envelope, mostly damaged; a damaged header has the right tag, and is refused for its fields."""
    head = struct.pack("<8sHH16s12s", b"SRIGSEAL", 1, 40, PART_KEY.key_id.bytes, pick.bytes(12))
    if pick.once_in(3):
        head = poke(head, ENVELOPE_FIELDS, pick)
    name = pick.of([SEALED_PART, SEALED_PART, SEALED_PART, PartName(OTHER_ID, 2, "log", 5, 9)]).blob()
    secret = bytes(32) if pick.once_in(8) else PART_KEY.secret
    raw = head + AESGCM(secret).encrypt(head[28:40], pick.bytes(pick.below(40)), head + name.encode())
    return damage_bytes(raw, pick) if pick.once_in(3) else raw


BUNDLE_FIELDS = {"magic": (0, "Q"), "version": (8, "H"), "entry_bytes": (10, "H"), "count": (12, "I")}
BUNDLE_ENTRY_FIELDS = {
    "disk": (0, "Q"),
    "generation": (16, "I"),
    "stream": (20, "B"),
    "zeros": (21, "B"),
    "first": (24, "Q"),
    "last": (32, "Q"),
    "offset": (40, "I"),
    "length": (44, "I"),
}


def bundle(pick: Choices) -> bytes:
    """Return a bundle of up to four parts, mostly damaged, often with a right checksum of its index."""
    count = pick.below(5)
    sections = [pick.bytes(1 + pick.below(9)) for _ in range(count)]
    head = struct.pack("<8sHHI", b"SRIGBNDL", 1, 48, count)
    at = len(head) + 48 * count + 4
    for number, section in enumerate(sections):
        disk = uuid.UUID(pick.of([DISK_ID, OTHER_ID])).bytes
        stream, first = pick.of([1, 1, 1, 0]), number + 1
        entry = struct.pack("<16sIB3xQQII", disk, 2, stream, first, first + stream * pick.below(3), at, len(section))
        head += poke(entry, BUNDLE_ENTRY_FIELDS, pick) if pick.once_in(12) else entry
        at += len(section)
    if pick.once_in(8):
        head = poke(head, BUNDLE_FIELDS, pick)
    raw = head + struct.pack("<I", crc32c(head)) + b"".join(sections)
    return damage_bytes(raw, pick) if pick.once_in(3) else raw
