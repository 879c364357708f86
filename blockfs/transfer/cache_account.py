"""Contract of the cache account: the storage account that holds parts on their way from the site to the recovery side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from siterig.blockfs.transfer.bundle import BundleName
from siterig.blockfs.transfer.part_name import Listing, PartName


class CacheAccount(Protocol):
    """The cache account's operations on parts.

    Every method may raise a ``RigError`` whose ``recoverable`` tells whether a retry can succeed: ``CacheUnreachable``
    (recoverable), ``CacheAuthentication`` and ``CacheForbidden`` (not recoverable), ``CacheError`` (the service refused the
    request; not recoverable).  A call that failed may still have had its effect, so every call can be repeated.
    """

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        """Upload a part unless a blob of its name exists (``If-None-Match: *``).

        Args:
            part: the part, whose name is the blob's name.
            data: the compressed segment.
            replace: upload also if the blob exists, because that one cannot be read.

        Returns:
            False if the blob existed already; that is success, too.
        """
        ...

    async def put_in_turn(
        self, part: PartName, data: bytes, turn: AbstractAsyncContextManager[object], *, replace: bool = False
    ) -> bool:
        """Upload a part like :meth:`put`; ``turn`` is held while its bytes travel, not while they are prepared."""
        async with turn:
            return await self.put(part, data, replace=replace)

    async def put_together(self, parts: Mapping[PartName, bytes]) -> None:
        """Upload several small parts, as one blob if the account can do so; a part that exists may be put again."""
        for part, data in parts.items():
            await self.put(part, data)

    async def list(self, disk_id: str) -> Listing:
        """Return the blobs of one disk; names that are no parts are listed separately and do not fail the call."""
        ...

    async def list_all(self, disk_ids: Sequence[str]) -> dict[str, Listing]:
        """Return the blobs of several disks by disk id; an account that can do so answers with one list of all its blobs."""
        return {disk_id: await self.list(disk_id) for disk_id in disk_ids}

    async def get(self, part: PartName) -> bytes:
        """Return the bytes of a part.

        Raises:
            RigError: ``PartNotFound``; ``PartUnreadable`` (recoverable) if this blob cannot be read now; ``PartCorrupt``
                if the blob cannot be a part.
        """
        ...

    async def check(self) -> None:
        """Check that the account can be used for replication; an account that is always there does nothing.

        Raises:
            RigError: ``AccountPermissionMissing``, ``ContainerMissing`` and ``SasExpired``, in addition to the others.
        """
        return

    async def delete(self, part: PartName) -> None:
        """Delete a part's blob; does nothing if there is none."""
        ...

    async def remove_disk(self, disk_id: str) -> None:
        """Delete all parts of a disk."""
        for part in (await self.list(disk_id)).parts:
            await self.delete(part)


AccountBlob = PartName | BundleName


@dataclass(frozen=True, slots=True)
class AccountListing:
    """The blobs of some disks by disk id, and the bundles of the account with their bytes."""

    disks: dict[str, Listing]
    bundles: dict[BundleName, int]


class BlobAccount(CacheAccount, Protocol):
    """An account that holds bundles, too; :class:`siterig.blockfs.transfer.bundled_account.BundledAccount` makes them."""

    async def put(self, part: AccountBlob, data: bytes, *, replace: bool = False) -> bool: ...

    async def list_with_bundles(self, disk_ids: Sequence[str]) -> AccountListing:
        """Return the blobs of several disks, and the bundles, whose content is not read."""
        ...

    async def get(self, part: AccountBlob) -> bytes: ...

    async def delete(self, part: AccountBlob) -> None: ...
