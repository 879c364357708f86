"""The cache account of a simulation: blobs in memory, behind the contract that Azurite's client implements."""

from __future__ import annotations

import random
from collections.abc import Sequence

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.bundle import BundleName
from siterig.blockfs.transfer.cache_account import AccountBlob, AccountListing, BlobAccount
from siterig.blockfs.transfer.part_name import Listing, PartName


class SimulatedAccount(BlobAccount):
    """The blobs, and the faults of the account.

    Attributes:
        blobs: the blobs by their part.
        acknowledged: all parts that a caller may believe to have put, ever.
        failing: the share of the calls that fail; half of them after their effect.
    """

    def __init__(self, draws: random.Random) -> None:
        self._draws = draws
        self.blobs: dict[AccountBlob, bytes] = {}
        self.acknowledged: set[AccountBlob] = set()
        self.failing = 0.0

    def lose(self, share: float) -> list[AccountBlob]:
        """Lose blobs that were acknowledged, as a killed Azurite does; return their parts."""
        lost = [part for part in list(self.blobs) if self._draws.random() < share]
        for part in lost:
            del self.blobs[part]
        return lost

    def damage(self, share: float) -> list[AccountBlob]:
        """Change a byte of blobs; return their parts."""
        damaged = [part for part in list(self.blobs) if self.blobs[part] and self._draws.random() < share]
        for part in damaged:
            data = bytearray(self.blobs[part])
            data[self._draws.randrange(len(data))] ^= 1 << self._draws.randrange(8)
            self.blobs[part] = bytes(data)
        return damaged

    def _fails(self, share: float) -> None:
        if share and self._draws.random() < share / 2:
            raise RigError(Code.CacheUnreachable, "the account answers with 503 Server Busy", recoverable=True)

    async def check(self) -> None:
        self._fails(self.failing)

    async def put(self, part: AccountBlob, data: bytes, *, replace: bool = False) -> bool:
        self._fails(self.failing)
        fresh = part not in self.blobs
        if fresh or replace:
            self.blobs[part] = data
        self.acknowledged.add(part)
        self._fails(self.failing)
        return fresh or replace

    async def list(self, disk_id: str) -> Listing:
        self._fails(self.failing)
        blobs = [(part.blob(), len(data)) for part, data in self.blobs.items() if _is_of(part, disk_id)]
        return Listing.of(disk_id, blobs)

    async def list_with_bundles(self, disk_ids: Sequence[str]) -> AccountListing:
        self._fails(self.failing)
        disks = {
            disk_id: Listing.of(
                disk_id, [(part.blob(), len(data)) for part, data in self.blobs.items() if _is_of(part, disk_id)]
            )
            for disk_id in disk_ids
        }
        return AccountListing(disks, {name: len(data) for name, data in self.blobs.items() if isinstance(name, BundleName)})

    async def get(self, part: AccountBlob) -> bytes:
        try:
            self._fails(self.failing)
        except RigError as error:
            # As the client of Azurite: it asks something else, to learn whether only this blob cannot be read.
            self._fails(self.failing)
            raise RigError(Code.PartUnreadable, f"{part.blob()}: {error.message}", recoverable=True) from None
        if part not in self.blobs:
            raise RigError(Code.PartNotFound, f"{part.blob()} is not there")
        return self.blobs[part]

    async def delete(self, part: AccountBlob) -> None:
        self._fails(self.failing)
        self.blobs.pop(part, None)
        self._fails(self.failing)


def _is_of(part: AccountBlob, disk_id: str) -> bool:
    return isinstance(part, PartName) and part.disk_id == disk_id
