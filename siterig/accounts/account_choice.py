"""The storage account of a user at the start of a rig: it is checked before anything is made or started."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from siterig.azure_emu.user_account.secret import AccountSecret
from siterig.azure_emu.user_account.stored_account import UserAccount, load, new_place, store
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.paths import Layout

CHECK_S = 15.0
"""The limit of the check of an account that the rig has already: a rig starts without it, too."""


@dataclass(frozen=True, slots=True)
class AccountChoice:
    """An account as a user names it; ``authority`` is PEM, None if none is given."""

    secret: AccountSecret
    authority: str | None = None


async def admitted(
    layout: Layout, choice: AccountChoice | None, announce: Callable[[str, str], None], *, clock: Clock = SYSTEM_CLOCK
) -> Callable[[], None] | None:
    """Check the account of a rig, and return the function that stores it; None if it is stored already.

    An account that a user names now must be usable.  For one that the rig has already a failure is only announced: recovery
    points that are applied do not need it.

    Args:
        layout: the rig, whose folder may not exist.
        choice: the account that the user names; None if the rig has one already.
        announce: called with a subject and a text.
        clock: bounds the check of the rig's own account.

    Raises:
        RigError: ``AccountFixed`` if the rig has another account; the errors of
            :func:`siterig.accounts.admission.check_account`.
    """
    # These load the SDK, which takes longer than the other parts of a start: only such rigs wait for it.
    from siterig.accounts.admission import check_account, replaced  # noqa: PLC0415

    if choice is None:
        failure: RigError | None = RigError(Code.CacheUnreachable, f"it does not answer within {CHECK_S:g} s")
        with clock.move_on_after(CHECK_S):
            try:
                await check_account(load(layout.keys))
            except RigError as error:
                failure = error
            else:
                failure = None
        if failure is not None:
            announce("storage account", f"{failure.message} ({failure.code})")
        return None
    user = placed(layout, choice, replaced)
    await check_account(user)
    return partial(store, layout.keys, user)


def placed(
    layout: Layout, choice: AccountChoice, replaced: Callable[[UserAccount, AccountSecret, str | None], UserAccount]
) -> UserAccount:
    """Return the account with the rig's place in it: a new one, or the former one with another secret."""
    if layout.user_account.exists():
        return replaced(load(layout.keys), choice.secret, choice.authority)
    if (layout.azurite / "port").exists():
        text = f"the rig in {layout.root} has used Azurite: its parts are there; start a new rig for another storage account"
        raise RigError(Code.AccountFixed, text)
    return new_place(choice.secret, choice.authority or "")
