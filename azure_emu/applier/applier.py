"""The applier role: takes parts from the cache account to the managed disks, in order, each exactly once in effect.

Fault contract
--------------
A blob is deleted only after its part is durable in the managed disk *and* the vault has been told; killed between any
two of these steps, the applier does the rest again on its next start, to the same end.  On start everything reached
is reported again, for the vault may have missed it.  An unreachable cache account or vault is waited out.  A part
that cannot be used (unreadable, corrupt, ...) stays where it is and is reported once; the site is asked to send it again,
and it is tried again now and then.  A blob that is no part, or a bad part of a later generation, is skipped and reported.
What is applied of a generation ends when the first sync part of a later one is there, for that sync was made against the
state before.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog
import trio

from siterig.azure_emu.applier.account_watch import AccountWatch, BadPartError
from siterig.azure_emu.applier.bad_parts import LONG_BAD, QUICK_FOR_S, REPAIRABLE
from siterig.azure_emu.applier.export import Exporter, data_bytes
from siterig.azure_emu.contracts.ports import ApplierReports, Change, ChangeStep, Damage, ManagedDiskState
from siterig.azure_emu.disks.change_steps import change_steps
from siterig.azure_emu.disks.history import PartStatus
from siterig.azure_emu.disks.loader import load_history, query_consistently
from siterig.azure_emu.disks.queries import change_list, disk_state, position_at
from siterig.azure_emu.disks.store import (
    ManagedDiskStore,
    delete_disk,
    discard_leftovers,
    known_generation,
    reset_disk,
)
from siterig.azure_emu.scrub.scrubber import scrub
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.files import safe_files
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_codec import decompress
from siterig.blockfs.transfer.part_name import Listing, PartName, Watermark
from siterig.cext.checksums import KEY_BYTES

RETRY_REFUSED_S = 30.0
"""After a refusal the disk is left alone for so long."""
RETRY_RECOVERABLE_S = 5.0
"""The same where nothing is wrong with the part: the host's disk was full."""
REPAIR_WAIT_S = 45.0
"""``process_latest`` waits for a bad part that has been known for less than this; else its disk ends before it."""

REPAIR_LOOK_S = 2.0

BEHIND_S = 10.0
"""So long after a fold or a checkpoint the next is looked for: what cannot be folded now, for it is pinned, may be then."""

DAMAGE_LOOKS, DAMAGE_LOOK_S = 3, 1.0
"""How often, and how far apart, damage must be met again before a store is set aside for it."""

CHECKSUMS_MAX = 1 << 16
"""Chunks in one query."""

TAGS_IN_REPORT_MAX = 500
"""After a restart all tags are reported: not in one transaction that everybody waits for."""

log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Disk:
    """What the applier knows of a disk; everything but ``refused`` is touched under ``lock`` alone."""

    disk_id: str
    watch: AccountWatch
    lock: trio.Lock = field(default_factory=trio.Lock)
    store: ManagedDiskStore | None = None
    reported: Watermark | None = None
    reported_tags: int = 0
    later: Watermark | None = None
    """The watermark that the vault knows, if it is more than the store has: only a resync helps."""
    refused: set[tuple[str, str, bool]] = field(default_factory=set)
    """(code, message, recoverable) of what was reported to the vault since the last success."""
    retry_at_s: float = 0.0
    retain: int = 0
    """The position up to which the journal is to be folded."""
    behind: bool = False
    """Whether a fold or a checkpoint is being made."""
    behind_at_s: float = 0.0
    """When that is tried again after it failed."""
    tended: bool = False
    """True while a task tends it beside the rounds."""


class Applier:
    """Implements :class:`siterig.azure_emu.contracts.ports.RecoverySide` over ``disks``, one folder a managed disk."""

    def __init__(self, disks: Path, cache: CacheAccount, reports: ApplierReports, waits: Waits | None = None) -> None:
        """``waits``: where the applier registers what it waits for."""
        self._folder = disks
        self._cache = cache
        self._reports = reports
        self._waits = waits or Waits()
        self._disks: dict[str, _Disk] = {}
        self._exporter = Exporter(disks / ".export", cache)
        self._trouble: str | None = None
        self._deleted: set[str] = set()

    async def run(self, *, poll_s: float = 0.5, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after the vault's replicating disks until cancelled; started when leftovers of a kill are gone."""
        safe_files.make_folder(self._folder, parents=True)
        await trio.to_thread.run_sync(discard_leftovers, self._folder)
        await trio.to_thread.run_sync(self._exporter.clear_spool)
        task_status.started()
        async with trio.open_nursery() as behind:
            while True:
                try:
                    disk_ids = await self._reports.replicating_disks()
                except RigError as exc:
                    self._waits.set("vault", exc.code, exc.message)
                    self._log_transient_error(exc)
                else:
                    self._waits.clear("vault")
                    self._forget_waits(disk_ids)
                    async with trio.open_nursery() as nursery:
                        for disk_id in disk_ids:
                            disk = self._known(disk_id)
                            if not disk.watch.bad:
                                nursery.start_soon(self._tend, disk)
                            elif not disk.tended:  # a part that cannot be read takes seconds: the others do not wait for it
                                disk.tended = True
                                behind.start_soon(self._tend_beside, disk)
                for disk in self._disks.values():
                    if not disk.behind and trio.current_time() >= disk.behind_at_s and self._has_work_behind(disk):
                        disk.behind = True
                        behind.start_soon(self._work_behind, disk)
                await trio.sleep(poll_s)

    def _forget_waits(self, disk_ids: list[str]) -> None:
        """A disk that is not to be looked after any more waits for nothing."""
        for disk_id in self._disks.keys() - set(disk_ids):
            for place in ("apply", "report", "fold"):
                self._waits.clear(place, disk=disk_id)

    @staticmethod
    def _has_work_behind(disk: _Disk) -> bool:
        store = disk.store
        return store is not None and (store.checkpoint_due or 0 < store.oldest_position < disk.retain)

    async def _work_behind(self, disk: _Disk) -> None:
        """Fold and make checkpoints while parts go on being applied: neither takes the disk's lock."""
        store = disk.store
        try:
            if store is not None:
                await trio.to_thread.run_sync(store.checkpoint)
                while await trio.to_thread.run_sync(store.compact_step, disk.retain):
                    pass  # who ends the applier waits for no more than this
            disk.behind_at_s = trio.current_time() + BEHIND_S
            self._waits.clear("fold", disk=disk.disk_id)
        except RigError as exc:
            disk.behind_at_s = trio.current_time() + (RETRY_RECOVERABLE_S if exc.recoverable else RETRY_REFUSED_S)
            if exc.code != Code.DiskNotFound:
                self._waits.set("fold", exc.code, exc.message, disk=disk.disk_id)
                log.warning("compaction_failed", disk=disk.disk_id, code=exc.code, reason=exc.message)
        finally:
            disk.behind = False

    async def _tend_beside(self, disk: _Disk) -> None:
        try:
            await self._tend(disk)
        finally:
            disk.tended = False

    async def _tend(self, disk: _Disk) -> None:
        """One round of :meth:`run` for one disk; nothing that is expected to fail ends the applier."""
        if trio.current_time() < disk.retry_at_s:
            return
        try:
            async with disk.lock:
                await self._apply_cached(disk)
        except RigError as exc:
            if exc.code == Code.DiskNotFound and disk.disk_id in self._deleted:
                self._waits.clear("apply", disk=disk.disk_id)  # deleted between the vault's answer and now
                return
            self._waits.set("apply", exc.code, exc.message, disk=disk.disk_id)
            if exc.code == Code.CacheUnreachable:
                self._log_transient_error(exc)
            else:
                await self._refuse(disk, exc)
        else:
            self._trouble = None

    def _log_transient_error(self, exc: RigError) -> None:
        """Log a trouble that passes, once: it is met again at each poll."""
        if self._trouble != exc.message:
            self._trouble = exc.message
            log.warning("peer_unavailable", code=exc.code, reason=exc.message)

    async def _refuse(self, disk: _Disk, exc: RigError) -> None:
        """Report to the vault, once, and leave the disk alone for a while."""
        now_s = trio.current_time()
        disk.retry_at_s = now_s + (RETRY_RECOVERABLE_S if exc.recoverable else RETRY_REFUSED_S)
        if isinstance(exc, BadPartError):
            disk.retry_at_s = now_s + disk.watch.bad.retry_s(exc.part, now_s)
            if not disk.watch.bad.is_certain(exc.part):
                return
        recoverable, message = exc.recoverable, exc.message
        if isinstance(exc, BadPartError):  # its repair is under way; one that takes long is an administrator's
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

    async def _apply_cached(self, disk: _Disk) -> None:
        """Apply whatever the cache account holds that comes next; the caller has the disk's lock."""
        store = await self._open_or_reset(disk)
        await self._report(disk, store)
        listing = await self._cache.list(disk.disk_id)
        disk.watch.bad.keep_only(listing.sizes)
        if disk.later is not None and all(part.generation <= disk.later.generation for part in listing.parts):
            await self._reports.store_older(watermark=store.watermark())
            raise _older(disk.disk_id, store.watermark(), disk.later)
        parts = await self._delete_applied(disk, store, listing.parts)
        await self._look_at_unbegun(disk, store, parts, listing)
        current, ended = _in_order(disk.watch.candidates(store, parts))
        current = await self._apply_parts(disk, store, current, "next", listing)
        # A conflict is tried so that it is refused, and reported, by name.
        current = await self._apply_parts(disk, store, current, "conflict", listing)
        current = await self._delete_applied(disk, store, ended + current)
        await disk.watch.seen(store, listing, current)
        missing = await disk.watch.missing(store, current)
        if missing is None:
            self._waits.clear("apply", disk=disk.disk_id)
        else:
            self._waits.set("apply", missing.code, missing.message, disk=disk.disk_id)
        if disk.refused:  # what was refused is gone: say so by a report, even if nothing new was applied
            disk.refused.clear()
            disk.reported = None
            await self._report(disk, store)
        disk.retry_at_s = 0.0

    async def _look_at_unbegun(self, disk: _Disk, store: ManagedDiskStore, parts: list[PartName], listing: Listing) -> None:
        """A later generation ends this one even if its part 1 is not there yet, but not if its first part is no part."""
        part = disk.watch.unbegun(store, parts)
        if part is None:
            return
        try:
            data = await self._cache.get(part)
            await trio.to_thread.run_sync(decompress, part, data)
        except RigError as exc:
            if exc.code not in REPAIRABLE:
                raise
            await disk.watch.failed(store, part, exc, _in_order(listing.parts)[0])
        else:
            disk.watch.sound.add(part)
            disk.watch.bad.forget(part)

    async def _apply_parts(
        self, disk: _Disk, store: ManagedDiskStore, parts: list[PartName], status: PartStatus, listing: Listing
    ) -> list[PartName]:
        """Apply each part that is what is wanted when it is its turn; those that were not.

        One walk, however many there are: in their order, a part is met after those that it needs.  A bad one is passed
        over, for the part that is wanted may be there under another name; if it is not, the bad one's error is raised.
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
                bad = await disk.watch.failed(store, part, exc, _in_order(listing.parts)[0])
                if bad is not None:
                    failed.append(bad)
                left.append(part)
                continue
            disk.watch.bad.forget(part)
            disk.refused.clear()
            await self._report(disk, store)
            await self._delete_applied(disk, store, [part])
            await disk.watch.applying(store, listing)
        still = [bad for bad in failed if store.classify(bad.part) == status]
        if still:
            await disk.watch.seen(store, listing, left)
            raise still[0]
        return left

    async def _report(self, disk: _Disk, store: ManagedDiskStore) -> None:
        """Tell the vault what it does not know yet.  If that fails, applying goes on and blobs stay."""
        watermark, tags = store.watermark(), store.tags(disk.reported_tags)
        while disk.reported != watermark or tags:
            some, tags = tags[:TAGS_IN_REPORT_MAX], tags[TAGS_IN_REPORT_MAX:]
            try:
                disk.later = await self._reports.applied(watermark=watermark, tags=some)
            except RigError as exc:
                self._waits.set("report", exc.code, exc.message, disk=disk.disk_id)
                self._log_transient_error(exc)
                return
            self._waits.clear("report", disk=disk.disk_id)
            if disk.later is not None:
                return  # no blob is deleted, for it may be needed
            disk.reported = watermark
            disk.reported_tags += len(some)

    async def _delete_applied(self, disk: _Disk, store: ManagedDiskStore, parts: list[PartName]) -> list[PartName]:
        """Delete the blobs that are durable here and known to the vault; those that are left."""
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

    def _disk(self, disk_id: str) -> _Disk:
        """The one record of a disk; its id becomes a folder's name, so nothing but a UUID will do."""
        try:
            sound = str(uuid.UUID(disk_id)) == disk_id
        except ValueError:
            sound = False
        if not sound:
            raise RigError(Code.InvalidDiskId, f"disk id {disk_id!r} is not a lower-case UUID")
        return self._known(disk_id)

    def _known(self, disk_id: str) -> _Disk:
        if disk_id not in self._disks:
            self._disks[disk_id] = _Disk(disk_id, AccountWatch(disk_id, self._reports, self._waits))
        return self._disks[disk_id]

    async def _open(self, disk: _Disk) -> ManagedDiskStore:
        """The caller has the disk's lock: there is one writer."""
        if disk.store is None:
            disk.store = await trio.to_thread.run_sync(ManagedDiskStore.open, self._folder / disk.disk_id)
        return disk.store

    async def _open_or_reset(self, disk: _Disk) -> ManagedDiskStore:
        """Open the store; one that nothing can be applied to any more makes room when a resync begins.

        ``DiskPinned`` if something lies on a position of it.
        """
        try:
            return await self._open(disk)
        except RigError as exc:
            if exc.code != Code.StoreCorrupt:
                raise
            parts = (await self._cache.list(disk.disk_id)).parts
            begun = max((part.generation for part in parts if (part.stream, part.first) == ("sync", 1)), default=0)
            folder = self._folder / disk.disk_id
            if begun <= await trio.to_thread.run_sync(known_generation, folder):
                raise
            for _ in range(DAMAGE_LOOKS):  # all its positions are at stake: it must be no error of the moment
                await trio.sleep(DAMAGE_LOOK_S)
                try:
                    return await self._open(disk)
                except RigError as again:
                    if (again.code, again.message) != (exc.code, exc.message):
                        raise
            log.warning("damaged_store_set_aside", disk=disk.disk_id, reason=exc.message)
            disk.store = await trio.to_thread.run_sync(partial(reset_disk, folder, created_ns=time.time_ns()))
            disk.reported, disk.reported_tags = None, 0
            return disk.store

    async def create_managed_disk(self, *, disk_id: str, size_bytes: int) -> None:
        """An empty managed disk; no-op if it is there (``DiskExists`` if smaller; ``InvalidDiskSize``, ``DiskFull``)."""
        disk, folder = self._disk(disk_id), self._folder / disk_id
        async with disk.lock:
            if folder.exists():
                store = await self._open(disk)
                if store.created_size_bytes < size_bytes:  # larger: who asks does not know that the disk has grown
                    raise RigError(
                        Code.DiskExists,
                        f"managed disk {disk_id} is there with {store.created_size_bytes} bytes, not {size_bytes}",
                    )
                return

            def create() -> ManagedDiskStore:
                safe_files.make_folder(self._folder, parents=True)
                return ManagedDiskStore.create(folder, disk_id=disk_id, size_bytes=size_bytes, created_ns=time.time_ns())

            disk.store = await trio.to_thread.run_sync(create)
            self._deleted.discard(disk_id)
            disk.reported, disk.reported_tags, disk.retry_at_s = None, 0, 0.0
            disk.refused.clear()

    async def delete_managed_disk(self, *, disk_id: str) -> None:
        """Remove the disk, its journal and its blobs in the cache account; no-op if gone."""
        disk = self._disk(disk_id)
        async with disk.lock:
            if disk.store is not None:
                await trio.to_thread.run_sync(disk.store.close)  # waits for a fold
                disk.store = None
            disk.retain = 0
            self._deleted.add(disk_id)
            await trio.to_thread.run_sync(delete_disk, self._folder / disk_id)
            for part in (await self._cache.list(disk_id)).parts:
                await self._cache.delete(part)

    async def process_latest(self, *, disk_ids: list[str]) -> list[Watermark]:
        """Apply all that the cache account holds for these disks, now; the watermarks afterwards.

        A bad part is waited for until it was sent again, for ``REPAIR_WAIT_S`` at most; then its disk ends before it, and
        the vault knows of it.  A failure that may pass (``CacheUnreachable``, ``DiskFull``) and a disk that cannot be
        opened (``DiskNotFound``, ``StoreCorrupt``) are raised.
        """
        disks = [self._disk(disk_id) for disk_id in disk_ids]
        await _together([lambda disk=disk: self._process_latest(disk) for disk in disks])  # type: ignore[misc]
        return [await self._watermark(disk) for disk in disks]

    async def _watermark(self, disk: _Disk) -> Watermark:
        async with disk.lock:
            return (await self._open(disk)).watermark()

    async def _process_latest(self, disk: _Disk) -> None:
        try:
            while (bad := await self._apply_now(disk)) is not None:
                if disk.watch.bad.age_s(bad.part, trio.current_time()) >= REPAIR_WAIT_S:
                    return
                self._waits.set("latest", bad.code, bad.message, disk=disk.disk_id)
                await trio.sleep(REPAIR_LOOK_S)
        finally:
            self._waits.clear("latest", disk=disk.disk_id)

    async def _apply_now(self, disk: _Disk) -> BadPartError | None:
        """Apply the disk's parts; the one that cannot be used, if there is one.  It and a refusal are reported."""
        async with disk.lock:
            await self._open_or_reset(disk)
            try:
                await self._apply_cached(disk)
            except BadPartError as exc:
                await self._refuse(disk, exc)
                return exc
            except RigError as exc:
                if exc.recoverable:
                    raise
                await self._refuse(disk, exc)
        return None

    async def checksums(self, *, disk_id: str, key_hex: str, chunk_bytes: int, first: int, count: int) -> list[str]:
        """Keyed checksums (hex) of chunks of the latest applied state.

        What the cache account still holds is applied before: a part of the old generation that came in after the
        comparison would undo it.  Errors: as :meth:`process_latest`, and ``InvalidChecksumRequest``.
        """
        try:
            key = bytes.fromhex(key_hex)
        except ValueError:
            key = b""
        if len(key) != KEY_BYTES:
            raise RigError(Code.InvalidChecksumRequest, f"key_hex is not {KEY_BYTES} bytes in hexadecimal")
        if chunk_bytes <= 0 or first < 0 or not 0 < count <= CHECKSUMS_MAX:
            raise RigError(
                Code.InvalidChecksumRequest,
                f"{count} chunks of {chunk_bytes} bytes from chunk {first}: 1 to {CHECKSUMS_MAX} chunks are allowed",
            )
        disk = self._disk(disk_id)
        await self._process_latest(disk)
        async with disk.lock:
            store = await self._open(disk)
            tags = await trio.to_thread.run_sync(store.checksums, key, chunk_bytes, first, count)
        return [tag.hex() for tag in tags]

    async def retain(self, *, disk_id: str, position: int) -> None:
        """Implements :class:`siterig.azure_emu.contracts.ports.RecoverySide`."""
        disk = self._disk(disk_id)
        if position > disk.retain:
            disk.retain, disk.behind_at_s = position, 0.0

    async def disk_state(self, *, disk_id: str) -> ManagedDiskState:
        """Implements :class:`siterig.azure_emu.contracts.ports.RecoverySide`."""
        disk = self._disk(disk_id)
        return await trio.to_thread.run_sync(disk_state, self._folder / disk_id, disk.retain)

    async def position_at(self, *, disk_id: str, time_ns: int) -> int:
        """Implements :class:`siterig.azure_emu.contracts.ports.RecoverySide`."""
        folder = self._folder / self._disk(disk_id).disk_id
        return await trio.to_thread.run_sync(query_consistently, folder, lambda loaded: position_at(loaded, time_ns))

    async def changes(self, *, disk_id: str, after: int, upto: int, limit: int) -> list[Change]:
        """Implements :class:`siterig.azure_emu.contracts.ports.RecoverySide`."""
        folder = self._folder / self._disk(disk_id).disk_id
        return await trio.to_thread.run_sync(
            query_consistently, folder, lambda loaded: change_list(loaded, after, upto, limit)
        )

    async def change_steps(self, *, disk_id: str, after: int, upto: int) -> list[ChangeStep]:
        """Implements :class:`siterig.azure_emu.contracts.ports.RecoverySide`."""
        folder = self._folder / self._disk(disk_id).disk_id
        return await trio.to_thread.run_sync(query_consistently, folder, lambda loaded: change_steps(loaded, after, upto))

    async def scrub(self, *, disk_id: str) -> list[Damage]:
        """See :class:`siterig.azure_emu.contracts.ports.RecoverySide`; a store that cannot be opened can be scrubbed."""
        folder = self._folder / self._disk(disk_id).disk_id
        return await trio.to_thread.run_sync(lambda: list(scrub(folder, lambda _bytes: None)))

    async def repair(self, *, disk_id: str) -> None:
        """See :class:`siterig.azure_emu.contracts.ports.RecoverySide`: it is what opening does.  What could not be opened
        again stays open.
        """
        disk = self._disk(disk_id)
        async with disk.lock:
            loaded = await trio.to_thread.run_sync(load_history, self._folder / disk_id)
            if loaded.journal.broken is not None:
                raise loaded.journal.broken
            if disk.store is not None:
                await trio.to_thread.run_sync(disk.store.close)  # waits for a fold
                disk.store, disk.reported, disk.reported_tags = None, None, 0
            await self._open(disk)

    async def export_disk(self, *, source: str, source_id: str, size_bytes: int) -> int:
        """Failback: put file ``source`` into the cache account as sync parts of ``source_id``; the number of parts."""
        self._disk(source_id)
        return await self._exporter.export(source=Path(source), source_id=source_id, size_bytes=size_bytes)

    async def data_bytes(self, *, source: str) -> int:
        """Implements :class:`siterig.azure_emu.contracts.ports.RecoverySide`."""
        return await trio.to_thread.run_sync(data_bytes, Path(source))

    async def export_progress(self, *, source_id: str) -> int:
        """Bytes of the source that were looked at so far (0 if unknown)."""
        return self._exporter.progress(source_id)


def _older(disk_id: str, has: Watermark, had: Watermark) -> RigError:
    return RigError(
        Code.ManagedDiskOlder,
        f"managed disk {disk_id} is older than its last reported state: "
        f"it ends at position {has.complete_position}, and had "
        f"{had.complete_position}; resynchronize the VM",
    )


def _in_order(parts: list[PartName]) -> tuple[list[PartName], list[PartName]]:
    """Parts in the order of application, and those of generations that end because the sync of a later one has begun.

    Should two begin alike, the longer one is first.
    """
    newest = max((part.generation for part in parts if part.stream == "sync"), default=0)
    current = [part for part in parts if part.generation >= newest]
    current.sort(key=lambda part: (part.generation, part.stream == "log", part.first, -part.last))
    return current, [part for part in parts if part.generation < newest]


async def _together(jobs: list[Callable[[], Awaitable[None]]]) -> None:
    """Run all at once, let each come to its end, then raise the first ``RigError`` as it is (not in a group)."""
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
