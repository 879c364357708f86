"""The applier's record of one managed disk."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from siterig.azure_emu.applier.account_watch import AccountWatch
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.blockfs.transfer.part_name import Watermark


@dataclass(eq=False)
class AppliedDisk:
    """State of one disk that does not outlive the process; all fields but ``refused`` are used under ``lock`` only."""

    disk_id: str
    watch: AccountWatch
    lock: trio.Lock = field(default_factory=trio.Lock)
    store: ManagedDiskStore | None = None
    reported: Watermark | None = None
    reported_tags: int = 0
    later: Watermark | None = None
    """The watermark that the vault knows, if it is later than that of the managed disk: only a resync helps."""
    refused: set[tuple[str, str, bool]] = field(default_factory=set)
    """The errors (code, message, recoverable) that were reported to the vault since the last success."""
    retry_at_s: float = 0.0
    key_dropped: bool = False
    """True if the key of the open managed disk must not be used any more."""
    retain: int = 0
    """The position up to which the journal is to be compacted."""
    applied_parts: int = 0
    """The number of parts that were applied."""
    compacting: bool = False
    """True while a compaction or a checkpoint runs."""
    compact_at_s: float = 0.0
    """The time of the next attempt."""
    more: bool = False
    """True if a round ended before all parts in the account were applied."""
    is_settled: bool = False
    """True if nothing of the disk is due before new parts are put."""
    lists_void: int = 0
    """Counts what makes an older list of the account wrong for this disk."""
    detached: bool = False
    """True while a task processes the disk concurrently with the rounds."""

    def begin_reports(self) -> None:
        """Report everything to the vault again: a new or reopened managed disk has its tags from number 0 on."""
        self.reported, self.reported_tags = None, 0
