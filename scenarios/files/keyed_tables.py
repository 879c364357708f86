"""Tables whose keys depend on one of them: the operations of a timeline, the kinds of workloads.

A problem names the key, its value and what the operation or kind takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from siterig.blockfs.documents.model_problems import KeyPath
from siterig.blockfs.documents.nearest import hint, unknown_key


@dataclass(frozen=True, slots=True)
class KeyedTable:
    """The keys of one operation or kind.

    Args:
        about: one line for the reference page.
        needs: the keys that must be there.
        takes: the keys that may be there.
    """

    about: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """All keys, the needed ones first."""
        return (*self.needs, *self.takes)


def table_problems(
    data: Mapping[object, object], choice: str, tables: Mapping[str, KeyedTable], common: tuple[str, ...]
) -> Iterator[tuple[KeyPath, str]]:
    """Return the problems with the keys of a table, before its values are looked at.

    Args:
        data: the table.
        choice: the key that selects the row of ``tables``.
        tables: the keys for each value of ``choice``.
        common: the keys that every table has, ``choice`` among them.
    """
    chosen = data.get(choice)
    allowed = ", ".join(tables)
    if choice not in data:
        yield (choice,), f"is missing; allowed: {allowed}"
    elif not isinstance(chosen, str) or chosen not in tables:
        near = hint(chosen, tables) if isinstance(chosen, str) else ""
        yield (choice,), f"{chosen!r} is not allowed{near}; allowed: {allowed}"
    else:
        table = tables[chosen]
        every = {key for each in tables.values() for key in each.keys}
        for key in data:
            if key in common or key in table.keys:
                continue
            if key in every:
                yield (str(key),), f"is no key of {chosen}; allowed: {', '.join((*table.keys, *common))}"
            else:
                yield (str(key),), unknown_key(str(key), (*table.keys, *common))
        for key in table.needs:
            if key not in data:
                yield (key,), f"is missing: {chosen} needs it"
