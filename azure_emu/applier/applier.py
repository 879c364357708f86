"""The applier: applies parts of the cache account to the managed disks, in order, each exactly once in effect.

Fault contract
--------------
A blob is deleted only after its part is durable in the managed disk *and* reported to the vault.  If the process is killed
between two of these steps, the next start does the rest, with the same result.  On start, everything that is applied is
reported again, because the vault may have missed it.  An unreachable cache account or vault is waited for.

A part that cannot be used (unreadable, corrupt, ...) stays in the account and is reported once.  The site is asked to send
it again, and the applier tries it again from time to time.  A blob that is no part, or a bad part of a later generation, is
skipped and reported.  Applying a generation ends when the first sync part of a later one is in the account, because that
sync was made against the state before.
"""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.applier.account_watch import AccountWatch, BadPartError
from siterig.azure_emu.applier.bad_parts import LONG_BAD, QUICK_FOR_S, REPAIRABLE
from siterig.azure_emu.applier.disk_record import AppliedDisk
from siterig.azure_emu.contracts.reports import ApplierReports
from siterig.azure_emu.disks.history import PartStatus
from siterig.azure_emu.disks.store import ManagedDiskStore, discard_leftovers, known_generation, reset_disk
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.files import safe_files
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.codec import decompress
from siterig.blockfs.transfer.part_name import Listing, PartName, Watermark

RETRY_REFUSED_S = 30.0
"""The delay after a refusal before the disk is processed again."""
RETRY_RECOVERABLE_S = 5.0
"""The same delay if the part is not the reason, for example if the host's disk was full."""
REPAIR_WAIT_S = 45.0
"""``process_latest`` waits for a bad part that has been known for less than this; otherwise the disk ends before it."""

REPAIR_POLL_S = 2.0

COMPACT_EVERY_S = 10.0
"""The delay between two compactions or checkpoints; frames that are pinned now may be released then."""

DAMAGE_RETRIES, DAMAGE_RETRY_S = 3, 1.0
"""How often, and after how long each, the same damage must be met again before a managed disk is set aside."""

TAGS_IN_REPORT_MAX = 500
"""Limit of the tags in one report: after a restart all tags are reported, and a large transaction blocks the vault."""

log = structlog.get_logger(__name__)


class Applier:
    """Processes the managed disks in rounds, and at once on request."""

    def __init__(
        self,
        disks: Path,
        cache: CacheAccount,
        reports: ApplierReports,
        waits: Waits | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Prepare to apply.

        Args:
            disks: the folder of the managed disks, one folder each.
            cache: the cache account.
            reports: the vault.
            waits: registers the things that the applier waits for.
            clock: the time.
        """
        self.folder = disks
        self.waits = waits or Waits(clock)
        self.clock = clock
        self.deleted: set[str] = set()
        """Ids of managed disks that were deleted since the start."""
        self._cache = cache
        self._reports = reports
        self._disks: dict[str, AppliedDisk] = {}
        self._transient_error: str | None = None

    async def run(self, *, poll_s: float = 0.5, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Process the vault's replicating disks until cancelled; started when the leftovers of a kill are removed."""
        safe_files.make_folder(self.folder, parents=True)
        await trio.to_thread.run_sync(discard_leftovers, self.folder)
        task_status.started()
        async with trio.open_nursery() as background:
            while True:
                try:
                    disk_ids = await self._reports.replicating_disks()
                except RigError as exc:
                    self.waits.set("vault", exc.code, exc.message)
                    self._log_transient_error(exc)
                else:
                    self.waits.clear("vault")
                    self._forget_waits(disk_ids)
                    await self._process_round([self._record(disk_id) for disk_id in disk_ids], background)
                for disk in self._disks.values():
                    if self._is_compaction_due(disk):
                        disk.compacting = True
                        background.start_soon(self._compact, disk)
                await self.clock.real.sleep(poll_s)

    async def _process_round(self, disks: list[AppliedDisk], background: trio.Nursery) -> None:
        """Process all disks at the same time.

        A disk with a bad part continues in the background: reading that part takes seconds, and others do not wait for it.
        """
        async with trio.open_nursery() as nursery:
            for disk in disks:
                if not disk.watch.bad:
                    nursery.start_soon(self._process_disk, disk)
                elif not disk.detached:
                    disk.detached = True
                    background.start_soon(self._process_detached, disk)

    def _forget_waits(self, disk_ids: list[str]) -> None:
        """Clear the waits of disks that do not replicate any more."""
        for disk_id in self._disks.keys() - set(disk_ids):
            for place in ("apply", "report", "fold"):
                self.waits.clear(place, disk=disk_id)

    def _is_compaction_due(self, disk: AppliedDisk) -> bool:
        store = disk.store
        if store is None or disk.compacting or self.clock.trio_time_s() < disk.compact_at_s:
            return False
        return store.compactor.checkpoint_due or 0 < store.oldest_position < disk.retain

    async def _compact(self, disk: AppliedDisk) -> None:
        """Save a checkpoint and compact while parts are applied; this does not take the disk's lock."""
        store = disk.store
        try:
            if store is not None:
                await trio.to_thread.run_sync(store.compactor.checkpoint)
                while await trio.to_thread.run_sync(store.compactor.compact_step, disk.retain):
                    pass  # the end of the applier waits for one step at most
            disk.compact_at_s = self.clock.trio_time_s() + COMPACT_EVERY_S
            self.waits.clear("fold", disk=disk.disk_id)
        except RigError as exc:
            disk.compact_at_s = self.clock.trio_time_s() + _retry_s(exc)
            if exc.code != Code.DiskNotFound:
                self.waits.set("fold", exc.code, exc.message, disk=disk.disk_id)
                log.warning("compaction_failed", disk=disk.disk_id, code=exc.code, reason=exc.message)
        finally:
            disk.compacting = False

    async def _process_detached(self, disk: AppliedDisk) -> None:
        try:
            await self._process_disk(disk)
        finally:
            disk.detached = False

    async def _process_disk(self, disk: AppliedDisk) -> None:
        """Run one round of :meth:`run` for one disk; no expected failure ends the applier."""
        if self.clock.trio_time_s() < disk.retry_at_s:
            return
        try:
            async with disk.lock:
                await self._apply_cached(disk, await self._open_or_reset(disk))
        except RigError as exc:
            if exc.code == Code.DiskNotFound and disk.disk_id in self.deleted:
                self.waits.clear("apply", disk=disk.disk_id)  # deleted after the vault answered
                return
            self.waits.set("apply", exc.code, exc.message, disk=disk.disk_id)
            if exc.code == Code.CacheUnreachable:
                disk.retry_at_s = self.clock.trio_time_s() + exc.retry_after_s
                self._log_transient_error(exc)
            else:
                await self._refuse(disk, exc)
        else:
            self._transient_error = None

    def _log_transient_error(self, exc: RigError) -> None:
        """Log an error that will pass; it occurs at each poll and is logged once."""
        if self._transient_error != exc.message:
            self._transient_error = exc.message
            log.warning("peer_unavailable", code=exc.code, reason=exc.message)

    async def _refuse(self, disk: AppliedDisk, exc: RigError) -> None:
        """Report a failure to the vault, once, and delay the next attempt."""
        now_s = self.clock.trio_time_s()
        disk.retry_at_s = now_s + _retry_s(exc)
        if isinstance(exc, BadPartError):
            disk.retry_at_s = now_s + disk.watch.bad.retry_s(exc.part, now_s)
            if not disk.watch.bad.is_certain(exc.part):
                return
        recoverable, message = exc.recoverable, exc.message
        if isinstance(exc, BadPartError):  # its repair is under way; after a long time an administrator is needed
            recoverable = disk.watch.bad.age_s(exc.part, now_s) < QUICK_FOR_S
            message = message if recoverable else f"{message}; {LONG_BAD}"
        key = (exc.code, message, recoverable)
        if key in disk.refused:
            return
        log.error("apply_failed", disk=disk.disk_id, code=exc.code, reason=exc.message)
        try:
            await self._reports.apply_failed(disk_id=disk.disk_id, code=exc.code, message=message, recoverable=recoverable)
        except RigError as report_exc:
            self._log_transient_error(report_exc)
        else:
            disk.refused.add(key)

    # --- one disk; the caller has its lock ----------------------------------------------------------------------

    async def _apply_cached(self, disk: AppliedDisk, store: ManagedDiskStore) -> None:
        """Apply all parts in the cache account that come next."""
        await self._report(disk, store)
        listing = await self._cache.list(disk.disk_id)
        disk.watch.bad.keep_only(listing.sizes)
        if disk.later is not None and all(part.generation <= disk.later.generation for part in listing.parts):
            await self._reports.store_older(watermark=store.watermark())
            raise _older(disk.disk_id, store.watermark(), disk.later)
        parts = await self._delete_applied(disk, store, listing.parts)
        await self._check_next_generation(disk, store, parts, listing)
        current, ended = _in_order(disk.watch.candidates(store, parts))
        current = await self._apply_parts(disk, store, current, "next", listing)
        # A conflict is tried so that it is refused and reported by its name.
        current = await self._apply_parts(disk, store, current, "conflict", listing)
        current = await self._delete_applied(disk, store, ended + current)
        await disk.watch.report(store, listing, current)
        missing = await disk.watch.check_missing(store, current)
        if missing is None:
            self.waits.clear("apply", disk=disk.disk_id)
        else:
            self.waits.set("apply", missing.code, missing.message, disk=disk.disk_id)
        if disk.refused:  # the refused part is gone: a report ends the error at the vault, even if nothing was applied
            disk.refused.clear()
            disk.reported = None
            await self._report(disk, store)
        disk.retry_at_s = 0.0

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
        self, disk: AppliedDisk, store: ManagedDiskStore, parts: list[PartName], status: PartStatus, listing: Listing
    ) -> list[PartName]:
        """Apply each part that has this status when its turn comes; return the parts that had not.

        One pass is enough, however many parts there are: in this order, a part comes after those that it needs.  A bad part
        is skipped, because the next part may exist under another name.  If it does not, the error of the bad part is raised.
        """
        left, failed = [], []
        for part in parts:
            if store.classify(part) != status:
                left.append(part)
                continue
            try:
                data = await self._cache.get(part)
                await trio.to_thread.run_sync(store.apply_part, part, data)
            except RigError as exc:
                if exc.code not in REPAIRABLE:
                    raise
                bad = await disk.watch.note_failed(store, part, exc, _in_order(listing.parts)[0])
                if bad is not None:
                    failed.append(bad)
                left.append(part)
                continue
            disk.watch.bad.forget(part)
            disk.refused.clear()
            await self._report(disk, store)
            await self._delete_applied(disk, store, [part])
            await disk.watch.report_progress(store, listing)
        still = [bad for bad in failed if store.classify(bad.part) == status]
        if still:
            await disk.watch.report(store, listing, left)
            raise still[0]
        return left

    async def _report(self, disk: AppliedDisk, store: ManagedDiskStore) -> None:
        """Report new progress and tags to the vault; if that fails, parts are applied all the same and blobs stay."""
        watermark, tags = store.watermark(), store.tags(disk.reported_tags)
        while disk.reported != watermark or tags:
            some, tags = tags[:TAGS_IN_REPORT_MAX], tags[TAGS_IN_REPORT_MAX:]
            try:
                disk.later = await self._reports.applied(watermark=watermark, tags=some)
            except RigError as exc:
                self.waits.set("report", exc.code, exc.message, disk=disk.disk_id)
                self._log_transient_error(exc)
                return
            self.waits.clear("report", disk=disk.disk_id)
            if disk.later is not None:
                return  # no blob is deleted, because it may be needed
            disk.reported = watermark
            disk.reported_tags += len(some)

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

    # --- on request ---------------------------------------------------------------------------------------------

    def disk(self, disk_id: str) -> AppliedDisk:
        """Return the record of a disk.

        Raises:
            RigError: ``InvalidDiskId``: the id becomes the name of a folder, so it must be a UUID.
        """
        try:
            sound = str(uuid.UUID(disk_id)) == disk_id
        except ValueError:
            sound = False
        if not sound:
            raise RigError(Code.InvalidDiskId, f"disk id {disk_id!r} is not a lower-case UUID")
        return self._record(disk_id)

    def _record(self, disk_id: str) -> AppliedDisk:
        if disk_id not in self._disks:
            watch = AccountWatch(disk_id, self._reports, self.waits, self.clock)
            self._disks[disk_id] = AppliedDisk(disk_id, watch)
        return self._disks[disk_id]

    async def open(self, disk: AppliedDisk) -> ManagedDiskStore:
        """Open the managed disk; the caller has the disk's lock, so that there is one writer."""
        if disk.store is None:
            opening = partial(ManagedDiskStore.open, self.folder / disk.disk_id, clock=self.clock)
            disk.store = await trio.to_thread.run_sync(opening)
        return disk.store

    async def _open_or_reset(self, disk: AppliedDisk) -> ManagedDiskStore:
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
            folder = self.folder / disk.disk_id
            if begun <= await trio.to_thread.run_sync(known_generation, folder):
                raise
            for _ in range(DAMAGE_RETRIES):  # all positions would be lost: the error must not be a temporary one
                await self.clock.sleep(DAMAGE_RETRY_S)
                try:
                    return await self.open(disk)
                except RigError as again:
                    if (again.code, again.message) != (exc.code, exc.message):
                        raise
            log.warning("damaged_store_set_aside", disk=disk.disk_id, reason=exc.message)
            resetting = partial(reset_disk, folder, created_ns=self.clock.wall_ns(), clock=self.clock)
            disk.store = await trio.to_thread.run_sync(resetting)
            disk.begin_reports()
            return disk.store

    async def process_latest(self, disk_ids: list[str]) -> list[Watermark]:
        """Apply all parts of these disks that are in the cache account now; return the watermarks afterwards.

        A bad part is waited for until the site has sent it again, for at most ``REPAIR_WAIT_S``.  After that its disk ends
        before the part, and the vault knows of it.

        Raises:
            RigError: a failure that may pass (``CacheUnreachable``, ``DiskFull``), or a disk that cannot be opened
                (``DiskNotFound``, ``StoreCorrupt``).
        """
        disks = [self.disk(disk_id) for disk_id in disk_ids]
        await _together([partial(self._process_latest, disk) for disk in disks])
        return [await self._watermark(disk) for disk in disks]

    async def _watermark(self, disk: AppliedDisk) -> Watermark:
        async with disk.lock:
            return (await self.open(disk)).watermark()

    async def _process_latest(self, disk: AppliedDisk) -> None:
        try:
            while (bad := await self._apply_now(disk)) is not None:
                if disk.watch.bad.age_s(bad.part, self.clock.trio_time_s()) >= REPAIR_WAIT_S:
                    return
                self.waits.set("latest", bad.code, bad.message, disk=disk.disk_id)
                await self.clock.sleep(REPAIR_POLL_S)
        finally:
            self.waits.clear("latest", disk=disk.disk_id)

    async def _apply_now(self, disk: AppliedDisk) -> BadPartError | None:
        """Apply the disk's parts; return the error of a bad part.  It and a refusal are reported."""
        async with disk.lock:
            store = await self._open_or_reset(disk)
            try:
                await self._apply_cached(disk, store)
            except BadPartError as exc:
                await self._refuse(disk, exc)
                return exc
            except RigError as exc:
                if exc.recoverable:
                    raise
                await self._refuse(disk, exc)
        return None


def _retry_s(exc: RigError) -> float:
    return RETRY_RECOVERABLE_S if exc.recoverable else RETRY_REFUSED_S


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


async def _together(jobs: list[Callable[[], Awaitable[None]]]) -> None:
    """Run all jobs at the same time until each has ended, then raise the first ``RigError`` as it is, not in a group."""
    failures: list[RigError] = []

    async def one(job: Callable[[], Awaitable[None]]) -> None:
        try:
            await job()
        except RigError as exc:
            failures.append(exc)

    async with trio.open_nursery() as nursery:
        for job in jobs:
            nursery.start_soon(one, job)
    if failures:
        raise failures[0]
