"""The lists of an item's disks that one statement has read."""

from __future__ import annotations

from siterig.azure_emu.vault.context import disk_sets
from siterig.azure_emu.vault.db.schema import DiskRow, ItemRow
from siterig.azure_emu.vault.monitoring import health


def test_only_replicated_disks_hold_back_the_applied_position() -> None:
    joining = DiskRow(name="joins", first_position=None, last_position=None, complete_position=0)
    replicated = DiskRow(name="os", first_position=0, last_position=None, complete_position=70)
    removed = DiskRow(name="was", first_position=0, last_position=40, complete_position=40)
    item = ItemRow(vm="web01")
    disk_sets.put_into(item, [joining, replicated, removed])
    assert (item.disks, item.removed_disks, item.known_disks) == ([replicated], [removed], [joining, replicated, removed])
    assert health.applied_position(item) == 70
