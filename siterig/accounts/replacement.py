"""The replacement of the secret of a rig's storage account by another one for the same place in the account."""

from __future__ import annotations

from siterig.accounts.admission import check_account, replaced
from siterig.azure_emu.user_account.secret import AccountSecret
from siterig.azure_emu.user_account.stored_account import UserAccount, load, store
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.paths import Layout
from siterig.rpc import directory


def require_user_account(layout: Layout) -> None:
    """Check that a rig uses a storage account of a user.

    Raises:
        RigError: ``AccountFixed``.
    """
    if not layout.user_account.exists():
        text = f"the rig in {layout.root} has no storage account of yours: siterig up --account names one"
        raise RigError(Code.AccountFixed, text)


async def replace_secret(
    layout: Layout, secret: AccountSecret, authority: str | None = None
) -> tuple[UserAccount, RigError | None]:
    """Check another secret, and let the rig use it from now on.

    Args:
        layout: the rig, which may be down.
        secret: the secret.
        authority: the authority of the account's certificate, as PEM; None: the former one.

    Returns:
        The account, and the error if the vault did not record the event.
    Raises:
        RigError: ``AccountFixed``; the errors of :func:`siterig.accounts.admission.check_account`.
    """
    require_user_account(layout)
    user = replaced(load(layout.keys), secret, authority)
    await check_account(user)
    store(layout.keys, user)
    try:
        await directory.account_keys(layout).note_account_secret(account=user.secret.account)
    except RigError as error:
        return user, error
    return user, None
