"""Encrypts the parts of a role, and decrypts them, with the data keys that the vault gives it.

Fault contract: keys are in memory only.  After a restart, and after :meth:`PartCipher.forget`, the vault is asked again.  A
vault that cannot be reached does not stop a role that has the key: data do not wait for the vault.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.data_keys import DataKeys
from siterig.blockfs.transfer.envelope import DataKey, open_sealed, seal
from siterig.blockfs.transfer.part_name import PartName

ASK_AGAIN_S = 600.0
"""A key that a role has held for this long is asked for again, so that a lost message does not hide its revocation."""


class PartCipher(Protocol):
    """Seals and opens the parts of disks.

    ``seal`` and ``open`` compute only, and belong in a worker thread; ``load_key`` may call the vault, and comes first.
    """

    async def load_key(self, disk_id: str, generation: int) -> None:
        """Ask for the key of a disk and generation, unless it is known.

        Raises:
            RigError: ``KeyRevoked``, ``KeyMissing``; the errors of the call to the vault (recoverable).
        """
        ...

    def seal(self, part: PartName, packed: bytes) -> bytes:
        """Return the blob of a part; ``packed`` is its compressed segment.  Each call gives other bytes.

        Raises:
            RigError: ``KeyDropped`` (recoverable) if the key was forgotten since it was loaded.
        """
        ...

    def open(self, part: PartName, blob: bytes) -> bytes:
        """Return the compressed segment of a blob.

        Raises:
            RigError: ``PartCorrupt`` if the blob is not encrypted, or was changed, or is another part's; ``KeyDropped``.
        """
        ...

    def forget(self, disk_id: str | None = None) -> None:
        """Drop the keys of a disk, whose keys the vault may have deleted; or all keys, because one was revoked."""
        ...


@dataclass(frozen=True, slots=True)
class _HeldKey:
    key: DataKey
    ask_again_at_s: float


class KeyedPartCipher(PartCipher):
    """The cipher of a role; all calls but ``seal`` and ``open`` are on the trio thread."""

    def __init__(self, keys: DataKeys, clock: Clock = SYSTEM_CLOCK) -> None:
        """Hold no key yet.

        Args:
            keys: the vault.
            clock: the time.
        """
        self._keys = keys
        self._clock = clock
        self._held: dict[tuple[str, int], _HeldKey] = {}

    async def load_key(self, disk_id: str, generation: int) -> None:
        held = self._held.get((disk_id, generation))
        if held is not None and self._clock.trio_time_s() < held.ask_again_at_s:
            return
        try:
            grant = await self._keys.part_key(disk_id=disk_id, generation=generation)
        except RigError as exc:
            if held is None or not exc.recoverable:
                self._held.pop((disk_id, generation), None)
                raise
            return
        self._held[disk_id, generation] = _HeldKey(grant.key(), self._clock.trio_time_s() + ASK_AGAIN_S)

    def seal(self, part: PartName, packed: bytes) -> bytes:
        return seal(self._key(part), part, packed)

    def open(self, part: PartName, blob: bytes) -> bytes:
        return open_sealed(self._key(part), part, blob)

    def forget(self, disk_id: str | None = None) -> None:
        self._held = {name: held for name, held in self._held.items() if disk_id is not None and name[0] != disk_id}

    def _key(self, part: PartName) -> DataKey:
        held = self._held.get((part.disk_id, part.generation))
        if held is None:
            raise RigError(
                Code.KeyDropped, f"the key of part {part.blob()} was dropped while the part was processed", recoverable=True
            )
        return held.key


def keep_keys(_disk_id: str | None) -> None:
    """Drop nothing: stands for :meth:`PartCipher.forget` where the cache account has no keys."""
