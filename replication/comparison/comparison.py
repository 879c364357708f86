"""Compares a disk at the site with its managed disk by keyed tags; no data travels.

Two levels: chunks of 1 MiB, then the chunks of 64 KiB within those that differ.  Both sides compute at the same time, and
``WINDOWS_MAX`` windows are in flight, so that neither waits for the other.  A window has ``WINDOW_BYTES`` of data at most,
so the memory does not depend on the size of the disk; a hole on both sides costs nothing.

A failure of either side is raised in an exception group (:func:`siterig.replication.engine.retry.unwrap_group`).

The keys are random for each comparison.  A guest that cannot know them cannot write two chunks with one tag.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from siterig.blockfs.contracts.control import SnapshotDisk
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.layers.chunk_tags import DataRanges
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.chunk_tags import SPANS_MAX, TAGS_MAX
from siterig.cext.checksums import KEY_BYTES
from siterig.cext.packed_tags import PackedTags, Span, below, differing

COARSE_BYTES = 1 << 20
FINE_BYTES = 64 << 10
WINDOW_BYTES = 256 << 20
CHUNK_COST_BYTES = WINDOW_BYTES // TAGS_MAX
"""A chunk with less data counts as if it had so much: the tags of a window fit into one answer."""
WINDOWS_MAX = 3

DiskRanges = list[tuple[int, int]]
"""(offset, length) in bytes, sorted and without overlap."""

Tagger = Callable[[bytes, int, Sequence[Span], DataRanges], PackedTags]
"""Computes the site's tags for a key, bytes of a chunk, spans, and the ranges that are not holes; it blocks."""


@dataclass(frozen=True, slots=True)
class Window:
    """A compared part of a disk: everything up to byte ``end``, and the ranges in it that differ."""

    end: int
    differing: DiskRanges

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) of what differs, in pieces of a fine chunk at most."""
        for offset, length in self.differing:
            for at in range(offset, offset + length, FINE_BYTES):
                yield at, min(FINE_BYTES, offset + length - at)


class _Slot:
    """A window that is being compared."""

    def __init__(self, end: int) -> None:
        self.end = end
        self.found: DiskRanges = []
        self.ready = trio.Event()


class _InOrder(AsyncIterator[Window]):
    """The windows of a disk in ascending order; each makes room for a further one when it is taken."""

    def __init__(self, slots: trio.MemoryReceiveChannel[_Slot], room: trio.Semaphore) -> None:
        self._slots = slots
        self._room = room

    async def __anext__(self) -> Window:
        slot = await anext(self._slots)
        await slot.ready.wait()
        self._room.release()
        return Window(slot.end, slot.found)


@dataclass(frozen=True, slots=True)
class ComparedDisk:
    """A disk to compare.

    Attributes:
        tags: computes the tags of the site.
        data: the ranges of the site that may be other than zeros.
        scope: the ranges to compare.
        position: the position at which the managed disk is read; None: its latest state.
        generation: the generation that the latest state must be of.
    """

    disk_id: str
    size_bytes: int
    tags: Callable[[bytes, int, Sequence[Span]], PackedTags]
    data: DiskRanges
    scope: DiskRanges
    position: int | None = None
    generation: int | None = None

    @classmethod
    def of(
        cls, disk: SnapshotDisk, tags: Tagger, *, scope: DiskRanges | None = None, position: int | None = None
    ) -> ComparedDisk:
        """Return a disk of a snapshot, to compare it as a whole or the ranges of ``scope``."""
        packed = DataRanges(disk.data_ranges)
        return cls(
            disk_id=disk.disk_id,
            size_bytes=disk.size_bytes,
            tags=lambda key, chunk_bytes, spans: tags(key, chunk_bytes, spans, packed),
            data=disk.data_ranges,
            scope=[(0, disk.size_bytes)] if scope is None else scope,
            position=position,
            generation=disk.generation if position is None else None,
        )


class Comparison:
    """One comparison: all its disks are read by one id, and with the same keys."""

    def __init__(self, vault: VaultLink) -> None:
        self.comparison_id = str(uuid.uuid4())
        self._vault = vault
        self._keys = {size: secrets.token_bytes(KEY_BYTES) for size in (COARSE_BYTES, FINE_BYTES)}

    @asynccontextmanager
    async def windows(self, disk: ComparedDisk) -> AsyncIterator[AsyncIterator[Window]]:
        """Compare a disk during the block, which gets the windows in ascending order; the last one ends with the disk."""
        send, receive = trio.open_memory_channel[_Slot](WINDOWS_MAX)
        room = trio.Semaphore(WINDOWS_MAX)

        async def compare(slot: _Slot, spans: list[Span]) -> None:
            slot.found = await self._compare(disk, spans)
            slot.ready.set()

        async def begin_all(nursery: trio.Nursery) -> None:
            async with send:
                for spans, end in _windows(disk):
                    await room.acquire()
                    slot = _Slot(end)
                    nursery.start_soon(compare, slot, spans)
                    await send.send(slot)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin_all, nursery)
            yield _InOrder(receive, room)
            nursery.cancel_scope.cancel()

    async def _compare(self, disk: ComparedDisk, spans: list[Span]) -> DiskRanges:
        coarse = await self._differing(disk, COARSE_BYTES, spans)
        fine: list[int] = []
        ratio = COARSE_BYTES // FINE_BYTES
        step = TAGS_MAX // ratio
        for at in range(0, len(coarse), step):
            part = [(chunk * ratio, ratio) for chunk in coarse[at : at + step]]
            fine += await self._differing(disk, FINE_BYTES, part)
        return _merged(fine, FINE_BYTES, disk.size_bytes)

    async def _differing(self, disk: ComparedDisk, chunk_bytes: int, spans: list[Span]) -> list[int]:
        """Return the chunks that are not equal; an answer that does not cover all chunks is asked to continue."""
        found: list[int] = []
        key = self._keys[chunk_bytes]
        while spans:
            answers: dict[str, PackedTags] = {}

            async def ours(spans: list[Span] = spans, answers: dict[str, PackedTags] = answers) -> None:
                answers["ours"] = await trio.to_thread.run_sync(disk.tags, key, chunk_bytes, spans)

            async def theirs(spans: list[Span] = spans, answers: dict[str, PackedTags] = answers) -> None:
                answer = await self._vault.checksums(
                    disk_id=disk.disk_id,
                    comparison_id=self.comparison_id,
                    key_hex=key.hex(),
                    chunk_bytes=chunk_bytes,
                    spans=spans,
                    position=disk.position,
                    generation=disk.generation,
                )
                answers["theirs"] = answer.checked(spans)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours)
                nursery.start_soon(theirs)
            ends = [answer.upto for answer in answers.values() if answer.upto is not None]
            upto = min(ends, default=None)
            found += differing(below(answers["ours"].packed, upto), below(answers["theirs"].packed, upto))
            if upto is not None and upto <= spans[0][0]:
                raise RigError(Code.BadChecksums, f"no tags of chunk {upto} of disk {disk.disk_id}")
            spans = [] if upto is None else _from(spans, upto)
        return found

    async def end(self) -> None:
        """Close the states at the recovery side; one that cannot be reached closes them by itself."""
        try:
            await self._vault.end_comparison(comparison_id=self.comparison_id)
        except RigError:
            return


@asynccontextmanager
async def compare(vault: VaultLink) -> AsyncIterator[Comparison]:
    """Begin a comparison, and close its states at the end of the block."""
    found = Comparison(vault)
    try:
        yield found
    finally:
        with trio.move_on_after(5, shield=True):
            await found.end()


def _from(spans: list[Span], chunk: int) -> list[Span]:
    """Return the rest of the spans, from ``chunk`` on."""
    rest = [(max(first, chunk), first + count - max(first, chunk)) for first, count in spans]
    return [(first, count) for first, count in rest if count > 0]


def _merged(chunks: list[int], chunk_bytes: int, size_bytes: int) -> DiskRanges:
    ranges: DiskRanges = []
    for chunk in chunks:
        offset = chunk * chunk_bytes
        length = min(chunk_bytes, size_bytes - offset)
        if ranges and sum(ranges[-1]) == offset:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + length)
        else:
            ranges.append((offset, length))
    return ranges


def bounded_ranges(ranges: DiskRanges, count_max: int) -> DiskRanges:
    """Return at most ``count_max`` ranges that contain all of these, which are sorted and do not overlap."""
    unit = COARSE_BYTES
    while len(ranges) > count_max:
        joined: DiskRanges = []
        for offset, length in ranges:
            start, end = offset // unit * unit, -(-(offset + length) // unit) * unit
            if joined and start <= sum(joined[-1]):
                joined[-1] = (joined[-1][0], max(end, sum(joined[-1])) - joined[-1][0])
            else:
                joined.append((start, end - start))
        ranges, unit = joined, unit * 2
    return ranges


def _chunk_runs(ranges: DiskRanges) -> Iterator[tuple[int, int, int]]:
    """Yield the runs of coarse chunks that ranges touch: first chunk, end, and bytes of the ranges in it."""
    run: tuple[int, int, int] | None = None
    for offset, length in ranges:
        first, end = offset // COARSE_BYTES, -(-(offset + length) // COARSE_BYTES)
        if run is not None and first <= run[1]:
            run = (run[0], max(run[1], end), run[2] + length)
        elif length:
            if run is not None:
                yield run
            run = (first, end, length)
    if run is not None:
        yield run


def _windows(disk: ComparedDisk) -> Iterator[tuple[list[Span], int]]:
    """Cut the scope into windows of at most ``WINDOW_BYTES`` of data; yield (spans, end in bytes)."""
    data = iter([*_chunk_runs(disk.data), (1 << 63, 1 << 63, 0)])
    start, stop, data_bytes = next(data)
    spans: list[Span] = []
    room = WINDOW_BYTES
    for first, end, _ in _chunk_runs(disk.scope):
        at = first
        while at < end:
            while stop <= at:
                start, stop, data_bytes = next(data)
            cost = max(CHUNK_COST_BYTES, data_bytes // (stop - start)) if data_bytes else 1
            # The hole before the data, then as much of the data as there is room for.
            upto = min(end, stop, max(start, at) + max(1, room // cost))
            room -= max(0, upto - max(start, at)) * cost
            if spans and sum(spans[-1]) == at:
                spans[-1] = (spans[-1][0], upto - spans[-1][0])
            else:
                spans.append((at, upto - at))
            at = upto
            if room < CHUNK_COST_BYTES or len(spans) == SPANS_MAX:
                yield spans, min(disk.size_bytes, at * COARSE_BYTES)
                spans, room = [], WINDOW_BYTES
    if spans:
        yield spans, disk.size_bytes
