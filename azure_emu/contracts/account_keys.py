"""The contract of the rotation of the storage account's keys, as the command line calls it."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.core.deadlines import REPORT_S, deadline
from siterig.blockfs.core.wire_model import WireModel

ROTATION_S = 150.0
"""The deadline of a rotation, which waits for the account twice, at most a minute each time."""


class RotatedAccount(WireModel):
    """A storage account with two new keys.

    Attributes:
        account: its name.
        rotated: the time at which it refused the last former key, RFC 3339 UTC.
    """

    account: str
    rotated: str


class AccountKeyApi(Protocol):
    """The operations on the keys of the storage account."""

    @deadline(ROTATION_S)
    async def rotate_account_keys(self) -> RotatedAccount:
        """Replace both keys, one after the other, so that requests of agent and applier succeed throughout.

        The former keys are refused when the call has returned.  A call that failed left the account with keys that work, and
        can be repeated.

        Raises:
            RigError: ``AccountKeysBusy`` if the keys are being rotated; ``CacheUnreachable`` if the account does not answer;
                ``AccountKeysOfUser`` if the account is not Azurite's.
        """
        ...

    @deadline(REPORT_S)
    async def note_account_secret(self, *, account: str) -> None:
        """Record the event that a user has replaced the secret of the rig's storage account."""
        ...
