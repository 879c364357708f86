"""What every part of the agent works with, made once by :class:`siterig.replication.hyperv.agent.HyperVAgent`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.replication.contracts.ports import VaultLink
from siterig.replication.engine.guests import Guests
from siterig.replication.engine.relationship import RelationshipBook
from siterig.replication.engine.retry import RetryTable
from siterig.replication.engine.snapshots import SnapshotFile


@dataclass(frozen=True)
class AgentContext:
    """The agent's surroundings.

    ``spool``: one folder a disk for sync parts that are not applied yet.  ``uploads``: how many uploads of this
    host may be in flight.  ``waits``: of the role.
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
