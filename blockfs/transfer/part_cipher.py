"""Encrypts the parts of a role, and decrypts them, with the data keys that the vault gives it.

Fault contract: keys are in memory only.  After a restart, and after :meth:`PartCipher.forget`, the vault is asked again.
"""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.transfer.envelope import DataKey, open_sealed, seal
from siterig.blockfs.transfer.part_name import PartName


class PartCipher(Protocol):
    """Seals and opens the parts of disks.

    ``seal`` and ``open`` compute only, and belong in a worker thread; ``load_key`` may call the vault, and comes first.
    """

    async def load_key(self, disk_id: str, generation: int) -> None:
        """Ask for the key of a disk and generation, unless it is known.

        Raises:
            RigError: ``KeyRevoked``; the errors of the call to the vault (recoverable).
        """
        ...

    def seal(self, part: PartName, packed: bytes) -> bytes:
        """Return the blob of a part; ``packed`` is its compressed segment.  Each call gives other bytes."""
        ...

    def open(self, part: PartName, blob: bytes) -> bytes:
        """Return the compressed segment of a blob.

        Raises:
            RigError: ``PartCorrupt`` if the blob is not encrypted, or was changed, or is another part's.
        """
        ...

    def forget(self) -> None:
        """Drop all keys, for example because one was revoked."""
        ...


class KeySource(Protocol):
    """A place that gives out data keys: the vault, or fixed keys in a test."""

    async def part_key(self, *, disk_id: str, generation: int) -> DataKey:
        """Return the key of the parts of a disk's generation; the first call for them makes it."""
        ...


class KeyedPartCipher(PartCipher):
    """The cipher of a role; all calls but ``seal`` and ``open`` are on the trio thread."""

    def __init__(self, source: KeySource) -> None:
        self._source = source
        self._keys: dict[tuple[str, int], DataKey] = {}

    async def load_key(self, disk_id: str, generation: int) -> None:
        if (disk_id, generation) not in self._keys:
            self._keys[disk_id, generation] = await self._source.part_key(disk_id=disk_id, generation=generation)

    def seal(self, part: PartName, packed: bytes) -> bytes:
        return seal(self._key(part), part, packed)

    def open(self, part: PartName, blob: bytes) -> bytes:
        return open_sealed(self._key(part), part, blob)

    def forget(self) -> None:
        self._keys.clear()

    def _key(self, part: PartName) -> DataKey:
        """Return the key of a part; a caller that did not load it has an error in its order of calls."""
        return self._keys[part.disk_id, part.generation]
