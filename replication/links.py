"""What every part of the agent works with, made once by :class:`replication.agent.HyperVAgent`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from blockfs.clock import Clock
from blockfs.control import DiskHostControl
from blockfs.waits import Waits
from replication.guests import Guests
from replication.ports import CacheAccount, VaultLink
from replication.relationship import RelationshipBook
from replication.retry import RetryTable
from replication.snapshots import SnapshotFile


@dataclass(frozen=True)
class Links:
    """The agent's surroundings.

    ``spool``: one folder a disk for sync parts that are not applied yet.  ``uploads``: how many uploads of this
    host may be in flight.  ``clock``: only for what must outlive a restart.  ``waits``: of the role.
    """

    host: DiskHostControl
    cache: CacheAccount
    vault: VaultLink
    book: RelationshipBook
    guests: Guests
    open_snapshot: Callable[[Path], SnapshotFile]
    spool: Path
    uploads: trio.CapacityLimiter
    retry: RetryTable
    clock: Clock
    waits: Waits
