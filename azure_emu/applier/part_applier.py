"""Applying the parts of one disk that are in the cache account, in order.

:mod:`siterig.azure_emu.applier.applier` has the fault contract.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.applier.account_watch import BadPartError
from siterig.azure_emu.applier.bad_parts import REPAIRABLE
from siterig.azure_emu.applier.disk_record import AppliedDisk
from siterig.azure_emu.applier.read_ahead import AHEAD_MAX, DISK_AHEAD_MAX, follows, reading_ahead
from siterig.azure_emu.applier.reporting import reporting_behind
from siterig.azure_emu.applier.transient_errors import TransientErrors
from siterig.azure_emu.contracts.reports import ApplierReports
from siterig.azure_emu.disks.history import PartStatus
from siterig.azure_emu.disks.store import ManagedDiskStore, known_generation, reset_disk
from siterig.azure_emu.disks.view import is_encrypted
from siterig.azure_emu.upgrade.disk_encryption import encrypt_disk
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.codec import decompress
from siterig.blockfs.transfer.data_keys import DataKeys
from siterig.blockfs.transfer.envelope import DataKey
from siterig.blockfs.transfer.part_name import Listing, PartName, Watermark

DAMAGE_RETRIES, DAMAGE_RETRY_S = 3, 1.0
"""How often, and after how long each, the same damage must be met again before a managed disk is set aside."""

TAGS_IN_REPORT_MAX = 500
"""Limit of the tags in one report: after a restart all tags are reported, and a large transaction blocks the vault."""

log = structlog.get_logger(__name__)


class PartApplier:
    """Applies the parts of a disk and reports them.  The caller of a method has the disk's lock: there is one writer."""

    def __init__(
        self,
        folder: Path,
        cache: CacheAccount,
        reports: ApplierReports,
        *,
        waits: Waits,
        clock: Clock,
        errors: TransientErrors,
        keys: DataKeys | None = None,
    ) -> None:
        """Prepare to apply.

        Args:
            folder: the folder of the managed disks.
            cache: the cache account.
            reports: the vault.
            waits: registers the things that the applier waits for.
            clock: the time.
            errors: the log of errors that will pass.
            keys: the keys of managed disks; None: new ones are not encrypted.
        """
        self._keys = keys
        self._folder = folder
        self._cache = cache
        self._reports = reports
        self._waits = waits
        self._clock = clock
        self._errors = errors
        self._ahead = trio.Semaphore(AHEAD_MAX)

    async def open(self, disk: AppliedDisk) -> ManagedDiskStore:
        """Open the managed disk, or return it if it is open; one whose key was dropped is opened again.

        One that an older siterig made without encryption is encrypted first.
        """
        if disk.key_dropped and disk.store is not None and disk.store.is_encrypted:
            await trio.to_thread.run_sync(disk.store.close)  # waits for a compaction step
            disk.store = None
            disk.begin_reports()
        disk.key_dropped = False
        if disk.store is None:
            folder = self._folder / disk.disk_id
            key = await self.key_of(disk.disk_id) if await trio.to_thread.run_sync(folder.is_dir) else None
            if key is not None and await trio.to_thread.run_sync(is_encrypted, folder) is False:
                await self._encrypt(disk.disk_id, folder, key)
            disk.store = await trio.to_thread.run_sync(partial(ManagedDiskStore.open, folder, clock=self._clock, key=key))
        return disk.store

    async def _encrypt(self, disk_id: str, folder: Path, key: DataKey) -> None:
        """Encrypt a managed disk, step by step: a cancellation ends it between two steps, and it begins again later."""
        log.info("managed_disk_encryption_begun", disk=disk_id)
        with self._waits.waiting("encrypt", disk=disk_id) as because:
            steps, done = encrypt_disk(folder, key, self._clock), 0
            while (step := await trio.to_thread.run_sync(next, steps, None)) is not None:
                done = step
                text = f"managed disk {disk_id} of an older siterig is being encrypted ({done} bytes so far)"
                because(RigError(Code.DiskNotEncrypted, text, recoverable=True))
        log.info("managed_disk_encrypted", disk=disk_id, bytes=done)

    async def key_of(self, disk_id: str) -> DataKey | None:
        """Return the key of a managed disk, which the vault makes at the first call; None if disks are not encrypted."""
        return None if self._keys is None else (await self._keys.disk_key(disk_id=disk_id)).key()

    async def open_or_reset(self, disk: AppliedDisk) -> ManagedDiskStore:
        """Open the managed disk, or replace one to which nothing can be applied any more when a resync begins.

        Raises:
            RigError: ``DiskPinned`` if a position of the damaged disk is pinned.
        """
        try:
            return await self.open(disk)
        except RigError as exc:
            if exc.code != Code.StoreCorrupt:
                raise
            parts = (await self._cache.list(disk.disk_id)).parts
            begun = max((part.generation for part in parts if (part.stream, part.first) == ("sync", 1)), default=0)
            folder = self._folder / disk.disk_id
            if begun <= await trio.to_thread.run_sync(known_generation, folder):
                raise
            for _ in range(DAMAGE_RETRIES):  # all positions would be lost: the error must not be a temporary one
                await self._clock.sleep(DAMAGE_RETRY_S)
                try:
                    return await self.open(disk)
                except RigError as again:
                    if (again.code, again.message) != (exc.code, exc.message):
                        raise
            log.warning("damaged_store_set_aside", disk=disk.disk_id, reason=exc.message)
            key = await self.key_of(disk.disk_id)
            resetting = partial(reset_disk, folder, created_ns=self._clock.wall_ns(), clock=self._clock, key=key)
            disk.store = await trio.to_thread.run_sync(resetting)
            disk.begin_reports()
            return disk.store

    async def apply_cached(
        self, disk: AppliedDisk, store: ManagedDiskStore, listing: Listing | None = None, *, parts_max: int | None = None
    ) -> bool:
        """Apply the parts in the cache account that come next: all, or so many that ``disk.more`` is then set.

        Args:
            disk: the disk.
            store: its managed disk.
            listing: its blobs; None: the account is asked for them.
            parts_max: the limit of the parts.
        Returns:
            True if nothing is left: no part is in the account, and all reports arrived.
        """
        disk.more = False
        before = disk.reported
        await self._report(disk, store)
        if listing is None:
            listing = await self._cache.list(disk.disk_id)
        disk.watch.bad.keep_only(listing.sizes)
        if disk.later is not None:
            # Also if a resync has begun: it may compare only a part of the disk, and after its first part nobody can tell.
            await self._reports.store_older(watermark=store.watermark())
            if all(part.generation <= disk.later.generation for part in listing.parts):
                raise _older(disk.disk_id, store.watermark(), disk.later)
        parts = await self._delete_applied(disk, store, listing.parts)
        await self._check_next_generation(disk, store, parts, listing)
        current, ended = _in_order(disk.watch.candidates(store, parts))
        current = await self._apply_parts(disk, store, current, "next", listing, parts_max=parts_max)
        if not disk.more:
            # A conflict is tried so that it is refused and reported by its name.
            current = await self._apply_parts(disk, store, current, "conflict", listing)
        current = await self._delete_applied(disk, store, ended + current)
        is_reported = await disk.watch.report(store, listing, current, moved=disk.reported != before)
        missing = None if disk.more else await disk.watch.check_missing(store, listing, current)
        if missing is None:
            self._waits.clear("apply", disk=disk.disk_id)
        else:
            self._waits.set("apply", missing.code, missing.message, disk=disk.disk_id)
        if disk.refused:  # the refused part is gone: a report ends the error at the vault, even if nothing was applied
            disk.refused.clear()
            disk.reported = None
            await self._report(disk, store)
        disk.retry_at_s = 0.0
        has_skipped = any(disk.watch.is_skipped(store, part) for part in listing.sizes)
        is_applied = not current and not has_skipped and disk.reported == store.watermark()
        return is_applied and is_reported and not disk.more

    async def _check_next_generation(
        self, disk: AppliedDisk, store: ManagedDiskStore, parts: list[PartName], listing: Listing
    ) -> None:
        """Check the first part of a later generation.

        It ends the current generation even if it is not part 1; a bad part does not.
        """
        part = disk.watch.unverified_start(store, parts)
        if part is None:
            return
        try:
            data = await self._cache.get(part)
            await trio.to_thread.run_sync(decompress, part, data)
        except RigError as exc:
            if exc.code not in REPAIRABLE:
                raise
            await disk.watch.note_failed(store, part, exc, _in_order(listing.parts)[0])
        else:
            disk.watch.sound.add(part)
            disk.watch.bad.forget(part)

    async def _apply_parts(
        self,
        disk: AppliedDisk,
        store: ManagedDiskStore,
        parts: list[PartName],
        status: PartStatus,
        listing: Listing,
        *,
        parts_max: int | None = None,
    ) -> list[PartName]:
        """Apply each part that has this status when its turn comes; return the parts that had not.

        One pass is enough, however many parts there are: in this order, a part comes after those that it needs.  A bad part
        is skipped, because the next part may exist under another name.  If it does not, the error of the bad part is raised.
        """
        left: list[PartName] = []
        failed: list[BadPartError] = []
        applied = 0
        report = partial(self._report_and_delete, disk, store, listing)
        async with (
            reading_ahead(self._cache, self._ahead) as downloads,
            reporting_behind(report, downloads.nursery) as behind,
        ):
            for index, part in enumerate(parts):
                if store.classify(part) != status or disk.more:
                    left.append(part)
                    continue
                if applied == parts_max:
                    disk.more = True
                    left.append(part)
                    continue
                try:
                    data = await downloads.get(part)
                    left_max = len(parts) if parts_max is None else parts_max - applied - 1
                    following = _following(parts, index, min(left_max, DISK_AHEAD_MAX))
                    sizes = {each: listing.sizes[each] for each in following if disk.watch.bad.reason(each) is None}
                    downloads.begin(sizes)
                    await trio.to_thread.run_sync(store.apply_part, part, data)
                except RigError as exc:
                    if exc.code not in REPAIRABLE:
                        raise
                    bad = await disk.watch.note_failed(store, part, exc, _in_order(listing.parts)[0])
                    if bad is not None:
                        failed.append(bad)
                    left.append(part)
                    continue
                applied += 1
                disk.applied_parts += 1
                disk.watch.bad.forget(part)
                disk.refused.clear()
                behind.note(part, is_last=index + 1 == len(parts))
        still = [bad for bad in failed if store.classify(bad.part) == status]
        if still:
            await disk.watch.report(store, listing, left)
            raise still[0]
        return left

    async def _report_and_delete(
        self, disk: AppliedDisk, store: ManagedDiskStore, listing: Listing, parts: list[PartName], is_last: bool
    ) -> None:
        # The report of the last part brings the state of the account, too: an idle disk needs no second one.
        if await self._report(disk, store, disk.watch.waiting_bytes(store, listing) if is_last else None):
            for part in parts:
                await self._cache.delete(part)
        await disk.watch.report_progress(store, listing)

    async def _report(self, disk: AppliedDisk, store: ManagedDiskStore, waiting_bytes: int | None = None) -> bool:
        """Report new progress and tags to the vault; if that fails, parts are applied all the same and blobs stay.

        Args:
            disk: the disk.
            store: its managed disk, to which parts may be applied meanwhile.
            waiting_bytes: the bytes that wait in the account, if that is to be reported, too.
        Returns:
            True if the vault has it, and the blobs of the parts that were applied before the call can be deleted.
        """
        tags = store.tags(disk.reported_tags)
        watermark = store.watermark()  # read last: it contains the parts of all these tags
        while disk.reported != watermark or tags:
            some, tags = tags[:TAGS_IN_REPORT_MAX], tags[TAGS_IN_REPORT_MAX:]
            try:
                disk.later = await self._reports.applied(watermark=watermark, tags=some, waiting_bytes=waiting_bytes)
            except RigError as exc:
                self._waits.set("report", exc.code, exc.message, disk=disk.disk_id)
                self._errors.note(exc)
                return False
            self._waits.clear("report", disk=disk.disk_id)
            if disk.later is not None:
                return False  # no blob is deleted, because it may be needed
            if waiting_bytes is not None:
                disk.watch.note_reported(waiting_bytes)
            disk.reported = watermark
            disk.reported_tags += len(some)
            for tag in some:
                log.info("tag_applied", disk=disk.disk_id, trace=tag.tag_id, position=tag.position)
        return True

    async def _delete_applied(self, disk: AppliedDisk, store: ManagedDiskStore, parts: list[PartName]) -> list[PartName]:
        """Delete the blobs of parts that are applied and reported; return the other parts."""
        if disk.reported != store.watermark():
            return parts
        left = []
        for part in parts:
            if store.classify(part) == "applied":
                await self._cache.delete(part)
                disk.watch.bad.forget(part)
            else:
                left.append(part)
        return left


def _following(parts: list[PartName], index: int, most: int) -> list[PartName]:
    """Return the parts after one in a list that follow it without a gap, so many at most."""
    found: list[PartName] = []
    for before, part in pairwise(parts[index : index + 1 + most]):
        if not follows(part, before):
            break
        found.append(part)
    return found


def _older(disk_id: str, has: Watermark, had: Watermark) -> RigError:
    return RigError(
        Code.ManagedDiskOlder,
        f"managed disk {disk_id} is older than its last reported state: "
        f"it ends at position {has.complete_position}, and had "
        f"{had.complete_position}; resynchronize the VM",
    )


def _in_order(parts: list[PartName]) -> tuple[list[PartName], list[PartName]]:
    """Return the parts in the order of application, and the parts of generations that ended.

    A generation ends when the sync of a later one has begun.  If two parts begin alike, the longer one is first.
    """
    newest = max((part.generation for part in parts if part.stream == "sync"), default=0)
    current = [part for part in parts if part.generation >= newest]
    current.sort(key=lambda part: (part.generation, part.stream == "log", part.first, -part.last))
    return current, [part for part in parts if part.generation < newest]
