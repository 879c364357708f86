"""The cache storage account as the recovery side sees it; what the site's agents see has the same shape."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.transfer.part_name import Listing, PartName


class PartCache(Protocol):
    """Parts in the cache account.

    Every method raises ``RigError``: ``CacheUnreachable`` (recoverable), ``CacheAuthentication`` / ``CacheForbidden`` /
    ``CacheError`` (not).
    """

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        """Upload once; False if the blob was there already, whatever it holds.  ``replace``: put it in any case."""
        ...

    async def list(self, disk_id: str) -> Listing:
        """The blobs of one disk."""
        ...

    async def get(self, part: PartName) -> bytes:
        """The blob's bytes (``PartNotFound``; ``PartUnreadable``, recoverable: this one cannot be read; ``PartCorrupt``)."""
        ...

    async def delete(self, part: PartName) -> None:
        """Remove; no-op if it is gone."""
        ...
