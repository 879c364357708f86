"""Readers of a managed disk's files and of mounted points' records, each compared with the strict one of its format page."""

from __future__ import annotations

import json
import os
import struct
import uuid
from collections.abc import Collection
from pathlib import Path

from structlog.testing import capture_logs

from siterig.azure_emu.contracts.recovery_side import Pin
from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.base_image import IntentOwner, read_map, redo_intent, unpack_map
from siterig.azure_emu.disks.checkpoints import BadCheckpointError
from siterig.azure_emu.disks.loader import load_history
from siterig.azure_emu.disks.metadata import PROGRESS, DiskMeta, Progress, read_meta
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view import open_disk
from siterig.azure_emu.disks.view_provider import ManagedDiskViews
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.core.boot import current_boot_id
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.views import PlainViews
from siterig.blockfs.host.mounted_points import MountedPoints
from siterig.blockfs.layers.layer import Layer, RawLayer
from tests.fuzz import strict_store as strict
from tests.fuzz.damage import DISK_ID
from tests.fuzz.log_targets import assert_clear
from tests.fuzz.store_damage import Good, journal_files_of
from tests.fuzz.strict_log import RESIZE
from tests.fuzz.strict_store import BLOCK, ENTRY, BadStoreError, Frame, Picture, crc32c, need

VIEW_BYTES_MAX = 1 << 20
"""The largest disk that is compared byte by byte."""
REFUSED = {"StoreCorrupt", "InvalidPosition"}

# --- disk.json, progress, pins --------------------------------------------------------------------------------------

KINDS: dict[str, type[WireModel]] = {"disk.json": DiskMeta, "progress": Progress, "pin": Pin}


def meta(kind: str, raw: bytes, folder: Path) -> str:
    """Compare ``read_meta`` with the strict reader."""
    path = folder / kind
    path.write_bytes(raw)
    try:
        want = strict.meta(raw, kind)
    except BadStoreError:
        want = None
    try:
        got = read_meta(path, KINDS[kind])
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"StoreCorrupt", "StoreVersion"}, path)
        return error.code
    assert want is not None, "the reader accepted a bad file"
    assert got.model_dump() == want
    return f"good {kind}"


# --- recovery/VM/NAME.json: docs/reference/formats/disk.md ----------------------------------------------------------


def _is_text(value: object) -> bool:
    return (
        isinstance(value, str)
        and value != ""
        and not any("\ud800" <= char < "\ue000" or char < " " or char == "\x7f" for char in value)
    )


def _strict_note(raw: bytes) -> list[dict[str, str]]:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadStoreError("no JSON") from None
    need(isinstance(document, dict) and document.keys() == {"format", "crc32c", "recovery"}, "keys")
    body, crc, version = document["recovery"], document["crc32c"], document["format"]
    need(type(version) is int and version in (1, 2, 3), "version")
    need(type(crc) is int and crc == crc32c(json.dumps(body, sort_keys=True).encode()), "checksum")
    keys = {"vm", "name", "position", "disks"}
    need(isinstance(body, dict) and keys <= body.keys() <= keys | {"time_ns"}, "keys")
    need(body.get("time_ns") is None or strict.whole(body["time_ns"]), "time")
    need((body["vm"], body["name"]) == ("web01", "now"), "of another file")
    need(strict.whole(body["position"]) and isinstance(body["disks"], list), "position, disks")
    keys = {"name", "disk_id"} | ({"store"} if version < 3 else set())
    for each in body["disks"]:
        need(isinstance(each, dict) and each.keys() - {"sector_bytes"} == keys, "keys of a disk")
        need(type(each.get("sector_bytes", 512)) is int and each.get("sector_bytes", 512) in (512, 4096), "sector size")
        need(strict.is_uuid(each["disk_id"]) and _is_text(each.get("store", "x")), "a disk")
        need(_is_text(each["name"]) and "/" not in each["name"], "a disk's name")
    return list(body["disks"])


class _Views(PlainViews):
    """The managed disk ``DISK_ID``; for all others the folder is searched as on a recovery side."""

    def __init__(self, folder: Path) -> None:
        self.held: Collection[str] | None = None
        self._folder = folder
        (folder / "image").write_bytes(bytes(4096))
        self._real = ManagedDiskViews(folder / "disks")

    def open(self, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
        if managed_disk != DISK_ID:
            return self._real.open(managed_disk, position, holder)
        return RawLayer(self._folder / "image", writable=False)

    def release(self, managed_disk: str, holder: str) -> None:
        self._real.release(managed_disk, holder)

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        self.held = holders


def note(raw: bytes, folder: Path) -> str:
    """Open a record with ``MountedPoints``: a file that cannot be read is one broken state that keeps its pins."""
    path = folder / "recovery" / "web01" / "now.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)
    views, positions = _Views(folder), PositionCounter(None)
    try:
        want = _strict_note(raw)
    except BadStoreError:
        want = None
    try:
        with capture_logs():
            mounted_points = MountedPoints(
                folder / "recovery", folder / "mount", views=views, options=DiskOptions(positions)
            )
        (info,) = mounted_points.infos(None)
        mounted_points.end()
    finally:
        positions.close()
    assert (info.vm, info.name) == ("web01", "now")
    assert info.broken is None or info.broken.isprintable(), info.broken
    if want is None:
        assert info.broken is not None, "the reader accepted a bad file"
        assert str(path) in info.broken, info.broken
        assert len(info.broken) < 1000
        assert views.held is None, "the pins of the broken state would be released"
        return "not read"
    if all(disk["disk_id"] == DISK_ID for disk in want) and len({disk["name"] for disk in want}) == len(want):
        assert info.broken is None, info.broken
        assert [(disk.name, disk.disk_id) for disk in info.disks] == [(disk["name"], disk["disk_id"]) for disk in want]
        return "good"
    return "good, not opened" if info.broken else "good, opened"


# --- base.map, intent -----------------------------------------------------------------------------------------------


def base_map(raw: bytes, folder: Path) -> str:
    """Compare ``read_map`` with the strict reader."""
    path = folder / "base.map"
    path.write_bytes(raw)
    try:
        want = strict.base_map(raw)
    except BadStoreError:
        want = None
    try:
        got = unpack_map(read_map(folder))
    except RigError as error:
        assert want is None, error.message
        assert_clear(error, {"StoreCorrupt"}, path)
        return error.code
    assert want is not None, "the reader accepted a bad file"
    assert got == want
    return "good"


def intent(raw: bytes, folder: Path) -> str:
    """Compare ``redo_intent`` of the compaction up to frame 3 with the strict reader."""
    path, before = folder / "intent", bytes(range(256)) * 128
    before = before[:-512]
    (folder / "base.img").write_bytes(before)
    (folder / "base.sums").write_bytes(bytes(64))
    path.write_bytes(raw)
    try:
        whose, want = strict.intent(raw)
        need(whose != (3, 0, 0) or all(offset < len(before) for offset in want), "beyond the base")
    except BadStoreError:
        whose, want = None, {}
    try:
        redo_intent(folder, IntentOwner(frame=3))
    except RigError as error:
        assert whose is None, error.message
        assert_clear(error, {"StoreCorrupt"}, path)
        assert (folder / "base.img").read_bytes() == before
        return error.code
    assert whose is not None, "the reader accepted a bad file"
    if whose != (3, 0, 0):
        want = {}
    expected = bytearray(before)
    for offset, data in want.items():
        expected[offset : offset + BLOCK] = data[: len(before) - offset]
        assert (folder / "base.sums").read_bytes()[offset // 512 + 4 :][:4] == struct.pack("<I", crc32c(data))
    assert (folder / "base.img").read_bytes() == expected
    return "good" if want else "nothing to do"


# --- the journal ----------------------------------------------------------------------------------------------------


def _write(files: dict[str, bytes], folder: Path) -> Path:
    store = folder / str(uuid.UUID(int=7))
    for name, raw in {"lock": b"", **files}.items():
        path = store / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    for name in ("pins", "checkpoints", "journal"):
        (store / name).mkdir(exist_ok=True)
    return store


class _Expected:
    """The expected frames in the order of application, and their indexes."""

    def __init__(self, good: Good, files: dict[str, bytes]) -> None:
        self.files, self.journal_files, self.good = files, journal_files_of(files), good
        self.progress = strict.meta(files["progress"], "progress")
        opened = self.progress["opened"]
        assert isinstance(opened, dict)
        power_lost = opened["boot"] != current_boot_id()
        self.journal = strict.journal(self.journal_files, good.disk_id, counted=opened["frame"], power_lost=power_lost)
        was = journal_files_of(good.files)
        self._was = {frame.number: frame for frame in strict.journal(was, good.disk_id).frames}
        self._was_journal_files = was
        self.frames: list[Frame] = []
        self.another_generation = False
        seq, position = int(str(self.progress["first_seq"])), 0
        for frame in self.journal.frames:
            if frame.generation > 1 and frame.stream == 1 and frame.seqs == (1, 1):
                self.another_generation = True  # the next frames belong to a resync and are not compared
                return
            first, last = frame.positions
            in_order = frame.seqs[0] == seq <= frame.seqs[1] and position <= first <= last
            if frame.generation != 1 or frame.stream != 0 or not in_order:
                self.journal.stop, self.journal.at = "broken", (frame.journal_file, frame.start)
                return
            seq, position = frame.seqs[1] + 1, last
            self.frames.append(frame)

    def index(self, frame: Frame) -> bytes | None:
        """Return the entries of the index, or None if the index must be refused."""
        raw = self.journal_files[frame.journal_file]
        index = raw[slice(*frame.index)]
        if crc32c(index) == frame.crcs[1]:
            return index[: frame.pieces_at - frame.index[0]]
        return None

    def rebuilt(self, frame: Frame) -> bytes | None:
        """The index rebuilt from the segment, which a power loss may have spared (docs: managed-disk.md)."""
        return strict.made_index(self.journal_files[frame.journal_file], frame)

    def tags_before(self, frame: Frame) -> bytes | None:
        was = self._was.get(frame.number)
        return None if was is None else self._was_journal_files[was.journal_file][slice(*was.tags)]

    @property
    def says_otherwise(self) -> bool:
        """Return True if a header differs from the original: then it may contradict its segment, and no index is rebuilt."""
        return any(
            frame.number not in self._was or frame.raw[48:120] != self._was[frame.number].raw[48:120]
            for frame in self.frames
        )

    def base(self, size: int) -> Picture:
        picture = Picture(size)
        picture.base(strict.base_map(self.files["base.map"]), self.files["base.img"], self.files["base.sums"])
        return picture

    @property
    def valid(self) -> tuple[int, int]:
        snapshot = int(str(self.progress["position"]))
        last = self.frames[-1].positions[1] if self.frames else 0
        return snapshot, max(last, snapshot)


def _picture(want: _Expected, position: int) -> tuple[Picture | None, bool]:
    """Return the disk at a position (None: it must be refused), and whether it may be refused for an invalid entry."""
    size, odd = int(str(want.progress["size_bytes"])), False
    rows: list[tuple[Frame, bytes, tuple[int, ...]]] = []
    for frame in want.frames:
        if frame.positions[0] > position:
            break
        entries, journal_file, whole = (
            want.index(frame),
            want.journal_files[frame.journal_file],
            frame.positions[1] <= position,
        )
        if entries is None:
            index = want.rebuilt(frame)
            if index is None:
                return None, True
            odd |= want.says_otherwise
            entries = index[: frame.pieces_at - frame.index[0]]
            journal_file = journal_file[: frame.index[0]] + index + journal_file[frame.index[1] :]
        if whole:
            size = frame.size_after
        for row in ENTRY.iter_unpack(entries):
            odd |= strict.odd(row, frame)
            if int(str(want.progress["first_position"])) < row[0] <= (1 << 64 if whole else position):
                rows.append((frame, journal_file, row))
                if row[6] == RESIZE and not whole:
                    size = row[3]
    if size > VIEW_BYTES_MAX:
        return Picture(0), True
    picture = want.base(size)
    for frame, journal_file, row in rows:
        picture.entry(journal_file, frame, row)
    return picture, odd


def _compare(view: Layer, picture: Picture, *, may_fail: bool = False) -> None:
    """Check that each block is right, or fails exactly if a visible piece of it does not match its checksum.

    Args:
        may_fail: headers or indexes contradict their segments with right checksums, so that more blocks may fail.
    """
    assert view.size_bytes == len(picture.data)
    for at in range(0, len(picture.data), BLOCK):
        length = min(BLOCK, len(picture.data) - at)
        try:
            data = view.pread(at, length)
        except OSError:
            assert may_fail or any(picture.bad[at : at + length]), f"block at {at} can be read"
        else:
            assert not any(picture.bad[at : at + length]), f"block at {at} was served"
            assert data == picture.data[at : at + length], f"block at {at}"


def _views(store: Path, want: _Expected) -> bool:
    """Compare views at the end of each frame and at one position within it; return True if a view was refused."""
    refused = False
    asked = {want.valid[0]}
    for frame in want.frames:
        asked |= {frame.positions[1], sum(frame.positions) // 2}
    for position in sorted(asked):
        picture, may = _picture(want, position)
        try:
            view = open_disk(store, position, want.good.key)
        except RigError as error:
            assert picture is None or may or not want.valid[0] <= position <= want.valid[1], error.message
            assert_clear(error, REFUSED, store, Path(want.good.disk_id))
            refused = True
            continue
        try:
            assert picture is not None, f"position {position} was opened"
            assert want.valid[0] <= position <= want.valid[1]
            if want.good.key is not None:
                picture.data = bytearray(strict.decrypted(bytes(picture.data), want.good.key.secret))
            if picture.data:
                _compare(view, picture, may_fail=may or want.says_otherwise)
        finally:
            view.close()
    return refused


def store(good: Good, files: dict[str, bytes], folder: Path) -> str:
    """Compare ``load_history``, ``open_view`` at all positions, ``ManagedDiskStore.open``, and all positions again."""
    path, want = _write(files, folder), _Expected(good, files)
    with capture_logs():
        loaded = load_history(path)
        found = [(frame.journal_file, frame.start, frame.number) for frame in loaded.history.frames]
        expected = [(frame.journal_file, frame.start, frame.number) for frame in want.frames]
        if want.another_generation:
            assert found[: len(expected)] == expected
            return "another generation"
        assert found == expected
        state = "broken" if loaded.journal.broken else "torn" if loaded.journal.torn else "end"
        assert state == want.journal.stop, (state, want.journal.stop, loaded.journal.broken)
        refused = _views(path, want)
        try:
            opened = ManagedDiskStore.open(path, key=good.key)
        except RigError as error:
            indexes = [want.index(frame) or want.rebuilt(frame) for frame in want.frames]
            tags = [_tags_sound(want, frame) for frame in want.frames]
            made_again = want.says_otherwise and None in map(want.index, want.frames)
            assert state == "broken" or None in indexes or not all(tags) or made_again, error.message
            assert_clear(error, {"StoreCorrupt"}, path)
            return f"{state}, not opened"
        assert state != "broken"
        opened.close()
        journal_file, end = want.journal.at
        if journal_file:
            assert (path / f"journal/{journal_file:012d}.journal").stat().st_size == end
        assert not load_history(path).journal.repaired
        now = [path / PROGRESS, *path.glob("journal/*")]
        again = _Expected(good, files | {str(each.relative_to(path)): each.read_bytes() for each in now})
        assert [frame.raw for frame in again.frames] == [frame.raw for frame in want.frames]
        assert again.progress["opened"]["boot"] == current_boot_id()  # type: ignore[index]
        assert _views(path, again) == refused
    return f"{state}, opened{', some refused' if refused else ''}"


def _tags_sound(want: _Expected, frame: Frame) -> bool:
    """Return True if the tags are unchanged; others may have to be rebuilt, which may not be possible."""
    return want.journal_files[frame.journal_file][slice(*frame.tags)] == want.tags_before(frame) and not want.says_otherwise


# --- checkpoints ----------------------------------------------------------------------------------------------------


def _strict_checkpoint(raw: bytes, disk_id: str, frame: Frame) -> tuple[list[int], list[tuple[int, ...]]]:
    need(len(raw) >= 72 and crc32c(raw[:68]) == struct.unpack_from("<I", raw, 68)[0], "checksum of the header")
    magic, version, journal_files, disk, number, crc, zero, size, count, rest = struct.unpack_from("<8sII16sQIIQQI", raw)
    rows_at = 72 + 8 * journal_files
    need((magic, version, disk, zero) == (b"SRIGCKP\0", 2, uuid.UUID(disk_id).bytes, 0), "of another disk")
    need((number, crc, size) == (frame.number, crc32c(frame.raw), frame.size_after), "of another frame")
    need(len(raw) == rows_at + count and count % 40 == 0 and crc32c(raw[72:]) == rest, "length, checksum")
    named = list(struct.unpack_from(f"<{journal_files}Q", raw, 72))
    need(len(set(named)) == len(named) and all(0 < each <= frame.journal_file for each in named), "journal_files")
    rows, end = list(struct.iter_unpack("<QQQQiHH", raw[rows_at:])), 0
    for start, stop, offset, piece, source, before, after in rows:
        need(end <= start < stop <= strict.NUMBER_MAX and -1 <= source <= journal_files and source, "an extent")
        need(source > 0 or (offset, piece, before, after) == (0, 0, 0, 0), "zeros")
        need(max(offset + stop - start, piece) <= strict.NUMBER_MAX, "beyond any file")
        need(before <= min(offset, start % BLOCK) and after <= -stop % BLOCK, "what is not shown")
        end = stop
    return named, rows


def _lay(picture: Picture, journal_files: dict[int, bytes], named: list[int], rows: list[tuple[int, ...]]) -> None:
    for start, stop, offset, piece, source, before, after in rows:
        if source == -1:
            picture.put(start, bytes(max(0, min(stop, len(picture.data)) - start)))
            continue
        journal_file = journal_files.get(named[source - 1])
        if journal_file is None:
            continue  # the file was compacted, so the base is visible
        at, number = start, piece
        while at < min(stop, len(picture.data)):
            end = min(at - at % BLOCK + BLOCK, stop)
            first, last = at - (before if at == start else 0), end + (after if end == stop else 0)
            data = journal_file[max(0, offset + first - start) : offset + last - start]
            fits = len(data) == last - first and journal_file[4 * number : 4 * number + 4] == struct.pack("<I", crc32c(data))
            picture.put(at, data[at - first :][: end - at].ljust(end - at, b"\0"), bad=not fits)
            at, number = end, number + 1


def checkpoint(good: Good, files: dict[str, bytes], folder: Path) -> str:
    """Compare ``checkpoints.load`` and views that use checkpoints; a bad checkpoint must be ignored."""
    path, want = _write(files, folder), _Expected(good, files)
    outcome = set()
    sound: dict[int, tuple[list[int], list[tuple[int, ...]]]] = {}
    with capture_logs():
        loaded = load_history(path)
        for number in checkpoints.list_checkpoints(path):
            frame = want.frames[number - 1]
            try:
                strictly = _strict_checkpoint(files[f"checkpoints/{number:012d}.extents"], good.disk_id, frame)
            except BadStoreError:
                strictly = None
            try:
                checkpoints.load(path, good.disk_id, loaded.history.frames[number - 1])
            except BadCheckpointError as bad:
                assert strictly is None, str(bad)
                assert str(bad).isprintable()
                outcome.add("passed over")
            else:
                assert strictly is not None, "the reader accepted a bad file"
                sound[number] = strictly
                outcome.add("good")
        for frame in want.frames:
            position = frame.positions[1]
            newest = max((number for number in sound if number <= frame.number), default=0)
            picture = want.base(frame.size_after)
            if newest:
                _lay(picture, want.journal_files, *sound[newest])
            for each in want.frames[newest : frame.number]:
                for row in ENTRY.iter_unpack(want.index(each) or b""):
                    picture.entry(want.journal_files[each.journal_file], each, row)
            if good.key is not None:
                picture.data = bytearray(strict.decrypted(bytes(picture.data), good.key.secret))
            view = open_disk(path, position, good.key)
            try:
                _compare(view, picture)
            finally:
                view.close()
    assert os.path.lexists(path)
    return " and ".join(sorted(outcome))
