"""The reasons for which a resync is due, as the vault records them."""

from __future__ import annotations

from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.blockfs.core.errors import Code

LOG_ABANDONED = frozenset({Code.LogOverflow, Code.LogFull})
"""After these reasons the managed disks are intact, and the site knows what they lack."""


def mark(item: ItemRow, reason: str) -> None:
    """Mark an item for a resync.  A reason after which more must be compared is not replaced by one of an abandoned log."""
    if item.resync_reason is None or reason not in LOG_ABANDONED:
        item.resync_reason = reason
    item.resync_marks += 1
