"""The disks of a state of a protected VM, and the disks of the source VM that it lacks.

A disk can join the replication later, be removed, and join again.  So each disk has ranges of positions: the states of these
positions have it.
"""

from __future__ import annotations

from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from siterig.azure_emu.vault.db.schema import DiskRow, ItemRow

NO_END = 2**63 - 1
"""The end of the last range of a disk that is replicated."""


def ranges_of(disk: DiskRow) -> list[tuple[int, int]]:
    """Return the ranges (first, last) of the positions whose states have the disk, oldest first."""
    found = [(first, last) for first, last in disk.former_ranges]
    if disk.first_position is not None:
        found.append((disk.first_position, NO_END if disk.last_position is None else disk.last_position))
    return found


def has_state(disk: DiskRow, position: int) -> bool:
    """Return True if the state of the VM at a position has the disk."""
    return any(first <= position <= last for first, last in ranges_of(disk))


def of_state(item: ItemRow, position: int) -> list[DiskRow]:
    """Return the disks that the state at a position has, by name."""
    return [disk for disk in item.known_disks if has_state(disk, position)]


def of_any_state(item: ItemRow) -> list[DiskRow]:
    """Return all disks that have a managed disk, by name: the replicated, the joining and the removed ones."""
    return list(item.known_disks)


def oldest_needed(disk: DiskRow, position: int) -> int | None:
    """Return the oldest position, from this one on, whose state has the disk; None if there is none."""
    return next((max(first, position) for first, last in ranges_of(disk) if last >= position), None)


def lacking(item: ItemRow, position: int | None) -> tuple[str, ...]:
    """Return the names of the disks of the source VM that the state at a position lacks, sorted; None: the newest state."""
    names = set(item.excluded_disks)
    if position is not None:
        names |= {disk.name for disk in item.disks}
        names -= {disk.name for disk in of_state(item, position)}
    return tuple(sorted(names))


def put_into(item: ItemRow, disks: list[DiskRow]) -> None:
    """Let an item have these disks, which are all that have a managed disk, by name; none of its lists is read any more."""
    set_committed_value(item, "known_disks", disks)
    set_committed_value(item, "removed_disks", [disk for disk in disks if disk.last_position is not None])
    replicated = [disk for disk in disks if disk.first_position is not None and disk.last_position is None]
    set_committed_value(item, "disks", replicated)


def changed(session: Session, item: ItemRow) -> None:
    """Write changes of the ranges of disks, and let the lists of an item's disks be read again."""
    session.flush()
    session.expire(item, ["disks", "removed_disks", "known_disks"])
