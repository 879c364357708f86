"""The storage account of a rig as its roles use it: Azurite, or the account of a user."""

from __future__ import annotations

from typing import Any, Protocol

from siterig.azure_emu.storage.azurite import connection_string, load_or_create_account
from siterig.azure_emu.storage.blob_cache import IN_FLIGHT_MAX, AccountPlace, BlobCacheAccount
from siterig.azure_emu.user_account.following_account import FollowingAccount
from siterig.azure_emu.user_account.stored_account import UserAccount, is_stored, load
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.cache_account import BlobAccount
from siterig.core.paths import Layout
from siterig.rpc.trust import storage_tls

ADVICE = "check the secret, and this host's clock"
"""The end of the error of a refused secret."""
EXTRA = "siterig[azure]"


class OpenAccount(BlobAccount, Protocol):
    """A cache account with connections."""

    def close(self) -> None:
        """Close the connections."""
        ...


def open_account(layout: Layout, client: str, clock: Clock, *, in_flight_max: int = IN_FLIGHT_MAX) -> OpenAccount:
    """Return the cache account of a rig for one of its roles.

    Args:
        layout: the rig.
        client: the role; its link to the account has its name.
        clock: the clock of the rig.
        in_flight_max: limit of concurrent calls.
    """
    link = layout.link(client, "azurite")
    if not is_stored(layout.keys):
        return BlobCacheAccount(
            connection_string(layout.azurite, layout.keys),
            folder=layout.azurite,
            link=link,
            tls=storage_tls(layout, clock),
            current_key=lambda: load_or_create_account(layout.keys).key,
            in_flight_max=in_flight_max,
        )

    def opened(user: UserAccount) -> BlobCacheAccount:
        tls, link_tls = user.tls(), storage_tls(layout, clock)
        return BlobCacheAccount(
            user.secret.connection_string,
            link=link,
            tls=tls,
            link_tls=link_tls,
            in_flight_max=in_flight_max,
            place=place_of(user),
        )

    return FollowingAccount(layout.keys, opened, clock)


def open_user_account(user: UserAccount) -> BlobCacheAccount:
    """Return a client of the account of a user that no rig has in its path."""
    return BlobCacheAccount(user.secret.connection_string, tls=user.tls(), place=place_of(user))


def open_direct(layout: Layout, clock: Clock) -> BlobCacheAccount:
    """Return a client of the rig's account, past all proxies."""
    if is_stored(layout.keys):
        return open_user_account(load(layout.keys))
    return BlobCacheAccount(connection_string(layout.azurite, layout.keys), tls=storage_tls(layout, clock))


async def remove_blobs(layout: Layout) -> int:
    """Delete the blobs of a rig that is down from the storage account of its user; return their number."""
    account = open_user_account(load(layout.keys))
    try:
        return await account.remove_blobs()
    finally:
        account.close()


def place_of(user: UserAccount) -> AccountPlace:
    """Return the place of a rig in the account of a user."""
    secret = user.secret
    return AccountPlace(
        container=secret.container,
        prefix=user.prefix,
        proof=secret.words,
        advice=ADVICE,
        creates=secret.can_create_container,
        credential=default_credential() if secret.kind == "credential" else None,
    )


def default_credential() -> Any:
    """Return DefaultAzureCredential of the package azure-identity.

    Raises:
        RigError: ``AzureIdentityMissing``.
    """
    try:
        from azure.identity import DefaultAzureCredential  # noqa: PLC0415 (an optional package, and slow to load)
    except ImportError:
        text = f"a storage account without a key or a SAS needs the package azure-identity, missing here: install {EXTRA}"
        raise RigError(Code.AzureIdentityMissing, text) from None
    return DefaultAzureCredential()
