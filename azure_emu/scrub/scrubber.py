"""Scrubbing: every byte of a managed disk's folder is read and compared with its checksum.

Fault contract: the scrub changes nothing.  An applier may apply and compact at the same time, in any process.  Bytes that
are damaged or cannot be read are reported by file and byte, with the positions that need them.  Damage of a payload or of
the base affects positions from its record (or the oldest position) on, until a later record overwrites the range.  Damage of
data that can be rebuilt affects no position.  The journal is read before the base, so that data that is compacted meanwhile
is seen in one of them.  Memory and output are bounded (:mod:`siterig.azure_emu.disks.damage_map`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from siterig.azure_emu.contracts.recovery_side import Damage, Pin
from siterig.azure_emu.disks import checkpoints
from siterig.azure_emu.disks.base_image import BASE, INTENT, MAP, SUMS, RangeList, check_intent, read_map, unpack_map
from siterig.azure_emu.disks.checkpoints import BadCheckpointError
from siterig.azure_emu.disks.damage_map import REPORTED_MAX, ClassifiedDamage, DamageMap
from siterig.azure_emu.disks.frames import ENTRY, Frame
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.journal import JOURNAL, list_unexpected_files, read_index
from siterig.azure_emu.disks.loader import TRIES_MAX, StoreState, load_history
from siterig.azure_emu.disks.metadata import DISK_META, PROGRESS, read_meta
from siterig.azure_emu.disks.pins import LOCK, PINS
from siterig.azure_emu.scrub.base import bad_ranges, check_idle_base, open_base
from siterig.azure_emu.scrub.journal import damaged_pieces, scrub_journal
from siterig.blockfs.changelog.segment import CHANGES
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import Advance
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.layers.base_update import BLOCK_BYTES

_NEEDED = {LOCK, PINS, checkpoints.CHECKPOINTS}
_KNOWN = {BASE, SUMS, MAP, INTENT, DISK_META, PROGRESS, JOURNAL, *_NEEDED}


def scrub(folder: Path, advance: Advance = lambda _bytes: None, clock: Clock = SYSTEM_CLOCK) -> Iterator[Damage]:
    """Read all bytes of the managed disk in ``folder``; yield each damage when it is found.

    Args:
        folder: the managed disk's folder.
        advance: called with the number of bytes that were read.
        clock: delays the next read of a frame that may be just written.
    Raises:
        RigError: ``DiskNotFound``, also if the disk was deleted or set aside meanwhile; ``StoreIo``.
    """
    with host_disk_errors(folder):
        yield from _aggregate(_while_it_exists(folder, _check_all(folder, advance, clock)))


def _aggregate(damages: Iterator[ClassifiedDamage]) -> Iterator[Damage]:
    """Yield the first damages of each kind one by one, and the others of a kind in one."""
    counts: dict[str, int] = {}
    more: dict[str, Damage] = {}
    for kind, damage in damages:
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


def _while_it_exists(folder: Path, damages: Iterator[ClassifiedDamage]) -> Iterator[ClassifiedDamage]:
    """Yield the damage as long as the disk is in its place; one that is deleted or set aside meanwhile is not damaged."""
    before = _identity(folder)
    try:
        for each in damages:
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


def _check_all(folder: Path, advance: Advance, clock: Clock) -> Iterator[ClassifiedDamage]:
    damaged: list[Frame] = []
    try:
        loaded = load_history(folder)
        yield from _readable(_small_files(folder))
        yield from _readable(scrub_journal(loaded, advance, damaged, clock), loaded.history.oldest_position)
        yield from _readable(_checkpoints(loaded, advance))
        yield from _readable(_position_damage(folder, advance, loaded, damaged), loaded.history.oldest_position)
        yield from _readable(check_idle_base(folder))
    except RigError as exc:
        if exc.code == Code.DiskNotFound:
            raise
        name, _, why = exc.message.removeprefix(str(folder)).partition(": ")
        yield _file("store", Path(f"{folder}{name}"), why, first_position=0)


def _readable(damages: Iterator[ClassifiedDamage], first_position: int | None = None) -> Iterator[ClassifiedDamage]:
    """Yield the damage; a file or folder that cannot be opened is damage of the positions from ``first_position`` on."""
    try:
        yield from damages
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
    with suppress(RigError):  # loading the history has reported a journal that cannot be listed
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
            continue  # its frame was compacted, or applied since
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


# --- positions with damage ------------------------------------------------------------------------------


def _position_damage(folder: Path, advance: Advance, loaded: StoreState, frames: list[Frame]) -> Iterator[ClassifiedDamage]:
    """Find the damage of the base, and of payloads in ``frames``, with the positions that it affects.

    If there is damage and a compaction came between, everything is checked again: the compaction may have carried the damage
    into the base, or overwritten it.
    """
    ranges: RangeList | None = None  # everything
    for _ in range(TRIES_MAX):
        before, loaded = loaded.history.compacted, load_history(folder)
        if any(before < frame.number <= loaded.history.compacted for frame in frames):
            ranges = None
        damage_map = DamageMap()
        bad_map: list[ClassifiedDamage] = []
        try:
            _check_base(loaded, advance, ranges, damage_map)
        except RigError as exc:
            bad_map = [_file("map", folder / MAP, _why(exc), loaded.history.oldest_position)]
        ranges = damage_map.ranges() if damage_map.complete else None
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
                    damage_map.add("compacted payload", piece.start, piece.stop, piece.damage, is_current=False)
    yield from damage_map.report(loaded.history.oldest_position)


def _nothing(_bytes: int) -> None:
    pass


def _check_base(loaded: StoreState, advance: Advance, only: RangeList | None, damage_map: DamageMap) -> None:
    """Add the damage of the base to the map; ``wanted`` limits the check to these ranges."""
    folder, oldest, size = loaded.folder, loaded.history.oldest_position, loaded.history.size_bytes
    ranges = unpack_map(read_map(folder))
    with open_base(folder) as files:
        for offset, length in ranges if only is None else _common(ranges, only):
            for start, stop, kind, damage in bad_ranges(files, offset, length, advance):
                from_oldest = damage.model_copy(update={"first_position": oldest})
                damage_map.add(kind, start, min(stop, max(size, start)), from_oldest, is_current=start < size)


def _common(ranges: RangeList, only: RangeList) -> Iterator[tuple[int, int]]:
    """Yield the ranges that are in both lists, extended to whole blocks."""
    following = iter(ranges)
    offset, length = next(following, (0, 0))
    for start, wanted_length in only:
        stop = -(-(start + wanted_length) // BLOCK_BYTES) * BLOCK_BYTES
        while length and offset + length <= start:
            offset, length = next(following, (0, 0))
        while length and offset < stop:
            yield max(offset, start), min(offset + length, stop) - max(offset, start)
            if offset + length > stop:
                break
            offset, length = next(following, (0, 0))


def _follow(loaded: StoreState, damage_map: DamageMap, damaged_frames: list[Frame]) -> bool:
    """Follow the damage through the journal: records overwrite it, and damaged payloads add to it.

    Returns:
        False if a compaction deleted a part of the journal meanwhile.
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
            break  # no later position can be read
        contained = history.contained(frame.part.generation) if frame.part.stream == "log" else -1
        for record, (position, _, offset, length, _, _, kind) in enumerate(ENTRY.iter_unpack(entries)):
            counts = position > contained
            if counts and kind in CHANGES:
                damage_map.overwrite(offset, offset + length, position)
            while piece is not None and piece.record == record:
                damage_map.add("payload", piece.start, piece.stop, piece.damage, is_current=counts)
                piece = next(pieces, None)
    return True
