"""Queries to a managed disk: the position of a time, the changes between two positions, and its state."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from siterig.azure_emu.contracts.recovery_side import Change, ChangeKind, ManagedDiskState
from siterig.azure_emu.disks.base_image import BASE, SUMS
from siterig.azure_emu.disks.frames import ENTRY, Frame
from siterig.azure_emu.disks.io_errors import host_disk_errors
from siterig.azure_emu.disks.journal import JOURNAL, read_index
from siterig.azure_emu.disks.loader import StoreState, load_history
from siterig.azure_emu.disks.pins import pins
from siterig.blockfs.changelog.segment import RecordType
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import STAT_BLOCK_BYTES
from siterig.blockfs.files.free_space import free_bytes

_KINDS: dict[int, ChangeKind] = {
    RecordType.WRITE: "WRITE",
    RecordType.ZERO: "ZERO",
    RecordType.DISCARD: "DISCARD",
    RecordType.RESIZE: "RESIZE",
}


def position_at(state: StoreState, time_ns: int) -> int:
    """Return the last valid position whose record has the wall time ``time_ns`` or an earlier one.

    Raises:
        RigError: ``InvalidPosition`` if every valid position is later; it names the oldest.
    """
    history = state.history
    valid = history.valid()
    for frame in reversed(history.frames):
        if frame.first_time_ns <= time_ns:
            found = frame.position if frame.time_ns <= time_ns else _last_at(state, frame, time_ns)
            below = [min(found, last) for _, first, last in valid if first <= found]
            if below:
                return max(below)
    if valid and history.oldest_time_ns <= time_ns:
        return history.oldest_position
    oldest = (
        f"the oldest is position {history.oldest_position}, of {history.oldest_time_ns} ns" if valid else "there is none"
    )
    raise RigError(
        Code.InvalidPosition, f"disk {history.disk_id} has no state of {time_ns} ns since 1970 or before: {oldest}"
    )


def _last_at(state: StoreState, frame: Frame, time_ns: int) -> int:
    found = frame.first_position
    for position, when, *_ in ENTRY.iter_unpack(_entries(state, frame)):
        if when <= time_ns:
            found = max(found, position)
    return found


def _entries(state: StoreState, frame: Frame) -> bytes:
    return read_index(state.folder, frame, state.history.size_before(frame)).entries


def change_list(state: StoreState, after: int, upto: int, limit: int) -> list[Change]:
    """Return the first ``limit`` changes with ``after < position <= upto``.

    Raises:
        RigError: ``InvalidPosition`` if one of the two positions is not valid.
    """
    for position in (after, upto):
        state.epoch_of(position)
    found: list[Change] = []
    for change in _changes(state, after, upto):
        if len(found) == limit:
            break
        found.append(change)
    return found


def _changes(state: StoreState, after: int, upto: int) -> Iterator[Change]:
    history = state.history
    newest = state.epoch_of(upto).generation
    for frame in history.frames:
        if frame.part.generation > newest:
            return
        if frame.position <= after or frame.first_position > upto:
            continue
        contained = history.contained(frame.part.generation) if frame.part.stream == "log" else -1
        for position, time_ns, offset, length, _, _, kind in ENTRY.iter_unpack(_entries(state, frame)):
            if after < position <= upto and position > contained:
                yield Change(position=position, time_ns=time_ns, kind=_KINDS[kind], offset=offset, length=length)


def disk_state(folder: Path, retain: int) -> ManagedDiskState:
    """Return the state of the managed disk in ``folder``; ``retain`` is copied to the result.

    Raises:
        RigError: ``DiskNotFound``, ``StoreCorrupt``, ``StoreVersion``; ``StoreIo``.
    """
    state = load_history(folder)
    history = state.history
    with host_disk_errors(folder):
        journal = (folder / JOURNAL).iterdir()
        return ManagedDiskState(
            disk_id=history.disk_id,
            size_bytes=history.size_bytes,
            floor=history.oldest_position,
            floor_time_ns=history.oldest_time_ns,
            valid_ranges=[(first, last) for _, first, last in history.valid()],
            retain=retain,
            pins=pins(folder),
            base_bytes=_used_bytes(folder / BASE) + _used_bytes(folder / SUMS),
            journal_bytes=sum(_used_bytes(path) for path in journal),
            free_bytes=free_bytes(folder),
            encrypted=state.meta.key_id is not None,
        )


def _used_bytes(path: Path) -> int:
    try:
        return path.stat().st_blocks * STAT_BLOCK_BYTES
    except FileNotFoundError:  # a compaction has deleted it
        return 0
