"""The cache account as the roles see it: each part is encrypted when it is put, and decrypted when it is read.

Every role reaches the account through this object only, so no blob of a part is ever put without encryption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.blockfs.transfer.part_cipher import PartCipher
from siterig.blockfs.transfer.part_name import Listing, PartName


class SealedAccount(CacheAccount):
    """An account whose blobs are envelopes; in addition to its errors, calls raise those of the cipher."""

    def __init__(self, account: CacheAccount, cipher: PartCipher) -> None:
        """Encrypt and decrypt all parts of an account.

        Args:
            account: the account that holds the blobs.
            cipher: has the keys.
        """
        self._account = account
        self._cipher = cipher

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        return await self.put_in_turn(part, data, nullcontext(), replace=replace)

    async def put_in_turn(
        self, part: PartName, data: bytes, turn: AbstractAsyncContextManager[object], *, replace: bool = False
    ) -> bool:
        await self._cipher.load_key(part.disk_id, part.generation)
        blob = await trio.to_thread.run_sync(self._cipher.seal, part, data)
        return await self._account.put_in_turn(part, blob, turn, replace=replace)

    async def put_together(self, parts: Mapping[PartName, bytes]) -> None:
        for part in parts:
            await self._cipher.load_key(part.disk_id, part.generation)
        await self._account.put_together(await trio.to_thread.run_sync(self._seal_all, parts))

    def _seal_all(self, parts: Mapping[PartName, bytes]) -> dict[PartName, bytes]:
        return {part: self._cipher.seal(part, data) for part, data in parts.items()}

    async def list(self, disk_id: str) -> Listing:
        return await self._account.list(disk_id)

    async def list_all(self, disk_ids: Sequence[str]) -> dict[str, Listing]:
        return await self._account.list_all(disk_ids)

    async def get(self, part: PartName) -> bytes:
        """Return the compressed segment of a part.

        A blob that does not open is tried with the key that the vault has now: the key of a disk that was protected again
        is another one.

        Raises:
            RigError: ``PartCorrupt`` also if the blob is not encrypted, or was changed.
        """
        blob = await self._account.get(part)
        try:
            return await self._open(part, blob)
        except RigError as exc:
            if exc.code != Code.PartCorrupt:
                raise
        self._cipher.forget(part.disk_id)
        return await self._open(part, blob)

    async def check(self) -> None:
        await self._account.check()

    async def delete(self, part: PartName) -> None:
        await self._account.delete(part)

    async def remove_disk(self, disk_id: str) -> None:
        await self._account.remove_disk(disk_id)

    async def _open(self, part: PartName, blob: bytes) -> bytes:
        await self._cipher.load_key(part.disk_id, part.generation)
        return await trio.to_thread.run_sync(self._cipher.open, part, blob)
