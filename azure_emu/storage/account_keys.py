"""The rotation of the storage account's keys, one after the other, as the service advises.

Fault contract: the file of the keys (:func:`siterig.azure_emu.storage.azurite.store_account`) is always one complete
version, and the account accepts the key in its first place in each of them.  A kill at any moment leaves such a version; a
repeated rotation replaces both keys again.

1. The second key becomes a new one, and the account accepts it.
2. The two keys change places: clients that read the file, or whose key is refused, use the new one.
3. The second key, which is the former first one, becomes another new one: the account refuses the former keys.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import structlog
import trio

from siterig.azure_emu.contracts.account_keys import AccountKeyApi, RotatedAccount
from siterig.azure_emu.storage.azurite import StorageAccount, load_or_create_account, new_key, store_account
from siterig.blockfs.core.clock import Clock, rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits

PATIENCE_S = 60.0
"""The time within which the account must accept a new key."""
_LOOK_S = 0.1
_log = structlog.get_logger(__name__)


class KeyProbe(Protocol):
    """A client of the account with one key."""

    async def ensure_container(self) -> None:
        """Make a request; ``CacheAuthentication`` if the account does not accept the key."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class AccountKeyService(AccountKeyApi):
    """The keys of the storage account of one rig."""

    def __init__(
        self,
        keys_folder: Path,
        probe: Callable[[StorageAccount], KeyProbe],
        record: Callable[[str], Awaitable[None]],
        record_secret: Callable[[str], Awaitable[None]],
        user_account: Path,
        *,
        clock: Clock,
        waits: Waits,
    ) -> None:
        """Change nothing yet.

        Args:
            keys_folder: the folder of the account's keys.
            probe: makes a client of the account with the first key.
            record: records the rotation as an event; its argument is the account's name.
            record_secret: records that a user has replaced the secret of an account, whose name is the argument.
            user_account: the file with the account of a user, in whose place there are no keys of Azurite.
            clock: the clock of the rig.
            waits: the waits of the role.
        """
        self._folder, self._probe, self._record, self._clock, self._waits = keys_folder, probe, record, clock, waits
        self._record_secret, self._user_account = record_secret, user_account
        self._rotating = trio.Lock()

    async def note_account_secret(self, *, account: str) -> None:
        _log.info("account_secret_set", account=account)
        await self._record_secret(account)

    async def rotate_account_keys(self) -> RotatedAccount:
        if self._user_account.exists():
            text = (
                "the rig uses a storage account of yours, whose keys only you can replace: do that, then siterig account set"
            )
            raise RigError(Code.AccountKeysOfUser, text)
        try:
            self._rotating.acquire_nowait()
        except trio.WouldBlock:
            message = "the keys of the storage account are being rotated: wait for the end"
            raise RigError(Code.AccountKeysBusy, message, recoverable=True) from None
        try:
            return await self._rotate()
        finally:
            self._rotating.release()
            self._waits.clear("account keys")

    async def _rotate(self) -> RotatedAccount:
        former = load_or_create_account(self._folder)
        first, second = new_key(), new_key()
        store_account(self._folder, StorageAccount(former.name, former.key, first))
        await self._accepted(StorageAccount(former.name, first))
        store_account(self._folder, StorageAccount(former.name, first, former.key))
        store_account(self._folder, StorageAccount(former.name, first, second))
        await self._accepted(StorageAccount(former.name, second))
        _log.info("account_keys_rotated", account=former.name)
        await self._record(former.name)
        return RotatedAccount(account=former.name, rotated=rfc3339(self._clock.wall_ns()))

    async def _accepted(self, account: StorageAccount) -> None:
        """Wait until the account accepts a key; with it, it has read the newest version of the file."""
        probe = self._probe(account)
        try:
            deadline_s = self._clock.real.monotonic_ns() + int(PATIENCE_S * 1e9)
            while True:
                try:
                    await probe.ensure_container()
                except RigError as error:
                    if error.code != Code.CacheAuthentication and not error.recoverable:
                        raise
                    if self._clock.real.monotonic_ns() > deadline_s:
                        text = f"the storage account did not accept a new key within {PATIENCE_S:g} s: {error.message}"
                        raise RigError(Code.CacheUnreachable, text, recoverable=True) from error
                    self._waits.set("account keys", error.code, "the storage account does not accept a new key yet")
                else:
                    return
                await self._clock.real.sleep(_LOOK_S)
        finally:
            probe.close()
