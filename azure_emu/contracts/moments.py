"""The moments of a vault that other roles wait for: its events, and the beginning and end of jobs and tasks."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.core.deadlines import REPORT_S, deadline
from siterig.blockfs.core.wire_model import Whole, WireModel


class VaultMoment(WireModel):
    """Something that happened in the vault.

    ``name``: the code of an event (``EnableDrSucceeded``); the name of a job or task with ``Started`` or the state that it
    reached (``StartInitialReplicationTaskSucceeded``); the state that an item entered (``Protected``).
    ``InitialReplicationStarted`` is another name of the state ``InitialReplicationInProgress``.  ``vm``: the VM that it is
    about; empty if it is about none.
    """

    name: str
    vm: str


class VaultMoments(WireModel):
    """The moments after a number.

    ``epoch`` changes when the vault was started again: the numbers begin again.  ``last`` is the number of the newest one.
    """

    epoch: str
    last: Whole
    moments: list[VaultMoment]


class MomentFeed(Protocol):
    """The calls of a role that follows the vault."""

    @deadline(REPORT_S)
    async def moments(self, *, after: Whole | None, epoch: str, patience_s: float) -> VaultMoments:
        """Return the moments after a number; waits for one at most ``patience_s`` seconds, below 4.

        With ``after`` None the answer has no moments: the caller begins now.  With another epoch it has all of this one.
        """
        ...
