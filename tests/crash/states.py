"""The states in which a crash may leave a recorded folder (:mod:`tests.crash.recording`).

After a kill, all issued calls took effect, and of the interrupted write the first sectors (the kernel writes page by
page).  After a power loss, all synced changes are there, and any part of the others.  A sector (512 bytes) has a content
that the page cache held at some time since the file's last sync; a file has a size from that time.  Changes of names
take effect in any order that a folder allows: two changes of one name keep their order.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.crash.recording import (
    MAPPED,
    SECTOR_BYTES,
    Event,
    FileEvent,
    Named,
    NameEvent,
    NamesSynced,
    Noted,
    Renamed,
    Resized,
    Synced,
    Unnamed,
    Wrote,
    Zeroed,
)
from tests.support.process_kills import without_token

State = dict[str, bytes]
"""The folder: the content of each file by name."""
LOG, DISK, MAPS, STATE = "log", "disk", "maps", "state"


def group_of(name: str) -> str:
    """Return the group of a file; the groups of a disk's files are synced, and so lost, independently."""
    if name.endswith((".hrl", ".spare", ".recycled")):
        return LOG
    if name.endswith((".img", ".top", ".durable")):
        return DISK
    return MAPS if without_token(name).removesuffix(".tmp").endswith(MAPPED) else STATE


@dataclass
class _File:
    durable: bytes
    group: str
    cache: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, FileEvent]] = field(default_factory=list)
    """(index of the event, change) since the last sync."""


def _do(data: bytearray, event: FileEvent) -> None:
    if isinstance(event, Wrote):
        if len(data) < event.offset:
            data.extend(bytes(event.offset - len(data)))
        data[event.offset : event.offset + len(event.data)] = event.data
    elif isinstance(event, Zeroed):
        end = min(event.offset + event.length, len(data))
        data[event.offset : end] = bytes(max(end - event.offset, 0))
    elif event.size_bytes < len(data):
        del data[event.size_bytes :]
    else:
        data.extend(bytes(event.size_bytes - len(data)))


Keep = Callable[[int, FileEvent], list[tuple[int, int]] | bool]
"""(index, change) -> True if all of it reached the disk, False if nothing, or its ranges (begin, end) of whole sectors."""


class Crashing:
    """A folder that takes events one by one; between two events it can return the states after a crash."""

    def __init__(self, start: dict[str, tuple[int, bytes]]) -> None:
        self.names = {name: file for name, (file, _) in start.items()}
        self._durable_names = dict(self.names)
        self._pending_names: list[tuple[int, NameEvent]] = []
        self._files = {file: _File(data, group_of(name), bytearray(data)) for name, (file, data) in start.items()}
        self._index = 0

    def take(self, event: Event) -> None:
        """Apply the next event."""
        if isinstance(event, Synced):
            file = self._files[event.file]
            if file.pending:
                file.durable = bytes(file.cache)
                file.pending.clear()
        elif isinstance(event, NamesSynced):
            self._durable_names = dict(self.names)
            self._pending_names.clear()
        elif isinstance(event, Named | Renamed | Unnamed):
            if isinstance(event, Named):
                self._files[event.file] = _File(b"", group_of(event.name))
            _do_name(self.names, event)
            self._pending_names.append((self._index, event))
        elif not isinstance(event, Noted):
            file = self._files[event.file]
            _do(file.cache, event)
            file.pending.append((self._index, event))
        self._index += 1

    @property
    def loses(self) -> bool:
        """True if a change is not on stable storage."""
        return bool(self._pending_names) or any(self._files[file].pending for file in set(self.names.values()))

    def killed(self, cut_off: Event | None = None, share: float = 0.0) -> State:
        """Return the state after a kill: all changes, and a share of the next call."""
        state = {name: self._files[file].cache for name, file in self.names.items()}
        if isinstance(cut_off, Wrote):
            end = cut_off.offset + int(len(cut_off.data) * share)
            done_bytes = max(end // SECTOR_BYTES * SECTOR_BYTES - cut_off.offset, 0)
            torn = bytearray(self._files[cut_off.file].cache)
            _do(torn, Wrote(cut_off.file, cut_off.offset, cut_off.data[:done_bytes]))
            state.update({name: torn for name, file in self.names.items() if file == cut_off.file})
        return {name: bytes(data) for name, data in state.items()}

    # --- power loss -----------------------------------------------------------------------------------------------

    def edge(self, kept: frozenset[str]) -> State:
        """Return a state with all or no unsynced changes of each group; ``names`` is a group, too."""
        names = dict(self._durable_names)
        if "names" in kept:
            names = dict(self.names)
        return {name: self._edge_of(self._files[file], kept) for name, file in names.items()}

    @staticmethod
    def _edge_of(file: _File, kept: frozenset[str]) -> bytes:
        return bytes(file.cache) if file.group in kept else file.durable

    def sample(self, rng: random.Random) -> State:
        """Return a random state; each file has none, all, the first, some, or some sectors of its changes."""
        names = self._sample_names(rng)
        return {name: self._sample_file(self._files[file], rng) for name, file in names.items()}

    def _sample_names(self, rng: random.Random) -> dict[str, int]:
        names = dict(self._durable_names)
        how, lost = rng.randrange(4), set[str]()
        upto = rng.randrange(len(self._pending_names) + 1)
        for i, (_, event) in enumerate(self._pending_names):
            touched = {event.old, event.new} if isinstance(event, Renamed) else {event.name}
            if touched & lost or how == 0 or (how == 1 and i >= upto) or (how == 2 and rng.random() < 0.5):
                lost |= touched
            else:
                _do_name(names, event)
        return names

    def _sample_file(self, file: _File, rng: random.Random) -> bytes:
        how = rng.randrange(8)
        if not file.pending or how == 0:
            return file.durable
        if how == 1:
            return bytes(file.cache)
        if how in (2, 3):
            last = rng.randrange(len(file.pending))
            edge = file.pending[last][0]
            share = rng.random()
            return _survivors(file, lambda i, event: i < edge or (i == edge and _some_sectors(event, share, rng)))
        share = rng.choice([0.1, 0.5, 0.9])
        if how == 4:
            return _survivors(file, lambda _i, _event: rng.random() < share)
        return _survivors(file, lambda _i, event: _some_sectors(event, share, rng))


def _do_name(names: dict[str, int], event: NameEvent) -> None:
    if isinstance(event, Named):
        names[event.name] = event.file
    elif isinstance(event, Renamed):
        names[event.new] = names.pop(event.old)
    else:
        del names[event.name]


def _some_sectors(event: FileEvent, share: float, rng: random.Random) -> list[tuple[int, int]] | bool:
    if isinstance(event, Resized):
        return rng.random() < share
    end = event.offset + (len(event.data) if isinstance(event, Wrote) else event.length)
    begin = event.offset // SECTOR_BYTES * SECTOR_BYTES
    return [(at, at + SECTOR_BYTES) for at in range(begin, end, SECTOR_BYTES) if rng.random() < share]


def _survivors(file: _File, keep: Keep) -> bytes:
    cache, result = bytearray(file.durable), bytearray(file.durable)
    for index, event in file.pending:
        before = len(cache)
        _do(cache, event)
        kept = keep(index, event)
        if kept is False:
            continue
        if isinstance(event, Resized):
            _do(result, event)
            continue
        if kept is True:
            end = event.offset + (len(event.data) if isinstance(event, Wrote) else event.length)
            kept = [(event.offset // SECTOR_BYTES * SECTOR_BYTES, -(-end // SECTOR_BYTES) * SECTOR_BYTES)]
        for begin, end in kept:
            piece = cache[begin:end]
            if begin + len(piece) > before and len(result) < begin + len(piece):  # the write made the file longer
                result.extend(bytes(begin + len(piece) - len(result)))
            result[begin : begin + len(piece)] = piece[: max(len(result) - begin, 0)]
    return bytes(result)
