"""The cache account in the storage account of a user: it follows the secret of the rig, which may be replaced at any time.

Fault contract: each request uses the secret that the file has when it begins; those under way end with theirs.  A request
that the account refuses is repeated once if the file has another secret by then: a refusal has no effect, so that is safe.
A damaged file fails requests, and is looked at again by the next one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

import structlog

from siterig.azure_emu.storage.blob_cache import BlobCacheAccount
from siterig.azure_emu.user_account.stored_account import UserAccount, load, stamp_of
from siterig.blockfs.core.clock import Clock, rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.cache_account import AccountBlob, AccountListing, BlobAccount
from siterig.blockfs.transfer.part_name import Listing

REFUSALS = (Code.CacheAuthentication, Code.CacheForbidden)
"""The errors of a secret that the account does not accept, or that permits too little."""
_log = structlog.get_logger(__name__)
_T = TypeVar("_T")


class FollowingAccount(BlobAccount):
    """An account of a user, by the newest secret of a rig.

    Refusals are recoverable, other than those of Azurite: the user can give another secret at any time, and the retry table
    then finds it.
    """

    def __init__(self, keys_folder: Path, open_account: Callable[[UserAccount], BlobCacheAccount], clock: Clock) -> None:
        """Read the file at the first request.

        Args:
            keys_folder: the folder with the file.
            open_account: makes a client of the account.
            clock: tells whether a SAS has expired; the account has the time of the world, and not that of the rig.
        """
        self._folder, self._open, self._clock = keys_folder, open_account, clock
        self._stamp: tuple[int, int, int] | None = None
        self._known: tuple[UserAccount, BlobCacheAccount] | None = None

    async def put(self, part: AccountBlob, data: bytes, *, replace: bool = False) -> bool:
        return await self._call(lambda account: account.put(part, data, replace=replace))

    async def list(self, disk_id: str) -> Listing:
        return await self._call(lambda account: account.list(disk_id))

    async def list_all(self, disk_ids: Sequence[str]) -> dict[str, Listing]:
        return await self._call(lambda account: account.list_all(disk_ids))

    async def list_with_bundles(self, disk_ids: Sequence[str]) -> AccountListing:
        return await self._call(lambda account: account.list_with_bundles(disk_ids))

    async def get(self, part: AccountBlob) -> bytes:
        return await self._call(lambda account: account.get(part))

    async def delete(self, part: AccountBlob) -> None:
        await self._call(lambda account: account.delete(part))

    async def check(self) -> None:
        await self._call(lambda account: account.check())

    async def remove_blobs(self) -> int:
        """Delete all blobs of the rig, and return their number."""
        return await self._call(lambda account: account.remove_blobs())

    def close(self) -> None:
        """Close the connections."""
        if self._known is not None:
            self._known[1].close()

    def _newest(self) -> tuple[UserAccount, BlobCacheAccount]:
        stamp = stamp_of(self._folder)
        if self._known is None or stamp != self._stamp:
            user = load(self._folder)
            client = self._open(user)
            if self._known is not None:
                _log.info("account_secret_replaced", account=user.secret.account, kind=user.secret.kind)
                self._known[1].close()  # requests under way keep their connections
            self._known, self._stamp = (user, client), stamp
        return self._known

    async def _call(self, work: Callable[[BlobCacheAccount], Awaitable[_T]]) -> _T:
        user, client = self._newest()
        try:
            return await work(client)
        except RigError as error:
            if error.code not in REFUSALS:
                raise
            newer, newer_client = self._newest()
            if newer_client is client:
                raise explained(error, user, self._clock) from error
        try:
            return await work(newer_client)
        except RigError as error:
            if error.code not in REFUSALS:
                raise
            raise explained(error, newer, self._clock) from error


def explained(error: RigError, user: UserAccount, clock: Clock) -> RigError:
    """Return a refusal with the reason that the secret itself shows, and the remedy."""
    secret, remedy = user.secret, "give another one with siterig account set"
    if secret.is_expired(clock.real.wall_ns()) and secret.expiry_ns is not None:
        text = f"{error.message.partition(':')[0]}: {user.where}: the SAS expired at {rfc3339(secret.expiry_ns)}; {remedy}"
        return RigError(Code.SasExpired, text, recoverable=True)
    return RigError(Code.of(error.code), f"{error.message}; {remedy}", recoverable=True)
