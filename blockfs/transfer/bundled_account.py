"""A cache account in which small parts may travel together, in bundles (:mod:`siterig.blockfs.transfer.bundle`).

A listing shows the parts in bundles as if each had a blob, so neither the site nor the applier knows where a part is.  A
part that has a blob of its own, too, is read from that: it was sent again because its section could not be used.

Fault contract
--------------
A bundle is never changed, and no bundle of other parts gets its name.  Nothing here is durable: after a restart each bundle
in the account is read again.  The applier deletes the parts that it has applied, one by one; a bundle is deleted with its
last part.  After a restart it finds parts that are applied, and deletes them again.  When a managed disk is deleted, the
parts of other disks in its bundles get blobs of their own first.

A bundle that cannot be read has no parts in a listing.  The site, which keeps the source of each part until it is applied,
then puts them again.  It deletes the bad bundle when the account has all parts again that it had put into it.  After a
restart of the site nobody knows which parts these were: the site then deletes a bundle that stays bad for ``BAD_FOR_S``.
That loses nothing, because nobody can read it; a part without a source is missing, which leads to a resync.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import structlog
import trio

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer import bundle
from siterig.blockfs.transfer.bundle import BundleName, Section
from siterig.blockfs.transfer.cache_account import BlobAccount, CacheAccount
from siterig.blockfs.transfer.part_name import Listing, PartName

READ_AGAIN_S = 30.0
"""The time after which a bundle that could not be read is read again."""
BAD_FOR_S = 120.0
"""The time after which the site deletes a bundle that it could not read in several attempts."""
LOOK_EVERY_S = 300.0
"""The time after which the site looks for bundles although it has put none."""
KEPT_BYTES_MAX = 4 << 20
"""Limit of the bytes of bundles in memory; those of others are read when they are needed."""
_BAD = frozenset({Code.BundleCorrupt, Code.PartCorrupt, Code.PartUnreadable})

_log = structlog.get_logger(__name__)


@dataclass(eq=False)
class _Bundle:
    """A bundle in the account; ``error``: why it cannot be read."""

    name: BundleName
    sections: dict[PartName, Section] = field(default_factory=dict)
    deleted: set[PartName] = field(default_factory=set)
    data: bytes | None = None
    served: set[PartName] = field(default_factory=set)
    """The parts that were read from ``data``: one that is read again may be damaged there only."""
    error: RigError | None = None
    bad_since_s: float = 0.0
    read_again_at_s: float = 0.0

    def remaining(self) -> list[PartName]:
        return [part for part in self.sections if part not in self.deleted]


class BundledAccount(CacheAccount):
    """An account with bundles, as one role sees it."""

    def __init__(
        self,
        account: BlobAccount,
        clock: Clock,
        *,
        is_writer: bool = False,
    ) -> None:
        """Begin without any knowledge of the account.

        Args:
            account: the account that holds the blobs.
            clock: the time.
            is_writer: True if only this role puts bundles with parts of the disks that it asks for.
        """
        self._account = account
        self._clock = clock
        self._is_writer = is_writer
        self._bundles: dict[BundleName, _Bundle] = {}
        self._reading = trio.Lock()
        self._own_blobs: set[PartName] = set()
        """The parts in bundles that had a blob of their own in the newest listing, too."""
        self._own: dict[BundleName, set[PartName]] = {}
        """The bundles that this process has put, with the parts that it has not put again."""
        self._puts = 0
        self._may_exist = True
        self._look_at_s = 0.0

    # --- put ----------------------------------------------------------------------------------------------------

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        done = await self._account.put(part, data, replace=replace)
        await self._put_again([part])
        return done

    async def put_together(self, parts: Mapping[PartName, bytes]) -> None:
        """Upload several small parts as one blob, or as several if they are too many or too large for one."""
        batch: dict[PartName, bytes] = {}
        for part, data in parts.items():
            fits = bundle.size_bytes([*batch.values(), data]) <= bundle.BUNDLE_BYTES_MAX
            if batch and not (fits and len(batch) < bundle.PARTS_MAX):
                await self._put_bundle(batch)
                batch = {}
            batch[part] = data
        if batch:
            await self._put_bundle(batch)

    async def _put_bundle(self, parts: dict[PartName, bytes]) -> None:
        self._puts += 1
        self._may_exist = True
        data, attempt, name = bundle.encode(parts), 0, BundleName.of(parts, 0)
        # A bundle of the same parts may be there: one whose put had no answer, or one that cannot be read.
        while not await self._account.put(name, data):
            attempt += 1
            name = BundleName.of(parts, attempt)
        await self._put_again(parts)
        self._own[name] = set(parts)

    async def _put_again(self, parts: Sequence[PartName] | Mapping[PartName, bytes]) -> None:
        """Delete the bundles that cannot be read, and whose last part is among these, which were put now."""
        for name, left in list(self._own.items()):
            known = self._bundles.get(name)
            if known is None or known.error is None:
                continue
            left.difference_update(parts)
            if not left:
                del self._own[name]
                await self._account.delete(name)
                _log.info("bad_bundle_replaced", bundle=name.blob())

    # --- list ---------------------------------------------------------------------------------------------------

    async def list(self, disk_id: str) -> Listing:
        if not self._must_look():
            return await self._account.list(disk_id)
        return (await self._list([disk_id]))[disk_id]

    async def list_all(self, disk_ids: Sequence[str]) -> dict[str, Listing]:
        if not self._must_look():
            return await self._account.list_all(disk_ids)
        return await self._list(disk_ids)

    def _must_look(self) -> bool:
        """Return True unless no bundle exists: the site knows of its own, and looks now and then for others."""
        return not self._is_writer or self._may_exist or self._clock.trio_time_s() >= self._look_at_s

    async def _list(self, disk_ids: Sequence[str]) -> dict[str, Listing]:
        puts = self._puts
        self._look_at_s = self._clock.trio_time_s() + LOOK_EVERY_S
        found = await self._account.list_with_bundles(disk_ids)
        async with self._reading:
            await self._follow(found.bundles)
        if puts == self._puts:
            self._may_exist = bool(found.bundles)
        unreadable = tuple(each.name.blob() for each in self._bundles.values() if each.error is not None)
        shown: dict[str, dict[PartName, int]] = {disk_id: {} for disk_id in disk_ids}
        for known in self._bundles.values():
            for part in known.remaining():
                if part.disk_id in shown:
                    shown[part.disk_id].setdefault(part, known.sections[part].length)
        disks = {}
        for disk_id, listing in found.disks.items():
            parts = shown[disk_id]
            self._own_blobs = {part for part in self._own_blobs if part.disk_id != disk_id} | (parts.keys() & listing.sizes)
            sizes = dict(sorted((parts | listing.sizes).items()))
            disks[disk_id] = replace(listing, sizes=sizes, unreadable=unreadable)
        return disks

    async def _follow(self, listed: Mapping[BundleName, int]) -> None:
        """Forget the bundles that are not listed, and read those that are not known."""
        self._bundles = {name: known for name, known in self._bundles.items() if name in listed}
        self._own = {name: parts for name, parts in self._own.items() if name in listed}
        for name, size_bytes in listed.items():
            known = self._bundles.get(name)
            if known is None or (known.error is not None and self._clock.trio_time_s() >= known.read_again_at_s):
                await self._read(name, size_bytes)
                await self._delete_bad(name)
            elif known.deleted:
                await self._delete_empty(known)

    async def _read(self, name: BundleName, size_bytes: int) -> None:
        known = _Bundle(name)
        try:
            if size_bytes > bundle.BUNDLE_BYTES_MAX:
                raise bundle.bad(name, f"it has {size_bytes} bytes")
            data = await self._account.get(name)
            known.sections = bundle.decode(name, data)
        except RigError as error:
            if error.code == Code.PartNotFound:
                return  # it was deleted since the list
            if error.code not in _BAD:
                raise
            now_s, before = self._clock.trio_time_s(), self._bundles.get(name)
            known.error, known.read_again_at_s = error, now_s + READ_AGAIN_S
            known.bad_since_s = now_s if before is None else before.bad_since_s
            _log.warning("bundle_unreadable", bundle=name.blob(), code=error.code, reason=error.message)
        else:
            self._keep(known, data)
        self._bundles[name] = known

    async def _delete_bad(self, name: BundleName) -> None:
        """Delete a bundle that was bad for ``BAD_FOR_S``, at the site."""
        known = self._bundles.get(name)
        if not self._is_writer or known is None or known.error is None:
            return
        if self._clock.trio_time_s() >= known.bad_since_s + BAD_FOR_S:
            await self._account.delete(name)
            del self._bundles[name]
            _log.warning("bad_bundle_deleted", bundle=name.blob(), code=known.error.code, reason=known.error.message)

    def _keep(self, known: _Bundle, data: bytes) -> None:
        if sum(len(each.data) for each in self._bundles.values() if each.data is not None) + len(data) <= KEPT_BYTES_MAX:
            known.data = data

    # --- get and delete -----------------------------------------------------------------------------------------

    async def get(self, part: PartName) -> bytes:
        holders = self._holders(part)
        if part in self._own_blobs or not holders:
            return await self._account.get(part)
        known = next((each for each in holders if part not in each.served), holders[0])
        data = known.data
        if data is None or part in known.served:
            data = await self._account.get(known.name)
            try:
                is_same = bundle.decode(known.name, data) == known.sections
            except RigError:
                is_same = False
            if not is_same:
                raise RigError(Code.PartCorrupt, f"part {part.blob()}: bundle {known.name.blob()} has changed")
        known.served.add(part)
        section = known.sections[part]
        return data[section.offset : section.offset + section.length]

    async def check(self) -> None:
        await self._account.check()

    async def delete(self, part: PartName) -> None:
        holders = self._holders(part)
        if not holders or part in self._own_blobs:
            await self._account.delete(part)
        self._own_blobs.discard(part)
        for known in holders:
            known.deleted.add(part)
            await self._delete_empty(known)

    async def remove_disk(self, disk_id: str) -> None:
        """Delete all parts of a disk; parts of other disks in the same bundles get blobs of their own first."""
        for part in (await self.list(disk_id)).parts:
            holders = self._holders(part)
            if not holders or part in self._own_blobs:
                await self._account.delete(part)
            for known in holders:
                await self._unpack(known, disk_id)
        self._own_blobs = {part for part in self._own_blobs if part.disk_id != disk_id}

    async def _unpack(self, known: _Bundle, without: str) -> None:
        data = known.data if known.data is not None else await self._account.get(known.name)
        for part in known.remaining():
            if part.disk_id != without and part not in self._own_blobs:
                section = known.sections[part]
                await self._account.put(part, data[section.offset : section.offset + section.length])
        await self._account.delete(known.name)
        self._bundles.pop(known.name, None)

    def _holders(self, part: PartName) -> Sequence[_Bundle]:
        return [each for each in self._bundles.values() if part in each.sections and part not in each.deleted]

    async def _delete_empty(self, known: _Bundle) -> None:
        """Delete a bundle whose parts are all deleted."""
        if known.sections and not known.remaining():
            await self._account.delete(known.name)
            self._bundles.pop(known.name, None)
