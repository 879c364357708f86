"""The part of the vault's API that compares both sides."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.contracts.verification import Verification


class VerificationApi(Protocol):
    """The comparison of both sides of a VM."""

    async def verify(self, *, vm: str) -> Verification:
        """Compare both sides at one position, while replication runs; the result is an event, and a difference a resync due.

        Raises:
            RigError: ``VmBusy`` if the VM is being verified; ``Interrupted`` if another operation stopped it.
        """
        ...

    async def stop_verification(self, *, vm: str) -> None:
        """Stop a verification; no-op if there is none."""
        ...
