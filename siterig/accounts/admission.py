"""The check of a user's storage account before a rig uses it: each cause of a failure has its own error.

Nothing is written but the container, if it is missing and may be created.
"""

from __future__ import annotations

from dataclasses import replace

from siterig.accounts.rig_account import open_user_account
from siterig.azure_emu.user_account.following_account import REFUSALS, explained
from siterig.azure_emu.user_account.secret import AccountSecret
from siterig.azure_emu.user_account.stored_account import UserAccount
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from siterig.blockfs.core.errors import Code, RigError


async def check_account(user: UserAccount, clock: Clock = SYSTEM_CLOCK) -> None:
    """Check that the account can be used for replication.

    Raises:
        RigError: ``SasExpired``, ``AccountPermissionMissing``, ``CacheUnreachable``, ``PeerRefused``,
            ``CacheAuthentication``, ``CacheForbidden``, ``ContainerMissing``, ``AzureIdentityMissing``.
    """
    check_sas(user.secret, clock)
    account = open_user_account(user)
    try:
        await account.check()
    except RigError as error:
        if error.code in REFUSALS:
            raise explained(error, user, clock) from error
        raise
    finally:
        account.close()


def check_sas(secret: AccountSecret, clock: Clock = SYSTEM_CLOCK) -> None:
    """Check the fields of a SAS that a user can read in it, without a request.

    Raises:
        RigError: ``SasExpired``, ``AccountPermissionMissing``.
    """
    expiry_ns = secret.expiry_ns
    if expiry_ns is not None and secret.is_expired(clock.real.wall_ns()):
        text = f"the SAS of the storage account {secret.account} expired at {rfc3339(expiry_ns)}: create another one"
        raise RigError(Code.SasExpired, text)
    if missing := secret.missing_permissions():
        text = (
            f"the SAS of the storage account {secret.account} lacks {', '.join(missing)}; needed: read, write, delete, list"
        )
        raise RigError(Code.AccountPermissionMissing, text)


def replaced(former: UserAccount, secret: AccountSecret, authority: str | None) -> UserAccount:
    """Return the account of a rig with another secret; ``authority`` None keeps the former one.

    Raises:
        RigError: ``AccountFixed`` if the secret is for another account or container.
    """
    old = former.secret
    container = secret.container or old.container
    if not secret.is_same_place(old) or container != old.container:
        text = (
            f"the rig uses container {old.container!r} of {old.endpoint}, and the new secret is for"
            f" {container!r} of {secret.endpoint}: give a secret for the former, or start a new rig"
        )
        raise RigError(Code.AccountFixed, text)
    return replace(
        former, secret=replace(secret, container=container), authority=former.authority if authority is None else authority
    )
