"""Damaged files beside the change log: dm-log-writes logs, a disk's state file."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any

from tests.fuzz.damage import DISK_ID, EDGES, Choices, damage_bytes, poke
from tests.fuzz.strict_log import crc32c

SECTOR = 512
DM_SUPER_FIELDS = {"magic": (0, "Q"), "version": (8, "Q"), "entries": (16, "Q"), "sector": (24, "I")}
DM_ENTRY_FIELDS = {
    "sector": (0, "Q"), "sectors": (8, "Q"), "flags": (16, "Q"), "data_len": (24, "Q"), "data": (32, "B"), "far": (400, "Q"),
}  # fmt: skip


def dm_log(pick: Choices) -> bytes:
    """A dm-log-writes log of up to five entries."""
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
    None, True, False, 0, 1, 1.0, 0.5, -1, 512, "512", "", "raw", "top", [], {}, [512], {"a": 1}, 1e300, "\x1b[2J", "ä",
    OTHER := "6a83da7e-b542-496d-a113-08b9b71d9e22", OTHER.upper(), OTHER.replace("-", ""), *EDGES[-6:], 1 << 80,
]  # fmt: skip


def seal_state(body: object, *, version: object = 1) -> bytes:
    """A state file with the right checksum."""
    crc = crc32c(json.dumps(body, sort_keys=True).encode())
    return json.dumps({"format": version, "crc32c": crc, "disk": body}).encode()


def disk_state(pick: Choices) -> bytes:
    """A ``NAME.disk``."""
    top = pick.once_in(2)
    body: dict[str, Any] = {
        "disk_id": DISK_ID, "size_bytes": 65536, "kind": "top" if top else "raw", "generation": 3,
        "tracked": pick.once_in(2), "needs_resync": pick.of([None, "PowerLoss"]), "store": "/stores/a" if top else None,
        "position": 77 if top else None,
    }  # fmt: skip
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: body.update({pick.of(sorted(body)): pick.of(VALUES)}),
        lambda: body.pop(pick.of(sorted(body))),
        lambda: body.update(unknown=1),
    ]
    for _ in range(pick.below(3)):
        if body:
            pick.of(changes)()
    raw = seal_state(pick.of(VALUES) if pick.once_in(16) else body, version=pick.of(VALUES) if pick.once_in(8) else 1)
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
