"""States of managed disks that are open for a comparison with the site: by a resync, or by ``siterig verify``.

A comparison is a random id that the agent chooses.  Its first call opens the state, and later calls read the same one:

* the state at a position, for a verification.  It is pinned, so that a compaction does not pass it;
* the latest state, for a resync.  It is not pinned: while a resync is incomplete, nothing after the states of earlier
  generations is compacted.  Parts that the resync sends meanwhile are not in it; their chunks are not compared again.

A comparison that is not used for ``IDLE_S`` is closed.  Its next call opens the state again.

Fault contract: nothing here is durable except pins, whose holders begin with ``comparison``; those that a kill has left are
removed at the next start.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
import trio

from siterig.azure_emu.applier.applier import Applier
from siterig.azure_emu.applier.part_applier import PartApplier
from siterig.azure_emu.disks.view_provider import DiskKeySource, ManagedDiskViews
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.layers.chunk_tags import BLOCK_BYTES, CHUNK_BYTES_MAX, tag_chunks
from siterig.blockfs.layers.layer import Layer
from siterig.blockfs.transfer.chunk_tags import SPANS_MAX, TAGS_MAX, ChunkTags
from siterig.blockfs.transfer.envelope import DataKey
from siterig.cext.checksums import KEY_BYTES
from siterig.cext.packed_tags import PackedTags, Span

IDLE_S = 60.0
OPEN_MAX = 16
"""Limit of the states that are open at a time; the one that was not used for the longest time is closed."""
_HOLDER = "comparison"
_DISK_BYTES_MAX = 64 << 40

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _OpenState:
    """An open state; ``layer`` None: the managed disk is zeros, because its initial replication is not complete."""

    disk_id: str
    holder: str | None
    layer: Layer | None
    used_s: float
    users: int = 0

    def close(self) -> None:
        if self.layer is not None:
            self.layer.close()


class _AskedKeys(DiskKeySource):
    """The keys that were asked for just before a view is opened in a thread."""

    def __init__(self, parts: PartApplier) -> None:
        self._parts = parts
        self._held: dict[str, DataKey] = {}

    async def load(self, managed_disk: str) -> None:
        key = await self._parts.key_of(managed_disk)
        if key is not None:
            self._held[managed_disk] = key

    def get(self, managed_disk: str) -> DataKey:
        if managed_disk not in self._held:
            raise RigError(Code.KeyMissing, f"managed disk {managed_disk} is encrypted, and this applier has no keys")
        return self._held[managed_disk]


class Comparisons:
    """The comparisons of all managed disks of an applier."""

    def __init__(self, applier: Applier) -> None:
        self._applier = applier
        self._clock = applier.clock
        self._views = ManagedDiskViews(applier.folder, applier.clock, _AskedKeys(applier.parts))
        self._open: dict[tuple[str, str], _OpenState] = {}
        self._changing = trio.Lock()
        self._used = trio.Event()

    async def run(self) -> None:
        """Remove the pins of earlier processes, then close unused states until cancelled."""
        await trio.to_thread.run_sync(self._views.reconcile, _HOLDER, ())
        try:
            while True:
                if not self._open:
                    self._used = trio.Event()
                    await self._used.wait()
                await self._clock.real.sleep(IDLE_S / 4)
                now = self._clock.trio_time_s()
                async with self._changing:
                    for key, state in list(self._open.items()):
                        if not state.users and now - state.used_s > IDLE_S:
                            await self._close(key)
        finally:
            with trio.CancelScope(shield=True):
                async with self._changing:
                    for key in list(self._open):
                        await self._close(key)

    async def tags(
        self,
        *,
        disk_id: str,
        comparison_id: str,
        position: int | None,
        generation: int | None,
        key_hex: str,
        chunk_bytes: int,
        spans: list[Span],
    ) -> ChunkTags:
        """Return the tags of chunks, as :meth:`siterig.azure_emu.contracts.recovery_side.RecoverySide.checksums`."""
        key = _checked(key_hex, chunk_bytes, spans)
        state = await self._begin_use(disk_id, comparison_id, position, generation)
        try:
            if state.layer is None:
                return ChunkTags(tags="")
            return ChunkTags.of(await trio.to_thread.run_sync(tags_of, state.layer, key, chunk_bytes, spans))
        finally:
            state.users -= 1
            state.used_s = self._clock.trio_time_s()

    async def end(self, comparison_id: str) -> None:
        """Close the states of a comparison; no-op if none is open."""
        async with self._changing:
            for key in [key for key in self._open if key[0] == comparison_id]:
                await self._close(key)

    async def _begin_use(self, disk_id: str, comparison_id: str, position: int | None, generation: int | None) -> _OpenState:
        async with self._changing:
            key = (comparison_id, disk_id)
            state = self._open.get(key)
            if state is None:
                unused = sorted((state.used_s, each) for each, state in self._open.items() if not state.users)
                for _, each in unused[: max(0, len(self._open) - OPEN_MAX + 1)]:
                    await self._close(each)
                state = await self._opened(disk_id, comparison_id, position, generation)
                self._open[key] = state
                self._used.set()
            state.users += 1
            return state

    async def _opened(self, disk_id: str, comparison_id: str, position: int | None, generation: int | None) -> _OpenState:
        disk = self._applier.disk(disk_id)
        now = self._clock.trio_time_s()
        if position is not None:
            holder = f"{_HOLDER} {comparison_id}"
            await self._views.prepare(disk_id)
            layer = await trio.to_thread.run_sync(self._views.open, disk_id, position, holder)
            return _OpenState(disk_id, holder, layer, now)
        async with disk.lock:
            store = await self._applier.parts.open(disk)
            found = store.watermark().generation
            if generation not in (None, found):
                raise RigError(
                    Code.ManagedDiskReplaced,
                    f"managed disk {disk_id} is at generation {found}, not {generation}",
                )
            view = await trio.to_thread.run_sync(store.latest_view) if store.initial_sync_complete else None
        return _OpenState(disk_id, None, view, now)

    async def _close(self, key: tuple[str, str]) -> None:
        """Close a state.  The caller holds the lock, so that nobody pins the same position for the same holder meanwhile."""
        state = self._open.pop(key)
        while state.users:  # of a call whose caller does not wait for it any more
            await self._clock.real.sleep(0.05)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(state.close)
            if state.holder is None:
                return
            try:
                await trio.to_thread.run_sync(self._views.release, state.disk_id, state.holder)
            except RigError as exc:  # the pin is removed at the next start
                _log.warning("comparison_not_released", disk=state.disk_id, code=exc.code, reason=exc.message)


def tags_of(layer: Layer, key: bytes, chunk_bytes: int, spans: list[Span]) -> PackedTags:
    """Return the tags of chunks of a managed disk's state, computed on all cores; an unreadable chunk differs from all."""
    return tag_chunks(layer, key, chunk_bytes, spans, tags_max=TAGS_MAX, unreadable_differs=True)


def _checked(key_hex: str, chunk_bytes: int, spans: list[Span]) -> bytes:
    """Return the key.

    Raises:
        RigError: ``InvalidChecksumRequest``.
    """
    try:
        key = bytes.fromhex(key_hex)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise RigError(Code.InvalidChecksumRequest, f"key_hex is not {KEY_BYTES} bytes in hexadecimal")
    if not 0 < chunk_bytes <= CHUNK_BYTES_MAX or chunk_bytes % BLOCK_BYTES:
        raise RigError(
            Code.InvalidChecksumRequest,
            f"chunk_bytes is {chunk_bytes}; allowed: multiples of {BLOCK_BYTES} up to {CHUNK_BYTES_MAX}",
        )
    if not 0 < len(spans) <= SPANS_MAX:
        raise RigError(Code.InvalidChecksumRequest, f"{len(spans)} spans; allowed: 1 to {SPANS_MAX}")
    end = 0
    for first, count in spans:
        if count <= 0 or first < end or (first + count) * chunk_bytes > 2 * _DISK_BYTES_MAX:
            raise RigError(
                Code.InvalidChecksumRequest,
                f"span of {count} chunks from chunk {first}: spans are in ascending order, with 1 chunk at least, and end "
                "within the largest disk",
            )
        end = first + count
    return key
