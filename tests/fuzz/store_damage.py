"""Damaged files of a managed disk's folder, and damaged records of mounted points."""

from __future__ import annotations

import json
import random
import struct
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.transfer.envelope import DataKey
from tests.fuzz.damage import DISK_ID, OTHER_ID, Choices, damage_bytes, poke
from tests.fuzz.small_damage import VALUES
from tests.fuzz.strict_store import BACK, ENTRY, FRONT, HEADER_BYTES, Frame, crc32c, journal
from tests.support.disks.disk_history import SiteDisk

SIZE_BYTES = 32 * 1024
NUMBERS = [*VALUES, "\0", "\ud800", "x" * 2000, "9" * 5000]


def _damage_json(raw: bytes, pick: Choices) -> bytes:
    match pick.below(8):
        case 1 | 2:
            return damage_bytes(raw, pick)
        case 3:
            return pick.of([b"[" * 100_000, b'{"format":' * 50_000, b"9" * 5000, b"NaN", b"\xff", b"[]", b""])
        case _:
            return raw


def _changed(body: dict[str, Any], pick: Choices) -> dict[str, Any]:
    changes: list[Callable[[], object]] = [
        lambda: None,
        lambda: body.update({pick.of(sorted(body)): pick.of(NUMBERS)}),
        lambda: body.update({pick.of(sorted(body)): pick.of(NUMBERS)}),
        lambda: body.pop(pick.of(sorted(body))),
        lambda: body.update({pick.of(["unknown", "\x1b[2J", "\n"]): 1}),
    ]
    for _ in range(pick.below(3)):
        if body:
            pick.of(changes)()
    return body


# --- disk.json, progress, pins --------------------------------------------------------------------------------------


def seal_meta(body: dict[str, Any]) -> bytes:
    """Return the document with the right checksum."""
    crc = f"{crc32c(json.dumps(body, sort_keys=True).encode()):08x}"
    return json.dumps({**body, "crc32c": crc}, sort_keys=True, indent=1).encode() + b"\n"


def meta(pick: Choices) -> tuple[str, bytes]:
    """Return a kind of document and such a document, mostly damaged."""
    kind = pick.of(["disk.json", "progress", "pin"])
    body: dict[str, Any]
    version = 2
    match kind:
        case "disk.json":
            body = {"disk_id": DISK_ID, "size_bytes": 65536, "created_ns": 5}
            if pick.once_in(2):
                version = 3
            if pick.once_in(8) != (version == 3):
                body["key_id"] = pick.of([OTHER_ID, OTHER_ID, None])
        case "progress":
            body = {"generation": 1, "sync_parts": 2, "first_position": 40, "complete": not pick.once_in(3), "fold": None}
            done = {
                "position": 50,
                "time_ns": 500,
                "first_seq": 3,
                "log_seq": 9,
                "log_position": 70,
                "log_time_ns": 700,
                "frame": 2,
                "floor": 70,
                "floor_time_ns": 700,
                "size_bytes": 65536,
            }
            body |= done if body["complete"] else dict.fromkeys(done, 0)
            body["opened"] = _changed({"boot": OTHER_ID, "frame": pick.below(4)}, pick)
            if pick.once_in(3):
                body["fold"] = _changed({"frame": 4, "position": 90}, pick)
        case _:
            body = {"pin_id": OTHER_ID, "position": 60, "holder": "vm web01/os", "created_ns": 7}
    return kind, _damage_json(seal_meta(_changed({"format": version, **body}, pick)), pick)


# --- recovery/VM/NAME.json ------------------------------------------------------------------------------------------


def seal_note(body: object, *, version: object = 1) -> bytes:
    """Return the record with the right checksum."""
    crc = crc32c(json.dumps(body, sort_keys=True).encode())
    return json.dumps({"format": version, "crc32c": crc, "recovery": body}).encode()


def note(pick: Choices) -> bytes:
    """Return the record of the mounted point ``web01/now``, mostly damaged."""
    version = pick.of([1, 2, 3])
    store = {"store": "/disks/a"} if version < 3 else {}
    sources = [
        {"name": "os", "disk_id": DISK_ID, **store},
        {"name": "data", "disk_id": pick.of([DISK_ID, OTHER_ID]), **store},
    ][: pick.below(3)]
    if sources and pick.once_in(2):
        _changed(sources[0], pick)
    made: dict[str, object] = {"vm": "web01", "name": "now", "position": 77, "disks": sources}
    if pick.once_in(2):
        made["time_ns"] = pick.of([None, 5])
    body = _changed(made, pick)
    return _damage_json(seal_note(body, version=pick.of(NUMBERS) if pick.once_in(8) else version), pick)


# --- base.map, intent -----------------------------------------------------------------------------------------------

MAP_FIELDS = {
    "magic": (0, "8s"),
    "version": (8, "I"),
    "crc": (12, "I"),
    "count": (16, "Q"),
    "one": (24, "Q"),
    "two": (32, "Q"),
    "three": (40, "Q"),
    "row": (48, "Q"),
    "row_length": (56, "Q"),
    "next": (64, "Q"),
    "next_length": (72, "Q"),
}


def seal_map(raw: bytes) -> bytes:
    """Return a ``base.map`` or ``intent`` with the right checksum."""
    if len(raw) < 48:
        return raw
    start = crc32c(raw[24:48]) if raw[:8] == b"SRIGINT\0" else struct.unpack_from("<Q", raw, 16)[0] & 0xFFFFFFFF
    return raw[:12] + struct.pack("<I", crc32c(raw[48:], start)) + raw[16:]


def _damage_map(raw: bytes, pick: Choices) -> bytes:
    for _ in range(pick.below(3)):
        raw = poke(raw, MAP_FIELDS, pick)
    if pick.once_in(3):
        raw = damage_bytes(raw, pick)
    return seal_map(raw) if pick.once_in(2) else raw


def base_map(pick: Choices) -> bytes:
    """Return a ``base.map``, mostly damaged."""
    rows, at = b"", 0
    count = pick.below(4)
    for _ in range(count):
        at += 4096 * pick.below(4)
        length = 4096 * (1 + pick.below(3))
        rows += struct.pack("<QQ", at, length)
        at += length
    return _damage_map(seal_map(struct.pack("<8sIIQ24x", b"SRIGMAP\0", 2, 0, count) + rows), pick)


def intent(pick: Choices) -> bytes:
    """Return an ``intent`` for the compaction up to frame 3 (or another one), of a base of 8 blocks less 512 bytes."""
    count = pick.below(4)
    whose = pick.of([(3, 0, 0), (3, 0, 0), (4, 0, 0), (0, 1, 2)])
    rows = b"".join(struct.pack("<Q", 4096 * (2 * at + 1)) + bytes([at + 1]) * 4096 for at in range(count))
    return _damage_map(seal_map(struct.pack("<8sIIQQQQ", b"SRIGINT\0", 2, 0, count, *whose) + rows), pick)


# --- a managed disk, its journal files, its checkpoints -------------------------------------------------------------------


@dataclass(frozen=True)
class Good:
    """The files of a good managed disk by name, and the id of the disk."""

    files: dict[str, bytes] = field(repr=False)
    disk_id: str
    key: DataKey | None = None


STORES = 3
KEY = DataKey(uuid.UUID(int=9), bytes(range(64)))
"""The key of the last of the managed disks; the others are not encrypted."""


@cache
def good_store(seed: int) -> Good:
    """Return a managed disk with a few frames in two or three journal files, and two checkpoints."""
    with tempfile.TemporaryDirectory() as name, mock.patch("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 9000):
        disk = SiteDisk(Path(name), random.Random(seed), data=bytearray(SIZE_BYTES))
        for at in range(0, SIZE_BYTES, 9000):
            disk.write(at, disk.rng.randbytes(5000))
        folder, key = Path(name) / "store", KEY if seed == STORES - 1 else None
        store = ManagedDiskStore.create(folder, disk_id=disk.disk_id, size_bytes=SIZE_BYTES, created_ns=1, key=key)
        for part in disk.sync():
            store.apply_part(*part)
        for number in range(4):
            for _ in range(disk.rng.randrange(1, 4)):
                offset = disk.rng.randrange(SIZE_BYTES - 3000)
                if disk.rng.random() < 0.8:
                    disk.write(offset, disk.rng.randbytes(disk.rng.randrange(1, 3000)))
                else:
                    disk.zero(offset, 2000)
            if number == 2:
                disk.resize(SIZE_BYTES + 4096)
            disk.tag(f"tag {number}")
            store.apply_part(*disk.close_log())
            if number in (1, 2):
                with mock.patch.object(checkpoints, "RECORDS_MIN", 0), mock.patch.object(store.compactor, "_extents", 0):
                    store.compactor.checkpoint()
        store.close()
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return Good(files, disk.disk_id, key)


def journal_files_of(files: dict[str, bytes]) -> dict[int, bytes]:
    """Return the journal files by number."""
    return {int(name[8:20]): raw for name, raw in files.items() if name.endswith(".journal")}


HEADER_FIELDS = {
    "magic": (0, "8s"),
    "version": (8, "H"),
    "header_bytes": (10, "H"),
    "stream": (12, "B"),
    "sync_end": (13, "B"),
    "zero_a": (14, "H"),
    "disk_id": (16, "16s"),
    "number": (32, "Q"),
    "start": (40, "Q"),
    "generation": (48, "Q"),
    "first": (56, "Q"),
    "last": (64, "Q"),
    "first_position": (72, "Q"),
    "position": (80, "Q"),
    "first_time": (88, "Q"),
    "time": (96, "Q"),
    "size": (104, "Q"),
    "sync_end_seq": (112, "Q"),
    "segment": (120, "Q"),
    "entries": (128, "I"),
    "pieces": (132, "I"),
    "tags": (136, "I"),
    "records": (140, "I"),
    "segment_crc": (144, "I"),
    "index_crc": (148, "I"),
    "tags_crc": (152, "I"),
    "zero_b": (156, "I"),
    "zero_c": (168, "I"),
    "crc": (172, "I"),
}
ENTRY_FIELDS = {
    "position": (0, "Q"),
    "time": (8, "Q"),
    "offset": (16, "Q"),
    "length": (24, "Q"),
    "payload_at": (32, "Q"),
    "first_piece": (40, "I"),
    "type": (44, "I"),
}


def _seal_header(raw: bytes, magic: bytes) -> bytes:
    raw = magic + raw[8:172]
    return raw + struct.pack("<I", crc32c(raw))


Pieces = list[bytes]
"""The pieces of a frame: header, segment, padding, entries, checksums of pieces, tags, padding, copy of the header."""


def _pieces_of(frame: Frame, journal_file: bytes) -> Pieces:
    cuts = [
        frame.start,
        frame.segment[0],
        frame.segment[1],
        frame.index[0],
        frame.pieces_at,
        frame.index[1],
        frame.tags[1],
        frame.end - HEADER_BYTES,
        frame.end,
    ]
    return [journal_file[start:stop] for start, stop in pairwise(cuts)]


def _seal_frame(pieces: Pieces) -> None:
    """Set the checksums to those of the present bytes, and make the copy of the header equal to it."""
    crcs = struct.pack("<III", crc32c(pieces[1]), crc32c(pieces[3] + pieces[4]), crc32c(pieces[5]))
    head = pieces[0][:144] + crcs + pieces[0][156:]
    pieces[0], pieces[7] = _seal_header(head, FRONT), _seal_header(head, BACK)


def _flip(raw: bytes, pick: Choices) -> bytes:
    if not raw:
        return raw
    at = pick.below(len(raw))
    return raw[:at] + bytes([raw[at] ^ 1 << pick.below(8)]) + raw[at + 1 :]


def _damage_frame(pieces: Pieces, pick: Choices) -> None:
    match pick.of(["header", "header", "copy", "both", "segment", "entry", "entry", "piece", "tags", "zeros"]):
        case "header":
            pieces[0] = poke(pieces[0], HEADER_FIELDS, pick)
        case "copy":
            pieces[7] = poke(pieces[7], HEADER_FIELDS, pick)
        case "both":
            pieces[0] = poke(pieces[0], HEADER_FIELDS, pick)
            pieces[7] = BACK + pieces[0][8:] if pick.once_in(2) else _flip(pieces[7], pick)
        case "segment":
            pieces[1] = _flip(pieces[1], pick)
        case "entry" if pieces[3]:
            at = ENTRY.size * pick.below(len(pieces[3]) // ENTRY.size)
            pieces[3] = (
                pieces[3][:at] + poke(pieces[3][at : at + ENTRY.size], ENTRY_FIELDS, pick) + pieces[3][at + ENTRY.size :]
            )
        case "piece":
            pieces[4] = _flip(pieces[4], pick)
        case "tags":
            pieces[5] = pick.of([_flip(pieces[5], pick), b"[" * len(pieces[5]), b"\x80" * len(pieces[5])])
        case _:
            pieces[0], pieces[7] = bytes(HEADER_BYTES), pick.of([pieces[7], bytes(HEADER_BYTES)])


def store(pick: Choices) -> tuple[Good, dict[str, bytes]]:
    """Return a good managed disk, and its files with a damaged journal and without checkpoints."""
    good = good_store(pick.below(STORES))
    files = {name: raw for name, raw in good.files.items() if not name.startswith("checkpoints/")}
    journal_files = journal_files_of(files)
    frames = [
        (frame.journal_file, _pieces_of(frame, journal_files[frame.journal_file]))
        for frame in journal(journal_files, good.disk_id).frames
    ]
    if pick.once_in(2):
        note = {"boot": pick.of([OTHER_ID, current_boot_id()]), "frame": pick.of([0, 0, pick.below(len(frames) + 2)])}
        body = {**json.loads(files["progress"]), "opened": note}
        del body["crc32c"]
        files["progress"] = seal_meta(body)
    for _ in range(pick.of([0, 1, 1, 2, 2, 3])):
        _, pieces = pick.of(frames)
        _damage_frame(pieces, pick)
        if pick.once_in(2):
            _seal_frame(pieces)
    match pick.below(12):
        case 1 if len(frames) > 1:
            del frames[pick.below(len(frames))]
        case 2:
            at, other = pick.below(len(frames)), pick.below(len(frames))
            frames[at] = (frames[at][0], list(frames[other][1]))
        case 3:
            frames.append((frames[-1][0], list(pick.of(frames)[1])))
        case _:
            pass
    done: dict[int, bytes] = dict.fromkeys(journal_files, b"")
    for journal_file, pieces in frames:
        done[journal_file] += b"".join(pieces)
    if pick.once_in(4):
        which = pick.of(sorted(done))
        raw, at = done[which], pick.below(65536)
        done[which] = pick.of(
            [raw[: at % (len(raw) + 1)], raw + bytes(at % 300), raw + raw[: at % 300], damage_bytes(raw, pick)]
        )
    if pick.once_in(16):
        del done[pick.of(sorted(done))]
    files = {name: raw for name, raw in files.items() if not name.endswith(".journal")}
    return good, files | {f"journal/{number:012d}.journal": raw for number, raw in done.items()}


CHECKPOINT_FIELDS = {
    "magic": (0, "8s"),
    "version": (8, "I"),
    "journal_files": (12, "I"),
    "disk_id": (16, "16s"),
    "frame": (32, "Q"),
    "frame_crc": (40, "I"),
    "zero": (44, "I"),
    "size": (48, "Q"),
    "bytes": (56, "Q"),
    "crc_rest": (64, "I"),
    "crc": (68, "I"),
    "journal_file": (72, "Q"),
    "journal_file_b": (80, "Q"),
}
EXTENT_FIELDS = {
    "start": (0, "Q"),
    "end": (8, "Q"),
    "offset": (16, "Q"),
    "piece": (24, "Q"),
    "source": (32, "I"),
    "before": (36, "H"),
    "after": (38, "H"),
}


def seal_checkpoint(raw: bytes) -> bytes:
    """Return the checkpoint with the right checksums."""
    if len(raw) < 72:
        return raw
    raw = raw[:64] + struct.pack("<I", crc32c(raw[72:])) + raw[68:]
    return raw[:68] + struct.pack("<I", crc32c(raw[:68])) + raw[72:]


def checkpoint(pick: Choices) -> tuple[Good, dict[str, bytes]]:
    """Return a good managed disk, and its files with one damaged checkpoint."""
    good = good_store(pick.below(STORES))
    files = dict(good.files)
    name = pick.of(sorted(name for name in files if name.startswith("checkpoints/")))
    raw = files[name]
    rows_at = 72 + 8 * struct.unpack_from("<I", raw, 12)[0]
    for _ in range(pick.below(3)):
        if pick.once_in(2):
            raw = poke(raw, CHECKPOINT_FIELDS, pick)
        else:
            at = rows_at + 40 * pick.below((len(raw) - rows_at) // 40)
            raw = raw[:at] + poke(raw[at : at + 40], EXTENT_FIELDS, pick) + raw[at + 40 :]
    if pick.once_in(4):
        raw = damage_bytes(raw, pick)
    files[name] = seal_checkpoint(raw) if pick.once_in(2) else raw
    if pick.once_in(8):
        names = sorted(name for name in files if name.startswith("checkpoints/"))
        files[names[0]], files[names[1]] = files[names[1]], files[names[0]]
    return good, files
