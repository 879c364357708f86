"""Answers of the vault's database that are asked for again and again, kept while no transaction changes their tables.

A question is a function that reads rows in a transaction.  Its answer is kept together with the names of all tables that its
statements mention.  A transaction that changes one of them drops the answer.  The names are read off the texts of the
statements, so no caller has to name its tables, and a name too many costs only a read.

Fault contract: nothing here is durable.  It relies on one writer: the vault's process.  A transaction that fails drops the
answers of the tables that it tried to change, too.

Threads: transactions run one at a time in worker threads (database.py).  All methods but :meth:`KnownAnswers.get` are called
in a transaction, or right after its end before the next one can begin; ``get`` is one look into a dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, MetaData, event

KEPT_MAX = 500
"""The number of answers that are kept; beyond it all are dropped."""
ROWS_MAX = 200
"""A list that is longer than this is not kept."""
TEXTS_MAX = 2000
"""The number of statements whose tables are remembered."""


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """An answer, and the tables that it was read from."""

    value: Any
    tables: frozenset[str]


class KnownAnswers:
    """The kept answers of one database."""

    def __init__(self, engine: Engine, metadata: MetaData) -> None:
        """Watch the statements of an engine, about the tables of ``metadata``."""
        self._answers: dict[Hashable, KnownAnswer] = {}
        self._names = re.compile(rf"\b({'|'.join(metadata.tables)})\b")
        self._cascades = {name: _deleted_with(name, metadata) for name in metadata.tables}
        self._texts: dict[str, tuple[bool, frozenset[str]]] = {}
        self._read: set[str] = set()
        self._changed: set[str] = set()
        event.listen(engine, "before_cursor_execute", self._executed)

    def get(self, key: Hashable) -> KnownAnswer | None:
        """Return the kept answer to a question; None if there is none."""
        return self._answers.get(key)

    def begin(self) -> None:
        """Note the begin of a transaction."""
        self._read, self._changed = set(), set()

    def end(self) -> None:
        """Drop the answers that the transaction may have changed; call it when it is committed or has failed."""
        if self._changed:
            for key in [key for key, each in self._answers.items() if not each.tables.isdisjoint(self._changed)]:
                del self._answers[key]

    def keep(self, key: Hashable, value: Any) -> None:
        """Keep the answer that the transaction has read; one that changes rows, or is very long, is not kept."""
        if self._changed or (isinstance(value, list) and len(value) > ROWS_MAX):
            return
        if len(self._answers) >= KEPT_MAX:
            self._answers.clear()
        self._answers[key] = KnownAnswer(value, frozenset(self._read))

    def _executed(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        is_read, tables = self._texts.get(statement) or self._parsed(statement)
        (self._read if is_read else self._changed).update(tables)

    def _parsed(self, statement: str) -> tuple[bool, frozenset[str]]:
        """Return whether a statement only reads, and the tables that it mentions, with those that lose rows by it."""
        tables = set(self._names.findall(statement))
        is_read = statement.startswith("SELECT")
        if not is_read and not statement.startswith(("INSERT", "UPDATE")):
            tables = tables.union(*(self._cascades[name] for name in tables))
        if len(self._texts) >= TEXTS_MAX:
            self._texts.clear()
        known = self._texts[statement] = (is_read, frozenset(tables))
        return known


def _deleted_with(name: str, metadata: MetaData) -> set[str]:
    """Return the tables whose rows the database deletes together with rows of a table."""
    found: set[str] = set()
    for table in metadata.tables.values():
        is_child = any(key.column.table.name == name for key in table.foreign_keys)
        if is_child and table.name not in found:
            found |= {table.name} | _deleted_with(table.name, metadata)
    return found
