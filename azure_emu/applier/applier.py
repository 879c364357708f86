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

import math
import uuid
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.applier.account_watch import AccountWatch, BadPartError
from siterig.azure_emu.applier.bad_parts import LONG_BAD, QUICK_FOR_S
from siterig.azure_emu.applier.disk_record import AppliedDisk
from siterig.azure_emu.applier.part_applier import PartApplier
from siterig.azure_emu.applier.transient_errors import TransientErrors
from siterig.azure_emu.contracts.reports import ApplierReports
from siterig.azure_emu.disks.store import discard_leftovers
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.files import safe_files
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.data_keys import DataKeys
from siterig.blockfs.transfer.news import News
from siterig.blockfs.transfer.part_name import Listing, Watermark

NET_S = 30.0
"""The time between two passes over all disks, which find the parts whose news were lost."""
UNSETTLED_S = 0.5
"""The time after which a disk that is not settled is processed again: something of it failed, or waits for its time."""

RETRY_REFUSED_S = 30.0
"""The delay after a refusal before the disk is processed again."""
RETRY_RECOVERABLE_S = 5.0
"""The same delay if the part is not the reason, for example if the host's disk was full."""
REPAIR_WAIT_S = 45.0
"""``process_latest`` waits for a bad part that has been known for less than this; otherwise the disk ends before it."""

REPAIR_POLL_S = 2.0

PARTS_PER_ROUND = 16
"""After so many parts of one disk the others have their turn."""

COMPACT_EVERY_S = 10.0
"""The delay between two compactions or checkpoints; frames that are pinned now may be released then."""

log = structlog.get_logger(__name__)

_DatedList = tuple[int, Listing]
"""The blobs of a disk, and ``AppliedDisk.lists_void`` before they were listed."""


class Applier:
    """Processes the managed disks in rounds, and at once on request; :class:`PartApplier` does the work on one disk.

    A round has the disks of which parts were put since the last one, and the disks that are not settled; from time to time,
    and at the start, it has all.
    """

    def __init__(
        self,
        disks: Path,
        cache: CacheAccount,
        reports: ApplierReports,
        waits: Waits | None = None,
        clock: Clock = SYSTEM_CLOCK,
        *,
        keys: DataKeys | None = None,
    ) -> None:
        """Prepare to apply.

        Args:
            disks: the folder of the managed disks, one folder each.
            cache: the cache account.
            reports: the vault.
            waits: registers the things that the applier waits for.
            clock: the time.
            keys: the keys of managed disks; None: new ones are not encrypted.
        """
        self.folder = disks
        self.waits = waits or Waits(clock)
        self.clock = clock
        self.deleted: set[str] = set()
        """Ids of managed disks that were deleted since the start."""
        self._reports = reports
        self._cache = cache
        self._disks: dict[str, AppliedDisk] = {}
        self._news = News[str]()
        self._vault_answers = True
        self._errors = TransientErrors()
        self.parts = PartApplier(disks, cache, reports, waits=self.waits, clock=clock, errors=self._errors, keys=keys)
        """Opens a managed disk and applies its parts; the caller has the disk's lock."""

    def wake(self, disk_ids: Iterable[str]) -> None:
        """Process these disks in the next round, which begins now, because parts of them were put."""
        self._news.note(disk_ids)

    async def run(
        self,
        *,
        poll_s: float = UNSETTLED_S,
        net_s: float = NET_S,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Process the vault's replicating disks until cancelled; started when the leftovers of a kill are removed.

        Args:
            poll_s: the time after which disks that are not settled are processed again.
            net_s: the time between two rounds with all disks.
            task_status: gets the start.
        """
        safe_files.make_folder(self.folder, parents=True)
        await trio.to_thread.run_sync(discard_leftovers, self.folder)
        task_status.started()
        clock, all_at_s = self.clock.real, -math.inf
        failed: set[str] = set()
        async with trio.open_nursery() as background:
            while True:
                is_vouched = not failed
                woken, failed = failed | set(self._news.take()), set()
                is_vouched = is_vouched and all(disk.is_settled for id_, disk in self._disks.items() if id_ not in woken)
                has_all = clock.trio_time_s() >= all_at_s
                if has_all or woken or not all(disk.is_settled for disk in self._disks.values()):
                    if is_vouched and not has_all:  # the vault sends news of replicating disks only, so it is not asked
                        await self._process_round([self._record(disk_id) for disk_id in sorted(woken)], background)
                    elif not await self._round(background, None if has_all else woken):
                        failed = woken  # they are processed when the vault answers again
                    elif has_all:
                        all_at_s = clock.trio_time_s() + net_s
                for disk in self._disks.values():
                    if self._is_compaction_due(disk):
                        disk.compacting = True
                        background.start_soon(self._compact, disk)
                await self._wait(poll_s, all_at_s)

    async def _round(self, background: trio.Nursery, woken: set[str] | None) -> bool:
        """Process these disks and the unsettled ones, or with None all disks; return False if the vault does not answer."""
        try:
            disk_ids = await self._reports.replicating_disks()
        except RigError as exc:
            self.waits.set("vault", exc.code, exc.message)
            self._errors.note(exc)
            self._vault_answers = False
            return False
        self.waits.clear("vault")
        self._vault_answers = True
        self._forget(disk_ids)
        disks = [self._record(disk_id) for disk_id in disk_ids]
        if woken is not None:
            disks = [disk for disk in disks if disk.disk_id in woken or not disk.is_settled]
        await self._process_round(disks, background)
        return True

    async def _wait(self, poll_s: float, all_at_s: float) -> None:
        """Wait until the next round is due, or a compaction."""
        now_s = self.clock.real.trio_time_s()
        if self._vault_answers and any(disk.more and not disk.detached for disk in self._disks.values()):
            await trio.lowlevel.checkpoint()
            return
        if not self._vault_answers:  # a round with all disks may be due for long
            all_at_s = now_s + poll_s
        elif not all(disk.is_settled for disk in self._disks.values()):
            all_at_s = min(all_at_s, now_s + poll_s)
        due_s = [disk.compact_at_s for disk in self._disks.values() if self._needs_compaction(disk)]
        limit_s = min([all_at_s - now_s, *(due - self.clock.trio_time_s() for due in due_s)])
        with self.clock.real.move_on_after(max(0.0, limit_s)):
            await self._news.wait()

    def close(self) -> None:
        """Close the files of all managed disks, after :meth:`run` has ended; for a process that lives on."""
        for disk in self._disks.values():
            if disk.store is not None:
                disk.store.close()
                disk.store = None

    async def _process_round(self, disks: list[AppliedDisk], background: trio.Nursery) -> None:
        """Process disks at the same time, with one list of the account for all of them.

        A disk with a bad part continues in the background: reading that part takes seconds, and others do not wait for it.
        """
        now_s = self.clock.trio_time_s()
        due = [disk for disk in disks if not disk.detached and now_s >= disk.retry_at_s]
        lists = await self._list(due)
        async with trio.open_nursery() as nursery:
            for disk in due:
                listing = lists.get(disk.disk_id)
                if not disk.watch.bad:
                    nursery.start_soon(self._process_disk, disk, listing)
                else:
                    disk.detached = True
                    background.start_soon(self._process_detached, disk, listing)

    async def _list(self, disks: list[AppliedDisk]) -> dict[str, _DatedList]:
        """Return the blobs of several disks by disk id; without them, each disk asks the account itself."""
        if len(disks) < 2:
            return {}
        void = {disk.disk_id: disk.lists_void for disk in disks}
        try:
            lists = await self._cache.list_all(list(void))
        except RigError:
            return {}  # each disk reports the error
        return {disk_id: (void[disk_id], listing) for disk_id, listing in lists.items()}

    def drop_keys(self) -> None:
        """Let each encrypted managed disk be closed and opened again before its next use, with a key that is asked for."""
        for disk in self._disks.values():
            disk.key_dropped = True

    def _forget(self, disk_ids: list[str]) -> None:
        """Let disks that do not replicate any more be settled, and clear their waits."""
        for disk_id in self._disks.keys() - set(disk_ids):
            self._disks[disk_id].is_settled, self._disks[disk_id].more = True, False
            for place in ("apply", "report", "compaction"):
                self.waits.clear(place, disk=disk_id)

    def _needs_compaction(self, disk: AppliedDisk) -> bool:
        store = disk.store
        if store is None or disk.compacting:
            return False
        return store.compactor.checkpoint_due or 0 < store.oldest_position < disk.retain

    def _is_compaction_due(self, disk: AppliedDisk) -> bool:
        return self.clock.trio_time_s() >= disk.compact_at_s and self._needs_compaction(disk)

    async def _compact(self, disk: AppliedDisk) -> None:
        """Save a checkpoint and compact while parts are applied; this does not take the disk's lock."""
        store = disk.store
        try:
            if store is not None:
                await trio.to_thread.run_sync(store.compactor.checkpoint)
                while await trio.to_thread.run_sync(store.compactor.compact_step, disk.retain):
                    pass  # the end of the applier waits for one step at most
            disk.compact_at_s = self.clock.trio_time_s() + COMPACT_EVERY_S
            self.waits.clear("compaction", disk=disk.disk_id)
        except RigError as exc:
            disk.compact_at_s = self.clock.trio_time_s() + _retry_s(exc)
            if exc.code != Code.DiskNotFound:
                self.waits.set("compaction", exc.code, exc.message, disk=disk.disk_id)
                log.warning("compaction_failed", disk=disk.disk_id, code=exc.code, reason=exc.message)
        finally:
            disk.compacting = False

    async def _process_detached(self, disk: AppliedDisk, listing: _DatedList | None) -> None:
        try:
            await self._process_disk(disk, listing)
        finally:
            disk.detached = False
            disk.is_settled = False  # news of it may have come meanwhile

    async def _process_disk(self, disk: AppliedDisk, listing: _DatedList | None) -> None:
        """Run one round of :meth:`run` for one disk; no expected failure ends the applier."""
        disk.more = disk.is_settled = False
        try:
            async with disk.lock:
                store = await self.parts.open_or_reset(disk)
                known = listing[1] if listing is not None and listing[0] == disk.lists_void else None
                disk.is_settled = await self.parts.apply_cached(disk, store, known, parts_max=PARTS_PER_ROUND)
        except RigError as exc:
            disk.more = False
            if exc.code == Code.DiskNotFound and disk.disk_id in self.deleted:
                self.waits.clear("apply", disk=disk.disk_id)  # deleted after the vault answered
                return
            self.waits.set("apply", exc.code, exc.message, disk=disk.disk_id)
            if exc.code == Code.CacheUnreachable:
                disk.retry_at_s = self.clock.trio_time_s() + exc.retry_after_s
                self._errors.note(exc)
            else:
                await self._refuse(disk, exc)
        else:
            self._errors.clear()

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
            self._errors.note(report_exc)
        else:
            disk.refused.add(key)

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
            return (await self.parts.open(disk)).watermark()

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
            store = await self.parts.open_or_reset(disk)
            try:
                await self.parts.apply_cached(disk, store)
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
