"""The applier's view of one disk's blobs in the cache account, and what it reports of them: bytes that wait, blobs that are
passed over, parts that cannot be used and are to be sent again.

None of these reports is needed for applying: one that does not get through is made again later.
"""

from __future__ import annotations

import math

import structlog
import trio

from siterig.azure_emu.applier.bad_parts import BadParts
from siterig.azure_emu.contracts.ports import ApplierReports, SkippedBlob
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.transfer.part_name import Listing, PartName

SEEN_EVERY_S = 5.0
"""While parts are applied, and while nothing changes, the bytes that wait are reported no more often than this."""
SKIPPED_REPORTED_MAX = 20

log = structlog.get_logger(__name__)


class BadPartError(RigError):
    """A part that cannot be used, and why."""

    def __init__(self, part: PartName, error: RigError) -> None:
        super().__init__(error.code, error.message, recoverable=error.recoverable)
        self.part = part


class AccountWatch:
    """The watch of one disk; used under the disk's lock."""

    def __init__(self, disk_id: str, reports: ApplierReports, waits: Waits) -> None:
        self.bad = BadParts()
        self.sound: set[PartName] = set()
        """Parts that were looked at before it is their turn, and are what their names say."""
        self._disk_id = disk_id
        self._reports = reports
        self._waits = waits
        self._seen: tuple[int, tuple[SkippedBlob, ...]] | None = None
        self._seen_at_s = -math.inf
        self._begun_s = -math.inf
        self._aside_at_s = 0.0

    def candidates(self, store: ManagedDiskStore, parts: list[PartName]) -> list[PartName]:
        """At the begin of a round: the parts without those that are passed over."""
        self._begun_s = trio.current_time()
        return [part for part in parts if not self.is_aside(store, part)]

    def is_aside(self, store: ManagedDiskStore, part: PartName) -> bool:
        """True if a part is passed over: it is bad, and of a later generation than all that the disk was given.

        The disk continues with its own generation: the bad one may be nobody's; if it is the site's it is sent again.
        """
        return 0 < store.watermark().generation < part.generation and self.bad.reason(part) is not None

    def unbegun(self, store: ManagedDiskStore, parts: list[PartName]) -> PartName | None:
        """The first sync part of the newest later generation, if it is to be looked at before it counts as its begin.

        That is so if it is not part 1 and was not looked at before, or if it was bad and is due again.
        """
        generation = store.watermark().generation
        later = [part for part in parts if part.stream == "sync" and part.generation > generation > 0]
        if not later:
            return None
        first = min(part for part in later if part.generation == later[-1].generation)
        if self.bad.reason(first) is not None:
            return first if trio.current_time() >= self._aside_at_s else None
        return None if first.first == 1 or first in self.sound else first

    async def failed(
        self, store: ManagedDiskStore, part: PartName, error: RigError, in_order: list[PartName]
    ) -> BadPartError | None:
        """A part was tried and cannot be used: have it sent again, if it is time to.  None: it is passed over.

        ``in_order``: the parts in the account in the order of their application.
        """
        self.bad.note(part, error, trio.current_time())
        wanted = self.bad.to_ask(part, in_order, trio.current_time())
        if wanted and await self._send_again(wanted):
            self.bad.asked(part, trio.current_time())
        if self.is_aside(store, part):
            self._aside_at_s = trio.current_time() + self.bad.retry_s(part, trio.current_time())
            return None
        return BadPartError(part, error)

    async def missing(self, store: ManagedDiskStore, left: list[PartName]) -> RigError | None:
        """``PartMissing``: the next part is not in the account while later ones are.  After a while the site is asked."""
        mark = store.watermark()
        behind = [
            part
            for part in left
            if part.generation == mark.generation
            and store.classify(part) == "later"
            and (part.stream == "sync" or mark.sync_complete)
        ]
        if not behind:
            self.bad.nothing_missing()
            return None
        error = RigError(
            Code.PartMissing, f"{store.expected()} is not in the cache account, but {len(behind)} later parts are"
        )
        if self.bad.missing(error, trio.current_time()):
            await self._send_again([])
        return error

    async def applying(self, store: ManagedDiskStore, listing: Listing) -> None:
        """Between two parts: report now and then, for there may be many."""
        if trio.current_time() >= max(self._seen_at_s, self._begun_s) + SEEN_EVERY_S:
            await self.seen(store, listing, [part for part in listing.sizes if store.classify(part) != "applied"])

    async def seen(self, store: ManagedDiskStore, listing: Listing, left: list[PartName]) -> None:
        """Report the bytes that wait, which are those of the parts ``left``, and what is passed over, if that is news."""
        waiting = sum(listing.sizes.get(part, 0) for part in left)
        skipped = [SkippedBlob(name=name, reason="not the name of a replication part") for name in listing.foreign]
        skipped += [
            SkippedBlob(name=part.blob(), reason=self.bad.reason(part) or "")
            for part in listing.sizes
            if self.is_aside(store, part)
        ]
        seen = (waiting, tuple(skipped[:SKIPPED_REPORTED_MAX]))
        if seen == self._seen and trio.current_time() < self._seen_at_s + SEEN_EVERY_S:
            return
        try:
            await self._reports.account_seen(
                disk_id=self._disk_id, waiting_bytes=waiting, skipped=list(seen[1]), skipped_count=len(skipped)
            )
        except RigError as exc:
            self._not_reported(exc)
        else:
            self._seen, self._seen_at_s = seen, trio.current_time()

    async def _send_again(self, parts: list[PartName]) -> bool:
        names = [part.blob() for part in parts]
        log.warning("parts_requested_again", disk=self._disk_id, first=names[:1], count=len(names))
        try:
            await self._reports.send_again(disk_id=self._disk_id, parts=names)
        except RigError as exc:
            self._not_reported(exc)
            return False
        return True

    def _not_reported(self, exc: RigError) -> None:
        self._waits.set("report", exc.code, exc.message, disk=self._disk_id)
