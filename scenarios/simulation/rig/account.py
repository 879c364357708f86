"""The cache account of a simulation: blobs in memory, behind the contract that Azurite's client implements."""

from __future__ import annotations

import random

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_name import Listing, PartName


class SimulatedAccount(CacheAccount):
    """The blobs, and the faults of the account.

    Attributes:
        blobs: the blobs by their part.
        acknowledged: all parts that a caller may believe to have put, ever.
        failing: the share of the calls that fail; half of them after their effect.
    """

    def __init__(self, draws: random.Random) -> None:
        self._draws = draws
        self.blobs: dict[PartName, bytes] = {}
        self.acknowledged: set[PartName] = set()
        self.failing = 0.0

    def lose(self, share: float) -> list[PartName]:
        """Lose blobs that were acknowledged, as a killed Azurite does; return their parts."""
        lost = [part for part in sorted(self.blobs) if self._draws.random() < share]
        for part in lost:
            del self.blobs[part]
        return lost

    def damage(self, share: float) -> list[PartName]:
        """Change a byte of blobs; return their parts."""
        damaged = [part for part in sorted(self.blobs) if self.blobs[part] and self._draws.random() < share]
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

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        self._fails(self.failing)
        fresh = part not in self.blobs
        if fresh or replace:
            self.blobs[part] = data
        self.acknowledged.add(part)
        self._fails(self.failing)
        return fresh or replace

    async def list(self, disk_id: str) -> Listing:
        self._fails(self.failing)
        blobs = [(part.blob(), len(data)) for part, data in self.blobs.items() if part.disk_id == disk_id]
        return Listing.of(disk_id, blobs)

    async def get(self, part: PartName) -> bytes:
        self._fails(self.failing)
        if part not in self.blobs:
            raise RigError(Code.PartNotFound, f"{part.blob()} is not there")
        return self.blobs[part]

    async def delete(self, part: PartName) -> None:
        self._fails(self.failing)
        self.blobs.pop(part, None)
        self._fails(self.failing)
