"""The disks of a source VM that its states have, and those that they lack."""

from __future__ import annotations

from siterig.azure_emu.vault.db.schema import ItemRow


def lacking(item: ItemRow) -> tuple[str, ...]:
    """Return the names of the disks of the source VM that a state lacks, because they are not replicated; sorted."""
    return tuple(sorted(item.excluded_disks))
