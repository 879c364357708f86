"""The objects that every part of the agent uses; :class:`siterig.replication.hyperv.agent.HyperVAgent` makes them once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.contracts.control import DiskHostControl
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.transfer.cache_account import CacheAccount
from siterig.replication.engine.disk_groups import JoiningDisks, ReplicatedDisks
from siterig.replication.engine.relationship import RelationshipBook
from siterig.replication.engine.retry import RetryTable
from siterig.replication.engine.snapshots import SnapshotFile
from siterig.replication.guests.app_scripts import AppScripts
from siterig.replication.guests.host_guests import Guests
from siterig.replication.parts.bandwidth import Bandwidth
from siterig.replication.parts.byte_budget import ByteBudget
from siterig.replication.parts.joint_puts import JointPuts
from siterig.replication.parts.put_news import PutNews


@dataclass(frozen=True)
class AgentContext:
    """The surroundings of the agent.

    Attributes:
        host: the disk host, with all disks of each VM.
        spool: folder with one folder for each disk, for sync parts that are not applied yet.
        uploads: limits the uploads of this host that are in flight.
        uploads_per_vm: limits those of one VM.
        put_news: tells the recovery side of new parts.
        joint_puts: puts small parts of several disks as one blob.
        bandwidth: limits the bytes that this host uploads in a second.
        packing: limits the threads that compress parts.
        memory: the memory for the parts that are in work.
        scripts: calls the scripts of the VMs for application-consistent points.
        clock: the time of the agent.
        waits: the list of waits of the role.
    """

    host: DiskHostControl
    cache: CacheAccount
    vault: VaultLink
    book: RelationshipBook
    guests: Guests
    open_snapshot: Callable[[Path], SnapshotFile]
    spool: Path
    uploads: trio.CapacityLimiter
    uploads_per_vm: int
    put_news: PutNews
    joint_puts: JointPuts
    bandwidth: Bandwidth
    packing: trio.CapacityLimiter
    memory: ByteBudget
    scripts: AppScripts
    retry: RetryTable
    clock: Clock
    waits: Waits

    def replicated(self, vm: str) -> ReplicatedDisks:
        """Return the disks of a VM that are replicated."""
        return ReplicatedDisks(self.host, self.book, vm)

    def joining(self, vm: str) -> JoiningDisks:
        """Return the disks of a VM that join its replication."""
        return JoiningDisks(self.host, self.book, vm)
