"""The cache storage account as the recovery side sees it; what the site's agents see has the same shape."""

from __future__ import annotations

from typing import Protocol

from blockfs.part import PartName


class PartCache(Protocol):
    """Parts in the cache account.

    Every method raises ``RigError``: ``CacheUnreachable`` (recoverable), ``CacheAuthentication`` / ``CacheForbidden`` /
    ``CacheError`` (not).
    """

    async def put(self, part: PartName, data: bytes) -> bool:
        """Upload once; False if the blob was there already, whatever it holds."""
        ...

    async def list(self, disk_id: str) -> list[PartName]:
        """Parts of one disk."""
        ...

    async def get(self, part: PartName) -> bytes:
        """The blob's bytes (``PartNotFound``)."""
        ...

    async def delete(self, part: PartName) -> None:
        """Remove; no-op if it is gone."""
        ...
