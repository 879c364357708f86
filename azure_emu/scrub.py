"""Scrubbing: every byte of a managed disk's folder is read and compared with its checksum.

Fault contract: it changes nothing, and runs beside an applier that applies and folds, in any process.  What is not as it was
written is told of by file and byte, with the positions that are not whole because of it: damage of a payload or of the
base from its record (or the floor) on, until something else was written over it; damage of what can be made again, none.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from azure_emu import checkpoints
from azure_emu.base import BASE, INTENT, MAP, PAIR, SUMS, check_intent, read_map, sums_bytes, unpack_map
from azure_emu.checkpoints import BadCheckpointError
from azure_emu.disk_meta import DISK_META, PROGRESS, read_meta
from azure_emu.frames import ENTRY, HEADER_BYTES, Frame, encode_header
from azure_emu.journal_volume import JOURNAL, Torn, read_index, volume_path
from azure_emu.pins import LOCK, PINS
from azure_emu.ports import Damage, Pin
from azure_emu.store_history import Loaded, load_history
from blockfs.base_image import BLOCK_BYTES, bad_blocks
from blockfs.changelog import RecordType
from blockfs.errors import RigError
from blockfs.part_index import PIECE_BYTES, index_segment
from cext.hashing import crc32c, is_zero

Advance = Callable[[int], None]
"""Told how many bytes were read since it was last told."""

TORN_WAIT_S = 0.02
"""A frame that is being written is longer when it is looked at again."""
_STEP_BLOCKS = 4096
_KNOWN = {BASE, SUMS, MAP, INTENT, DISK_META, PROGRESS, LOCK, JOURNAL, PINS, checkpoints.CHECKPOINTS}
_ZERO_SUM = crc32c(bytes(BLOCK_BYTES))
_RANGES = (RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD)


@dataclass(slots=True)
class _Hurt:
    """Bytes of the disk that cannot be read from frame ``frame`` on; ``left``: those that nothing was written over yet."""

    damage: Damage
    frame: int
    left: list[tuple[int, int]]


def scrub(folder: Path, advance: Advance) -> Iterator[Damage]:
    """Read everything; what is damaged, as it is found."""
    try:
        loaded = load_history(folder)
    except RigError as exc:
        if exc.code == "DiskNotFound":
            raise
        yield from _without_history(folder, exc)
        return
    yield from _strangers(folder)
    yield from _pins(folder)
    hurt: list[_Hurt] = []
    yield from _base(loaded, advance, hurt)
    yield from _journal(loaded, advance, hurt)
    yield from _checkpoints(loaded, advance)
    yield from _until_written_over(loaded, hurt)


def _without_history(folder: Path, exc: RigError) -> Iterator[Damage]:
    """What load_history refused; its message begins with the file."""
    path = exc.message.partition(": ")[0]
    yield Damage(path=path, offset=0, what=exc.message.removeprefix(f"{path}: "), first_position=0)


def _strangers(folder: Path) -> Iterator[Damage]:
    for path in sorted(folder.iterdir()):
        if path.name not in _KNOWN and not path.name.startswith("."):
            yield Damage(path=str(path), offset=0, what="is no file of a managed disk", first_position=None)


def _pins(folder: Path) -> Iterator[Damage]:
    for path in sorted((folder / PINS).glob("[!.]*")):
        try:
            read_meta(path, Pin)
        except RigError as exc:
            if path.exists():
                yield Damage(path=str(path), offset=0, what=_why(exc), first_position=None)


def _why(exc: RigError) -> str:
    return exc.message.partition("managed disk is corrupt: ")[2] or exc.message


# --- the base ---------------------------------------------------------------------------------------------------


def _base(loaded: Loaded, advance: Advance, hurt: list[_Hurt]) -> Iterator[Damage]:
    folder, history = loaded.folder, loaded.history
    try:
        ranges = unpack_map(read_map(folder))
    except RigError as exc:
        yield Damage(path=str(folder / MAP), offset=0, what=_why(exc), first_position=history.floor)
        return
    if (folder / INTENT).exists():
        try:
            check_intent(folder)
        except RigError as exc:
            yield Damage(path=str(folder / INTENT), offset=0, what=_why(exc), first_position=None)
    with (folder / BASE).open("rb") as base, (folder / SUMS).open("rb") as sums:
        size = os.fstat(base.fileno()).st_size
        if (found := os.fstat(sums.fileno()).st_size) != sums_bytes(size):
            what = f"has {found} bytes; a base of {size} bytes needs {sums_bytes(size)}"
            lost = any(offset + length > found // PAIR.size * BLOCK_BYTES for offset, length in ranges)
            yield Damage(
                path=str(folder / SUMS),
                offset=min(found, sums_bytes(size)),
                what=what,
                first_position=history.floor if lost else None,
            )
        for offset, length in _pieces(ranges):
            for bad in bad_blocks(base.fileno(), sums.fileno(), [(offset, length)], most=length // BLOCK_BYTES):
                hurt.append(_hurt_block(loaded, bad.offset, bad.right, bad.found))
            advance(length)
        at_rest = history.seeded and loaded.progress is not None and loaded.progress.fold is None
        if at_rest and load_history(folder).history.folded == history.folded:
            yield from _at_rest(folder, base.fileno(), sums.fileno(), ranges, size)


def _pieces(ranges: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    step = _STEP_BLOCKS * BLOCK_BYTES
    for offset, length in ranges:
        for start in range(offset, offset + length, step):
            yield start, min(step, offset + length - start)


def _hurt_block(loaded: Loaded, offset: int, expected: int, found: int) -> _Hurt:
    history = loaded.history
    damage = Damage(
        path=str(loaded.folder / BASE),
        offset=offset,
        what=f"block of {BLOCK_BYTES} bytes has checksum {found:08x}; it must be {expected:08x}",
        first_position=history.floor,
    )
    return _Hurt(damage, history.folded, [(offset, offset + BLOCK_BYTES)])


def _at_rest(folder: Path, base_fd: int, sums_fd: int, ranges: list[tuple[int, int]], size: int) -> Iterator[Damage]:
    """While nothing is being folded: both sums of a block are one, and what the map leaves out is zeros in both files."""
    for (offset, length), is_data in _with_gaps(ranges, size):
        for start in range(offset, offset + length, _STEP_BLOCKS * BLOCK_BYTES):
            count = min(_STEP_BLOCKS, -(-(offset + length - start) // BLOCK_BYTES))
            at = start // BLOCK_BYTES * PAIR.size
            raw = os.pread(sums_fd, count * PAIR.size, at)
            if is_data or not is_zero(raw):
                for i, (right, becomes) in enumerate(PAIR.iter_unpack(raw[: len(raw) // PAIR.size * PAIR.size])):
                    if right != becomes or not (is_data or right in (0, _ZERO_SUM)):
                        what = f"checksums {right:08x} and {becomes:08x} of block {start // BLOCK_BYTES + i} differ"
                        if right == becomes:
                            what = f"checksum {right:08x} of block {start // BLOCK_BYTES + i}, which holds no data"
                        yield Damage(path=str(folder / SUMS), offset=at + i * PAIR.size, what=what, first_position=None)
        if not is_data:
            yield from _not_zero(folder, base_fd, offset, offset + length)


def _with_gaps(ranges: list[tuple[int, int]], size: int) -> Iterator[tuple[tuple[int, int], bool]]:
    at = 0
    for offset, length in ranges:
        if offset > at:
            yield (at, offset - at), False
        yield (offset, length), True
        at = offset + length
    if at < size:
        yield (at, size - at), False


def _not_zero(folder: Path, fd: int, start: int, stop: int) -> Iterator[Damage]:
    at = start
    while at < stop:
        try:
            at = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        if at < stop:
            length = min(stop - at, 1 << 20)
            data = os.pread(fd, length, at)
            if not is_zero(data):
                byte = at + len(data) - len(data.lstrip(b"\0"))
                yield Damage(
                    path=str(folder / BASE), offset=byte, what="is not zero, though no data lies there", first_position=None
                )
                return
            at += length


# --- the journal ------------------------------------------------------------------------------------------------


def _journal(loaded: Loaded, advance: Advance, hurt: list[_Hurt]) -> Iterator[Damage]:
    bad_headers = {frame.number: why for frame, _, why in loaded.journal.mended}
    for frame in loaded.journal.earlier + loaded.journal.frames:
        path = volume_path(loaded.folder, frame.volume)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # folded meanwhile; had it been missing before, the chain would be broken there
        try:
            if frame.number in bad_headers:
                yield Damage(path=str(path), offset=frame.start, what=bad_headers[frame.number], first_position=None)
            yield from _frame(loaded, fd, path, frame, hurt)
        finally:
            os.close(fd)
        advance(frame.end - frame.start)
    if loaded.journal.broken is not None and loaded.journal.broken_at is not None:
        path, offset = loaded.journal.broken_at
        first = loaded.history.watermark().complete_position + 1
        yield Damage(path=str(path), offset=offset, what=_why(loaded.journal.broken), first_position=first)
    if loaded.journal.torn is not None and (torn := _still_torn(loaded.folder, loaded.journal.torn)) is not None:
        yield Damage(
            path=str(volume_path(loaded.folder, torn.volume)),
            offset=torn.end,
            what=f"{torn.bytes} bytes of a frame that is cut; it never counted, or its end was lost",
            first_position=loaded.history.watermark().complete_position + 1,
        )


def _still_torn(folder: Path, torn: Torn) -> Torn | None:
    """None if it was a frame that was just being written."""
    for _ in range(5):
        time.sleep(TORN_WAIT_S)
        now = load_history(folder).journal.torn
        if now != torn:
            return None
    return torn


def _frame(loaded: Loaded, fd: int, path: Path, frame: Frame, hurt: list[_Hurt]) -> Iterator[Damage]:
    def bad(offset: int, what: str, first_position: int | None = None) -> Damage:
        return Damage(path=str(path), offset=offset, what=f"{what} of frame {frame.number}", first_position=first_position)

    segment = os.pread(fd, frame.segment_bytes, frame.segment_at)
    segment_good = crc32c(segment) == frame.segment_crc
    raw = os.pread(fd, frame.index_bytes, frame.entries_at)
    index_good = crc32c(raw) == frame.index_crc
    if not index_good:
        lost = None if segment_good or frame.number <= loaded.history.folded else frame.first_position
        yield bad(frame.entries_at, "wrong checksum of the index", lost)
    if not segment_good:
        if index_good:
            found = list(_bad_pieces(path, frame, segment, raw, loaded.history.folded))
            hurt += found
            if not found:
                yield _bad_record(loaded, path, frame, segment)
        else:
            yield bad(frame.segment_at, "wrong checksum of the segment", lost)
    tags = os.pread(fd, frame.tags_bytes, frame.tags_at)
    if crc32c(tags) != frame.tags_crc:
        yield bad(frame.tags_at, "wrong checksum of the tags")
    if os.pread(fd, HEADER_BYTES, frame.back_at) != encode_header(frame, back=True):
        yield bad(frame.back_at, "wrong copy of the header")
    for start, stop in (
        (frame.segment_at + frame.segment_bytes, frame.entries_at),
        (frame.tags_at + frame.tags_bytes, frame.back_at),
    ):
        if any(os.pread(fd, stop - start, start)):
            yield bad(start, "not zero where it must be: padding")


def _bad_pieces(path: Path, frame: Frame, segment: bytes, index: bytes, folded: int) -> Iterator[_Hurt]:
    """Pieces of payloads that have a wrong checksum; nothing needs those of a frame that was folded."""
    sums = memoryview(index)[frame.entries * ENTRY.size :].cast("I")
    view = memoryview(segment)
    for position, _, offset, length, payload_at, first_piece, kind in ENTRY.iter_unpack(index[: frame.entries * ENTRY.size]):
        if kind != RecordType.WRITE:
            continue
        at, piece = offset, first_piece
        while at < offset + length:
            stop = min(at - at % PIECE_BYTES + PIECE_BYTES, offset + length)
            place = payload_at + at - offset
            if crc32c(view[place : place + stop - at]) != sums[piece]:
                damage = Damage(
                    path=str(path),
                    offset=frame.segment_at + place,
                    what=f"wrong checksum of {stop - at} bytes written to byte {at} of the disk at position {position}",
                    first_position=position if frame.number > folded else None,
                )
                yield _Hurt(damage, frame.number, [(at, stop)])
            at, piece = stop, piece + 1


def _bad_record(loaded: Loaded, path: Path, frame: Frame, segment: bytes) -> Damage:
    """No data is hurt: it is in a record's header, or in one that changes nothing."""
    offset, why = 0, "wrong checksum of the segment"
    try:
        index_segment(segment, frame.part, loaded.history.size_before(frame))
    except RigError as exc:
        why = exc.message
        if m := re.search(r"at byte (\d+)", why):
            offset = int(m[1])
    return Damage(path=str(path), offset=frame.segment_at + offset, what=f"{why}; no data", first_position=None)


# --- checkpoints ------------------------------------------------------------------------------------------------


def _checkpoints(loaded: Loaded, advance: Advance) -> Iterator[Damage]:
    history = loaded.history
    for number in checkpoints.list_checkpoints(loaded.folder):
        place = number - history.folded - 1
        path = checkpoints.checkpoint_path(loaded.folder, number)
        if place >= len(history.frames) and loaded.journal.broken is None:
            continue  # of a frame that was applied since
        if not 0 <= place < len(history.frames):
            continue
        with suppress(FileNotFoundError):
            try:
                checkpoints.load(loaded.folder, history.disk_id, history.frames[place])
            except BadCheckpointError as exc:
                yield Damage(path=str(path), offset=0, what=f"{exc}; nothing needs it", first_position=None)
            else:
                advance(path.stat().st_size)


# --- which positions are not whole ------------------------------------------------------------------------------


def _until_written_over(loaded: Loaded, hurt: list[_Hurt]) -> Iterator[Damage]:
    """The damage, with the last position at which some of it shows."""
    history = loaded.history
    open_hurt = [each for each in hurt if each.damage.first_position is not None]
    last: dict[int, int] = {}
    for frame in history.frames:
        concerned = [each for each in open_hurt if each.frame < frame.number]
        own = [each for each in open_hurt if each.frame == frame.number]  # records behind the one that is hurt
        if not concerned and not own:
            continue
        try:
            entries = read_index(loaded.folder, frame, history.size_before(frame)).entries
        except (RigError, FileNotFoundError):
            break
        contained = history.contained(frame.part.generation) if frame.part.stream == "log" else -1
        for position, _, offset, length, _, _, kind in ENTRY.iter_unpack(entries):
            if kind not in _RANGES or position <= contained:
                continue
            for each in concerned + [each for each in own if (each.damage.first_position or 0) < position]:
                if each.left:
                    each.left = _minus(each.left, offset, offset + length)
                    if not each.left:
                        last[id(each)] = position - 1
        open_hurt = [each for each in open_hurt if each.left]
    for each in hurt:
        yield each.damage.model_copy(update={"last_position": last.get(id(each))})


def _minus(ranges: list[tuple[int, int]], start: int, stop: int) -> list[tuple[int, int]]:
    left = []
    for first, last in ranges:
        if first < start:
            left.append((first, min(last, start)))
        if last > stop:
            left.append((max(first, stop), last))
    return [(first, last) for first, last in left if first < last]
