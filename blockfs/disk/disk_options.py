"""Options that the disks of one process share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from siterig.blockfs.changelog.disk_log import LogPolicy
from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.blockfs.contracts.shares import STORE_SHARE_MAX
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.watch.file_stamps import DigestBudget
from siterig.blockfs.watch.file_watch import FileWatch

_log = structlog.get_logger("siterig.blockfs.disk.disk")


def log_changed(paths: DiskPaths, what: str) -> None:
    """Another program has changed a disk."""
    _log.error("disk_changed_by_another", disk=str(paths), what=what)


def log_lost(paths: DiskPaths, what: str) -> None:
    """Another program has taken away files of a disk's change log."""
    _log.error("log_files_changed_by_another", disk=str(paths), what=what)


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """Shared by the disks of a host: the counter of positions, the receivers of events, the limits of what is kept."""

    positions: PositionCounter
    event_fd: int = -1
    """An eventfd, raised when :meth:`Disk.maintain` has something to do; -1: nobody waits."""
    policy: LogPolicy = field(default_factory=LogPolicy)
    snapshot_share_max: float = STORE_SHARE_MAX
    """How much of a disk's size its snapshot may take."""
    can_grow: bool = True
    """Not where something lies behind the disk in its file."""
    read_only: bool = False
    """True for a state of the past: nobody may open it to write."""
    watch: FileWatch | None = None
    """Tells the disks what others do to their files."""
    report_changed: Callable[[DiskPaths, str], None] = log_changed
    """Told at once what another program has done to a disk's files."""
    report_log_lost: Callable[[DiskPaths, str], None] = log_lost
    """Told at once what another program has done to the files of a disk's change log, which ends with that."""
    clock: Clock = SYSTEM_CLOCK
    digests: DigestBudget = field(default_factory=DigestBudget)
    """Limits the bytes that the disks read when they are closed, so that a copy of them is known again."""
