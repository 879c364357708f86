"""Scrubbing: every byte of a managed disk's folder is read and compared with its checksum.

Fault contract: it changes nothing, and runs beside an applier that applies and folds, in any process.  What is not as it was
written, or cannot be read, is told of by file and byte, with the positions that are not whole because of it: damage of a
payload or of the base from its record (or the floor) on, until something else was written over it; damage of what can be
made again, none.  The journal is read before the base, so that what is folded meanwhile is seen in one of them.  What is
told and kept in memory has a bound (:mod:`siterig.azure_emu.disks.damage_map`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from siterig.azure_emu.contracts.ports import Damage, Pin
from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.base_image import BASE, INTENT, MAP, SUMS, Ranges, check_intent, read_map, unpack_map
from siterig.azure_emu.disks.checkpoints import BadCheckpointError
from siterig.azure_emu.disks.damage_map import REPORTED_MAX, ClassifiedDamage, DamageMap
from siterig.azure_emu.disks.frames import ENTRY, Frame
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.journal import JOURNAL, list_unexpected_files, read_index
from siterig.azure_emu.disks.loader import TRIES_MAX, StoreState, load_history
from siterig.azure_emu.disks.metadata import DISK_META, PROGRESS, read_meta
from siterig.azure_emu.disks.pins import LOCK, PINS
from siterig.azure_emu.scrub.base import at_rest, bad_ranges, open_base
from siterig.azure_emu.scrub.journal import damaged_pieces, scrub_journal
from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.base_update import BLOCK_BYTES

Advance = Callable[[int], None]
"""Told how many bytes were read since it was last told."""

_NEEDED = {LOCK, PINS, checkpoints.CHECKPOINTS}
_KNOWN = {BASE, SUMS, MAP, INTENT, DISK_META, PROGRESS, JOURNAL, *_NEEDED}
_CHANGES = (RecordType.WRITE, RecordType.ZERO, RecordType.DISCARD)


def scrub(folder: Path, advance: Advance = lambda _bytes: None) -> Iterator[Damage]:
    """Read everything; what is damaged, as it is found.

    ``DiskNotFound`` (it was deleted or set aside meanwhile, too), ``StoreIo``.
    """
    with host_disk_errors(folder):
        yield from _told(_while_it_is_there(folder, _everything(folder, advance)))


def _told(found: Iterator[ClassifiedDamage]) -> Iterator[Damage]:
    """The first of each kind one by one, the others together."""
    counts: dict[str, int] = {}
    more: dict[str, Damage] = {}
    for kind, damage in found:
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= REPORTED_MAX:
            yield damage
        elif kind not in more:
            more[kind] = damage
        elif damage.first_position is not None:
            first = min(damage.first_position, more[kind].first_position or damage.first_position)
            more[kind] = more[kind].model_copy(update={"first_position": first})
    for kind, damage in more.items():
        what = f"and {counts[kind] - REPORTED_MAX} more from here on; the first: {damage.what}"
        yield damage.model_copy(update={"what": what})


def _while_it_is_there(folder: Path, found: Iterator[ClassifiedDamage]) -> Iterator[ClassifiedDamage]:
    """What is found of a disk that is deleted meanwhile, or set aside, is no damage."""
    before = _identity(folder)
    try:
        for each in found:
            if _identity(folder) != before:
                break
            yield each
    except FileNotFoundError:
        if _identity(folder) == before:
            raise
    if _identity(folder) != before:
        raise RigError(Code.DiskNotFound, f"{folder}: the managed disk was deleted, or set aside, while it was read")


def _identity(folder: Path) -> tuple[int, int] | None:
    with suppress(FileNotFoundError):
        status = folder.stat()
        return status.st_dev, status.st_ino
    return None


def _everything(folder: Path, advance: Advance) -> Iterator[ClassifiedDamage]:
    damaged: list[Frame] = []
    try:
        loaded = load_history(folder)
        yield from _readable(_small_files(folder))
        yield from _readable(scrub_journal(loaded, advance, damaged), loaded.history.oldest_position)
        yield from _readable(_checkpoints(loaded, advance))
        yield from _readable(_position_damage(folder, advance, loaded, damaged), loaded.history.oldest_position)
        yield from _readable(at_rest(folder))
    except RigError as exc:
        if exc.code == Code.DiskNotFound:
            raise
        name, _, why = exc.message.removeprefix(str(folder)).partition(": ")
        yield _file("store", Path(f"{folder}{name}"), why, first_position=0)


def _readable(found: Iterator[ClassifiedDamage], first_position: int | None = None) -> Iterator[ClassifiedDamage]:
    """A file or folder that the host's disk cannot even open is damage; ``first_position``: of what is not whole then."""
    try:
        yield from found
    except OSError as exc:
        if exc.errno != errno.EIO or exc.filename is None:
            raise
        yield _file("unreadable", Path(exc.filename), f"cannot be read: {reason(exc)}", first_position)


def _file(kind: str, path: Path, what: str, first_position: int | None = None) -> ClassifiedDamage:
    return kind, Damage(path=str(path), offset=0, what=what, first_position=first_position)


def _why(exc: RigError) -> str:
    return exc.message.partition("managed disk is corrupt: ")[2] or exc.message


# --- small files ------------------------------------------------------------------------------------------------


def _small_files(folder: Path) -> Iterator[ClassifiedDamage]:
    names = {path.name for path in folder.iterdir()}
    for name in sorted(names - _KNOWN):
        if not name.startswith("."):
            yield _file("unexpected", folder / name, "is no file of a managed disk")
    for name in sorted(_NEEDED - names):
        yield _file("missing", folder / name, "is missing")
    with suppress(RigError):  # a journal that cannot be listed is damage that the history has met
        for path in list_unexpected_files(folder):
            yield _file("unexpected", path, "is not a journal file")
    for path in sorted((folder / PINS).glob("[!.]*")):
        try:
            read_meta(path, Pin)
        except RigError as exc:
            if path.exists():
                yield _file("pin", path, _why(exc))
    try:
        check_intent(folder)
    except RigError as exc:
        yield _file("intent", folder / INTENT, _why(exc))
    except OSError as exc:
        yield _file("intent", folder / INTENT, f"cannot be read: {reason(exc)}")


def _checkpoints(loaded: StoreState, advance: Advance) -> Iterator[ClassifiedDamage]:
    history = loaded.history
    for number in checkpoints.list_checkpoints(loaded.folder):
        place = number - history.compacted - 1
        if not 0 <= place < len(history.frames):
            continue  # of a frame that was folded, or applied since
        path = checkpoints.checkpoint_path(loaded.folder, number)
        with suppress(FileNotFoundError):
            try:
                checkpoints.load(loaded.folder, history.disk_id, history.frames[place])
            except BadCheckpointError as exc:
                yield _file("checkpoint", path, f"{exc}; nothing needs it")
            except OSError as exc:
                if exc.errno != errno.EIO:
                    raise
                yield _file("checkpoint", path, f"cannot be read: {reason(exc)}; nothing needs it")
            else:
                advance(path.stat().st_size)


# --- which positions are not whole ------------------------------------------------------------------------------


def _position_damage(folder: Path, advance: Advance, loaded: StoreState, frames: list[Frame]) -> Iterator[ClassifiedDamage]:
    """Damage of the base, and of payloads in ``frames``, with the positions at which it shows.

    If there is any and a fold came between, it is looked at again: the fold may have carried it into the base, or written
    over it.
    """
    wanted: Ranges | None = None  # all
    for _ in range(TRIES_MAX):
        before, loaded = loaded.history.compacted, load_history(folder)
        if any(before < frame.number <= loaded.history.compacted for frame in frames):
            wanted = None
        damage_map = DamageMap()
        bad_map: list[ClassifiedDamage] = []
        try:
            _look_at_base(loaded, advance, wanted, damage_map)
        except RigError as exc:
            bad_map = [_file("map", folder / MAP, _why(exc), loaded.history.oldest_position)]
        wanted = damage_map.ranges() if damage_map.complete else None
        advance = _nothing
        if _follow(loaded, damage_map, frames) and (
            not (damage_map or bad_map) or load_history(folder).progress == loaded.progress
        ):
            break
    yield from bad_map
    for frame in frames:
        if frame.number <= loaded.history.compacted:
            with suppress(FileNotFoundError):
                for piece in damaged_pieces(folder, frame):
                    damage_map.add("folded payload", piece.start, piece.stop, piece.damage, is_current=False)
    yield from damage_map.report(loaded.history.oldest_position)


def _nothing(_bytes: int) -> None:
    pass


def _look_at_base(loaded: StoreState, advance: Advance, wanted: Ranges | None, damage_map: DamageMap) -> None:
    """``wanted``: what alone is looked at."""
    folder, floor, size = loaded.folder, loaded.history.oldest_position, loaded.history.size_bytes
    ranges = unpack_map(read_map(folder))
    with open_base(folder) as files:
        for offset, length in ranges if wanted is None else _common(ranges, wanted):
            for start, stop, kind, damage in bad_ranges(files, offset, length, advance):
                from_floor = damage.model_copy(update={"first_position": floor})
                damage_map.add(kind, start, min(stop, max(size, start)), from_floor, is_current=start < size)


def _common(ranges: Ranges, wanted: Ranges) -> Iterator[tuple[int, int]]:
    """What is in both, in whole blocks."""
    following = iter(ranges)
    offset, length = next(following, (0, 0))
    for start, wanted_length in wanted:
        stop = -(-(start + wanted_length) // BLOCK_BYTES) * BLOCK_BYTES
        while length and offset + length <= start:
            offset, length = next(following, (0, 0))
        while length and offset < stop:
            yield max(offset, start), min(offset + length, stop) - max(offset, start)
            if offset + length > stop:
                break
            offset, length = next(following, (0, 0))


def _follow(loaded: StoreState, damage_map: DamageMap, damaged_frames: list[Frame]) -> bool:
    """Through the journal: what is written over is whole again; what is hurt in ``damaged_frames`` adds to it.

    False if a fold took a part of the journal away.
    """
    history = loaded.history
    numbers = {frame.number for frame in damaged_frames}
    last = max(numbers, default=0)
    for frame in history.frames:
        if not damage_map.has_current and frame.number > last:
            break
        pieces = damaged_pieces(loaded.folder, frame) if frame.number in numbers else iter(())
        try:
            entries = read_index(loaded.folder, frame, history.size_before(frame)).entries
            piece = next(pieces, None)
        except FileNotFoundError:
            return False
        except (RigError, OSError):
            break  # nothing behind it can be read
        contained = history.contained(frame.part.generation) if frame.part.stream == "log" else -1
        for record, (position, _, offset, length, _, _, kind) in enumerate(ENTRY.iter_unpack(entries)):
            counts = position > contained
            if counts and kind in _CHANGES:
                damage_map.overwrite(offset, offset + length, position)
            while piece is not None and piece.record == record:
                damage_map.add("payload", piece.start, piece.stop, piece.damage, is_current=counts)
                piece = next(pieces, None)
    return True
