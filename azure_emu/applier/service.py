"""The recovery side's service: managed disks, and the way into and out of the cache account."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from siterig.azure_emu.applier.applier import NET_S, UNSETTLED_S, Applier
from siterig.azure_emu.applier.comparisons import Comparisons
from siterig.azure_emu.applier.export import Exporter, data_bytes
from siterig.azure_emu.applier.seeding import Seeding
from siterig.azure_emu.contracts.recovery_side import (
    AppliedFigures,
    Change,
    ChangeStep,
    Damage,
    ManagedDiskState,
    RecoverySide,
)
from siterig.azure_emu.contracts.seeds import SeedImage
from siterig.azure_emu.disks.change_steps import change_steps
from siterig.azure_emu.disks.loader import StoreState, load_history, query_consistently
from siterig.azure_emu.disks.queries import change_list, disk_state, position_at
from siterig.azure_emu.disks.store import ManagedDiskStore, delete_disk
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.images.image_formats import ImageFormat
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.chunk_tags import ChunkTags
from siterig.blockfs.transfer.part_cipher import keep_keys
from siterig.blockfs.transfer.part_name import Listing, Watermark

T = TypeVar("T")
COUNTING_S = 1.0
"""The limit for the list of the account that is counted for figures."""
_log = structlog.get_logger(__name__)


class RecoveryService(RecoverySide):
    """The methods that other roles call; the :class:`Applier` does the work on the parts."""

    def __init__(self, applier: Applier, cache: CacheAccount, drop_keys: Callable[[str | None], None] = keep_keys) -> None:
        """Serve the managed disks of an applier.

        Args:
            applier: the applier.
            cache: the account that exports go to.
            drop_keys: drops the data keys of a disk, or all keys, that the account uses.
        """
        self._drop_keys = drop_keys
        self._applier = applier
        self._folder = applier.folder
        self._cache = cache
        self._comparisons = Comparisons(applier)
        self._exporter = Exporter(cache)
        self._seeding = Seeding(applier)

    async def run(
        self,
        *,
        poll_s: float = UNSETTLED_S,
        net_s: float = NET_S,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Run the applier until cancelled (:meth:`Applier.run`); started when the leftovers of a kill are removed."""
        older_spool = self._folder / ".export"  # an older siterig wrote parts of exports into files
        await trio.to_thread.run_sync(partial(shutil.rmtree, older_spool, ignore_errors=True))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._comparisons.run)
            await self._applier.run(poll_s=poll_s, net_s=net_s, task_status=task_status)

    async def create_managed_disk(self, *, disk_id: str, size_bytes: int) -> None:
        disk, folder = self._applier.disk(disk_id), self._folder / disk_id
        async with disk.lock:
            if folder.exists():
                store = await self._applier.parts.open(disk)
                # One that has a state is right in any size: it grows by the parts that come.
                if not store.initial_sync_complete and store.created_size_bytes < size_bytes:
                    raise RigError(
                        Code.DiskExists,
                        f"managed disk {disk_id} exists with {store.created_size_bytes} bytes, not {size_bytes}",
                    )
                return
            clock, key = self._applier.clock, await self._applier.parts.key_of(disk_id)

            def create() -> ManagedDiskStore:
                safe_files.make_folder(self._folder, parents=True)
                return ManagedDiskStore.create(
                    folder, disk_id=disk_id, size_bytes=size_bytes, created_ns=clock.wall_ns(), clock=clock, key=key
                )

            disk.store = await trio.to_thread.run_sync(create)
            self._applier.deleted.discard(disk_id)
            disk.begin_reports()
            disk.retry_at_s = 0.0
            disk.refused.clear()

    async def delete_managed_disk(self, *, disk_id: str) -> None:
        disk = self._applier.disk(disk_id)
        async with disk.lock:
            if disk.store is not None:
                await trio.to_thread.run_sync(disk.store.close)  # waits for a compaction step
                disk.store = None
            disk.retain = 0
            self._applier.deleted.add(disk_id)
            disk.lists_void += 1
            await trio.to_thread.run_sync(delete_disk, self._folder / disk_id)
            await self._cache.remove_disk(disk_id)
            self._drop_keys(disk_id)  # the vault deletes them with the managed disk

    async def check_seed(self, *, image: str, image_format: ImageFormat | None, size_bytes: int) -> SeedImage:
        return await self._seeding.check(image, image_format, size_bytes)

    async def seed_disk(self, *, disk_id: str, image: str, image_format: ImageFormat | None) -> Watermark:
        return await self._seeding.seed(disk_id, image, image_format)

    async def seed_progress(self, *, disk_id: str) -> int:
        return self._seeding.progress(disk_id)

    async def parts_put(self, *, disk_ids: list[str]) -> None:
        self._applier.wake(disk_ids)

    async def process_latest(self, *, disk_ids: list[str]) -> list[Watermark]:
        return await self._applier.process_latest(disk_ids)

    async def checksums(
        self,
        *,
        disk_id: str,
        comparison_id: str,
        key_hex: str,
        chunk_bytes: int,
        spans: list[tuple[int, int]],
        position: int | None = None,
        generation: int | None = None,
    ) -> ChunkTags:
        return await self._comparisons.tags(
            disk_id=disk_id,
            comparison_id=comparison_id,
            position=position,
            generation=generation,
            key_hex=key_hex,
            chunk_bytes=chunk_bytes,
            spans=spans,
        )

    async def end_comparison(self, *, comparison_id: str) -> None:
        await self._comparisons.end(comparison_id)

    async def retain(self, *, positions: dict[str, int]) -> None:
        for disk, position in [(self._applier.disk(disk_id), position) for disk_id, position in positions.items()]:
            if position > disk.retain:
                disk.retain, disk.compact_at_s = position, 0.0
                self._applier.wake([])

    async def disk_state(self, *, disk_id: str) -> ManagedDiskState:
        """Return the state of the managed disk, with the position that was passed to :meth:`retain`."""
        disk = self._applier.disk(disk_id)
        return await trio.to_thread.run_sync(disk_state, self._folder / disk_id, disk.retain)

    async def account_bytes(self, *, disk_id: str) -> int:
        return sum((await self._cache.list(disk_id)).sizes.values())

    async def applied_figures(self, *, disk_ids: list[str]) -> dict[str, AppliedFigures]:
        listings: dict[str, Listing] = {}
        try:
            with self._applier.clock.real.move_on_after(COUNTING_S):
                listings = await self._cache.list_all(disk_ids)
        except RigError as error:
            _log.info("account_not_counted", code=error.code, reason=error.message)
        return {
            disk_id: AppliedFigures(
                account_bytes=sum(listings[disk_id].sizes.values()) if disk_id in listings else None,
                applied_parts=self._applier.disk(disk_id).applied_parts,
            )
            for disk_id in disk_ids
        }

    async def position_at(self, *, disk_id: str, time_ns: int) -> int:
        return await self._query(disk_id, lambda state: position_at(state, time_ns))

    async def changes(self, *, disk_id: str, after: int, upto: int, limit: int) -> list[Change]:
        return await self._query(disk_id, lambda state: change_list(state, after, upto, limit))

    async def change_steps(self, *, disk_id: str, after: int, upto: int) -> list[ChangeStep]:
        return await self._query(disk_id, lambda state: change_steps(state, after, upto))

    async def _query(self, disk_id: str, query: Callable[[StoreState], T]) -> T:
        folder = self._folder / self._applier.disk(disk_id).disk_id
        return await trio.to_thread.run_sync(query_consistently, folder, query)

    async def scrub(self, *, disk_id: str) -> list[Damage]:
        """Read every byte of the managed disk and return the damage; it works for a disk that cannot be opened, too."""
        folder = self._folder / self._applier.disk(disk_id).disk_id
        return await trio.to_thread.run_sync(lambda: list(scrub(folder, clock=self._applier.clock)))

    async def repair(self, *, disk_id: str) -> None:
        """Open the managed disk again, which repairs it; one that could not be opened again stays open."""
        disk = self._applier.disk(disk_id)
        async with disk.lock:
            loaded = await trio.to_thread.run_sync(load_history, self._folder / disk_id)
            if loaded.journal.broken is not None:
                raise loaded.journal.broken
            if disk.store is not None:
                await trio.to_thread.run_sync(disk.store.close)  # waits for a compaction step
                disk.store = None
                disk.begin_reports()
            await self._applier.parts.open(disk)

    async def forget_keys(self) -> None:
        self._drop_keys(None)
        self._applier.drop_keys()

    async def export_disk(self, *, source: str, source_id: str, size_bytes: int) -> int:
        self._applier.disk(source_id)
        return await self._exporter.export(source=Path(source), source_id=source_id, size_bytes=size_bytes)

    async def data_bytes(self, *, source: str) -> int:
        return await trio.to_thread.run_sync(data_bytes, Path(source))

    async def export_progress(self, *, source_id: str) -> int:
        return self._exporter.progress(source_id)
