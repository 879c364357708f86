"""The blobs of one disk in the cache account, as the applier sees them, and the reports about them.

It reports bytes that wait, blobs that are skipped, and parts that cannot be used and must be sent again.  Applying needs
none of these reports: one that fails is repeated later.
"""

from __future__ import annotations

import math

import structlog

from siterig.azure_emu.applier.bad_parts import OF_ACCOUNT, BadParts
from siterig.azure_emu.contracts.reports import ApplierReports, SkippedBlob
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.transfer.part_name import Listing, PartName

SEEN_EVERY_S = 5.0
"""The minimum time between two reports of waiting bytes, while parts are applied and while nothing changes."""
SKIPPED_REPORTED_MAX = 20

log = structlog.get_logger(__name__)


class BadPartError(RigError):
    """A part cannot be used; the error says why."""

    def __init__(self, part: PartName, error: RigError) -> None:
        super().__init__(error.code, error.message, recoverable=error.recoverable)
        self.part = part


class AccountWatch:
    """The watch of one disk; the caller holds the disk's lock."""

    def __init__(self, disk_id: str, reports: ApplierReports, waits: Waits, clock: Clock) -> None:
        self.bad = BadParts()
        self.sound: set[PartName] = set()
        """Parts that were verified before their turn, and match their names."""
        self._disk_id = disk_id
        self._reports = reports
        self._waits = waits
        self._clock = clock
        self._seen: tuple[int, tuple[SkippedBlob, ...]] | None = None
        self._seen_at_s = -math.inf
        self._begun_s = -math.inf
        self._verify_at_s = 0.0

    def candidates(self, store: ManagedDiskStore, parts: list[PartName]) -> list[PartName]:
        """Begin a round; return the parts that are not skipped."""
        self._begun_s = self._clock.trio_time_s()
        return [part for part in parts if not self.is_skipped(store, part)]

    def is_skipped(self, store: ManagedDiskStore, part: PartName) -> bool:
        """Return True for a bad part of a later generation than all parts that the disk has.

        The disk continues with its own generation.  The bad part may not come from the site; if it does, it is sent again.
        """
        return 0 < store.watermark().generation < part.generation and self.bad.reason(part) is not None

    def unverified_start(self, store: ManagedDiskStore, parts: list[PartName]) -> PartName | None:
        """Return the first sync part of the newest later generation if it must be verified before that generation begins.

        This applies to a part that is not part 1 and was not verified before, and to a bad one that is due again.
        """
        generation = store.watermark().generation
        later = [part for part in parts if part.stream == "sync" and part.generation > generation > 0]
        if not later:
            return None
        first = min(part for part in later if part.generation == later[-1].generation)
        if self.bad.reason(first) is not None:
            return first if self._clock.trio_time_s() >= self._verify_at_s else None
        return None if first.first == 1 or first in self.sound else first

    async def note_failed(
        self, store: ManagedDiskStore, part: PartName, error: RigError, ordered: list[PartName]
    ) -> BadPartError | None:
        """Record that a part cannot be used, and ask the site for it if it is time to.

        Args:
            store: the managed disk.
            part: the part.
            error: the failure.
            ordered: the parts in the account in the order of their application.
        Returns:
            The error to raise; None if the part is skipped.
        """
        now_s = self._clock.trio_time_s()
        self.bad.note(part, error, now_s)
        requested = self.bad.to_request(part, ordered, now_s)
        if requested and await self._send_again(requested, is_temporary=error.code in OF_ACCOUNT):
            self.bad.note_requested(part, self._clock.trio_time_s())
        if self.is_skipped(store, part):
            self._verify_at_s = self._clock.trio_time_s() + self.bad.retry_s(part, self._clock.trio_time_s())
            return None
        return BadPartError(part, error)

    async def check_missing(self, store: ManagedDiskStore, listing: Listing, unapplied: list[PartName]) -> RigError | None:
        """Return ``PartMissing`` if the next part is not in the account while later ones are; ask the site after a while.

        A bundle that cannot be read may have had it, so the error is ``BundleCorrupt`` then.
        """
        mark = store.watermark()
        if listing.unreadable:
            error = RigError(Code.BundleCorrupt, f"{listing.unreadable[0]} cannot be read, and may have parts of the disk")
            if self.bad.note_missing(error, self._clock.trio_time_s()):
                await self._send_again([])
            return error
        later = [
            part
            for part in unapplied
            if part.generation == mark.generation
            and store.classify(part) == "later"
            and (part.stream == "sync" or mark.sync_complete)
        ]
        if not later:
            self.bad.clear_missing()
            return None
        others = "a later part is" if len(later) == 1 else f"{len(later)} later parts are"
        error = RigError(Code.PartMissing, f"{store.expected()} is not in the cache account, but {others}")
        if self.bad.note_missing(error, self._clock.trio_time_s()):
            await self._send_again([])
        return error

    async def report_progress(self, store: ManagedDiskStore, listing: Listing) -> None:
        """Report between two parts, from time to time, because there may be many."""
        if self._clock.trio_time_s() >= max(self._seen_at_s, self._begun_s) + SEEN_EVERY_S:
            await self.report(store, listing, [part for part in listing.sizes if store.classify(part) != "applied"])

    def waiting_bytes(self, store: ManagedDiskStore, listing: Listing) -> int | None:
        """Return the bytes of the parts that wait; None if a blob is skipped, which only :meth:`report` reports."""
        if listing.foreign or listing.unreadable or any(self.is_skipped(store, part) for part in listing.sizes):
            return None
        return sum(size for part, size in listing.sizes.items() if store.classify(part) != "applied")

    def note_reported(self, waiting_bytes: int) -> None:
        """Note that the vault knows these bytes from another report."""
        self._seen, self._seen_at_s = (waiting_bytes, ()), self._clock.trio_time_s()

    async def report(
        self, store: ManagedDiskStore, listing: Listing, unapplied: list[PartName], *, moved: bool = False
    ) -> bool:
        """Report the bytes of the parts that wait, and the skipped blobs, if anything changed; return True if that is known.

        ``moved``: parts were applied since the last report, so the count of the agent, which the vault has, may be old.
        """
        waiting = sum(listing.sizes.get(part, 0) for part in unapplied)
        skipped = [SkippedBlob(name=name, reason="not the name of a replication part") for name in listing.foreign]
        skipped += [SkippedBlob(name=name, reason="it is damaged") for name in listing.unreadable]
        skipped += [
            SkippedBlob(name=part.blob(), reason=self.bad.reason(part) or "")
            for part in listing.sizes
            if self.is_skipped(store, part)
        ]
        seen = (waiting, tuple(skipped[:SKIPPED_REPORTED_MAX]))
        is_idle = seen == (0, ()) and not moved
        if seen == self._seen and (is_idle or self._clock.trio_time_s() < self._seen_at_s + SEEN_EVERY_S):
            return True
        try:
            await self._reports.account_seen(
                disk_id=self._disk_id, waiting_bytes=waiting, skipped=list(seen[1]), skipped_count=len(skipped)
            )
        except RigError as exc:
            self._not_reported(exc)
            return False
        self._seen, self._seen_at_s = seen, self._clock.trio_time_s()
        return True

    async def _send_again(self, parts: list[PartName], *, is_temporary: bool = True) -> bool:
        names = [part.blob() for part in parts]
        log.warning("parts_requested_again", disk=self._disk_id, first=names[:1], count=len(names))
        try:
            await self._reports.send_again(disk_id=self._disk_id, parts=names, is_temporary=is_temporary)
        except RigError as exc:
            self._not_reported(exc)
            return False
        return True

    def _not_reported(self, exc: RigError) -> None:
        self._waits.set("report", exc.code, exc.message, disk=self._disk_id)
