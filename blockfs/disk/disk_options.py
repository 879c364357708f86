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
    """Log that another program has changed a disk."""
    _log.error("disk_changed_by_another", disk=str(paths), what=what)


def log_lost(paths: DiskPaths, what: str) -> None:
    """Log that another program has taken away files of a disk's change log."""
    _log.error("log_files_changed_by_another", disk=str(paths), what=what)


@dataclass(frozen=True, slots=True)
class DiskOptions:
    """Options that the disks of one host share.

    Attributes:
        positions: the position counter of the host.
        event_fd: an eventfd that is raised when a disk needs :meth:`DiskTracking.maintain`; -1: nothing waits for it.
        policy: the limits of each change log.
        snapshot_share_max: the share of a disk's size that its snapshot may occupy.
        can_grow: False if other data follows the disk in its file.
        read_only: True for a state of the past, which cannot be opened for writing.
        watch: reports what other programs do to the files of the disks; None: no watch.
        report_changed: called at once with a change that another program made to a disk's files.
        report_log_lost: called at once with a change that another program made to the files of a change log, which ends
            then.
        clock: the time of these disks.
        digests: limits the bytes that are read when disks are closed, to recognize copies of them later.
    """

    positions: PositionCounter
    event_fd: int = -1
    policy: LogPolicy = field(default_factory=LogPolicy)
    snapshot_share_max: float = STORE_SHARE_MAX
    can_grow: bool = True
    read_only: bool = False
    watch: FileWatch | None = None
    report_changed: Callable[[DiskPaths, str], None] = log_changed
    report_log_lost: Callable[[DiskPaths, str], None] = log_lost
    clock: Clock = SYSTEM_CLOCK
    digests: DigestBudget = field(default_factory=DigestBudget)
