"""The disks of a source VM that its states have, and those that they lack."""

from __future__ import annotations

from siterig.azure_emu.vault.db.schema import DiskRow, ItemRow


def of_state(item: ItemRow, position: int) -> list[DiskRow]:
    """Return the disks that the state at a position has, by name."""
    found = [*item.disks, *(disk for disk in item.removed_disks if has_state(disk, position))]
    return sorted(found, key=lambda disk: disk.name)


def of_any_state(item: ItemRow) -> list[DiskRow]:
    """Return all disks that have a managed disk, by name: the replicated and the removed ones."""
    return sorted([*item.disks, *item.removed_disks], key=lambda disk: disk.name)


def has_state(disk: DiskRow, position: int) -> bool:
    """Return True if the state of the VM at a position has the disk."""
    return disk.last_position is None or position <= disk.last_position


def lacking(item: ItemRow, position: int | None) -> tuple[str, ...]:
    """Return the names of the disks of the source VM that the state at a position lacks, sorted; None: the newest state."""
    there = set() if position is None else {disk.name for disk in item.removed_disks if has_state(disk, position)}
    return tuple(sorted(set(item.excluded_disks) - there))
