"""Answers of the vault's database that are asked for again and again, kept while no transaction changes their tables.

A question is a function that reads rows in a transaction.  Its answer is kept together with the names of all tables and
columns that its statements mention.  A transaction that changes one of them drops the answer.  The names are read off the
texts of the statements, so no caller has to name them, and a name too many costs only a read.  A question that selects a few
columns stays answered while other columns of its tables are updated; inserted and deleted rows count for all columns.

Fault contract: nothing here is durable.  It relies on one writer: the vault's process.  A transaction that fails drops the
answers of the tables that it tried to change, too.

Threads: transactions run one at a time in worker threads (database.py).  All methods but :meth:`KnownAnswers.get` are called
in a transaction, or right after its end before the next one can begin; ``get`` is one look into a dictionary.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, MetaData, event

KEPT_MAX = 500
"""The number of answers that are kept; beyond it all are dropped."""
ROWS_MAX = 200
"""A list that is longer than this is not kept."""
TEXTS_MAX = 2000
"""The number of statements whose effects are remembered."""
_WORD = re.compile(r"\w+")
_UPDATE = re.compile(r"UPDATE (?P<table>\w+) SET (?P<columns>(?:\"?\w+\"?=\?(?:, )?)+)(?: WHERE |$)")
"""An update by values; any other one counts as a change of all tables that it mentions."""
_SET = re.compile(r"(\w+)\"?=")


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """An answer, and the tables and all words of the statements that read it."""

    value: Any
    tables: frozenset[str]
    words: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Effect:
    """The effect of a statement.

    Attributes:
        reads: the tables that it reads.
        words: all its words, if it only reads.
        changes: the tables of which it may change any row and column.
        updates: the table whose columns it updates, and these columns; None if it is no such statement.
    """

    reads: frozenset[str] = frozenset()
    words: frozenset[str] = frozenset()
    changes: frozenset[str] = frozenset()
    updates: tuple[str, frozenset[str]] | None = None


class KnownAnswers:
    """The kept answers of one database."""

    def __init__(self, engine: Engine, metadata: MetaData) -> None:
        """Watch the statements of an engine, about the tables of ``metadata``."""
        self._answers: dict[Hashable, KnownAnswer] = {}
        self._names = re.compile(rf"\b({'|'.join(metadata.tables)})\b")
        self._cascades = {name: _deleted_with(name, metadata) for name in metadata.tables}
        self._texts: dict[str, _Effect] = {}
        self._effects: set[_Effect] = set()
        """The effects of the statements of this transaction."""
        event.listen(engine, "before_cursor_execute", self._executed)

    def get(self, key: Hashable) -> KnownAnswer | None:
        """Return the kept answer to a question; None if there is none."""
        return self._answers.get(key)

    def begin(self) -> None:
        """Note the begin of a transaction."""
        self._effects = set()

    def end(self) -> None:
        """Drop the answers that the transaction may have changed; call it when it is committed or has failed."""
        changed = set[str]().union(*(each.changes for each in self._effects))
        updates = [each.updates for each in self._effects if each.updates is not None]
        if changed or updates:
            for key in [key for key, each in self._answers.items() if _is_changed(each, changed, updates)]:
                del self._answers[key]

    def keep(self, key: Hashable, value: Any) -> None:
        """Keep the answer that the transaction has read; one that changes rows, or is very long, is not kept."""
        writes = any(each.changes or each.updates for each in self._effects)
        if writes or (isinstance(value, list) and len(value) > ROWS_MAX):
            return
        if len(self._answers) >= KEPT_MAX:
            self._answers.clear()
        tables = frozenset[str]().union(*(each.reads for each in self._effects))
        self._answers[key] = KnownAnswer(value, tables, frozenset[str]().union(*(each.words for each in self._effects)))

    def _executed(self, _connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        effect = self._texts.get(statement)
        if effect is None:
            if len(self._texts) >= TEXTS_MAX:
                self._texts.clear()
            effect = self._texts[statement] = self._effect(statement)
        self._effects.add(effect)

    def _effect(self, statement: str) -> _Effect:
        tables = frozenset(self._names.findall(statement))
        if statement.startswith("SELECT"):
            return _Effect(reads=tables, words=frozenset(_WORD.findall(statement)))
        update = _UPDATE.match(statement)
        if update is not None:
            return _Effect(updates=(update["table"], frozenset(_SET.findall(update["columns"]))))
        if not statement.startswith("INSERT"):
            tables = tables.union(*(self._cascades[name] for name in tables))
        return _Effect(changes=tables)


def _is_changed(answer: KnownAnswer, changed: set[str], updates: Iterable[tuple[str, frozenset[str]]]) -> bool:
    return not answer.tables.isdisjoint(changed) or any(
        table in answer.tables and not columns.isdisjoint(answer.words) for table, columns in updates
    )


def _deleted_with(name: str, metadata: MetaData) -> set[str]:
    """Return the tables whose rows the database deletes together with rows of a table."""
    found: set[str] = set()
    for table in metadata.tables.values():
        is_child = any(key.column.table.name == name for key in table.foreign_keys)
        if is_child and table.name not in found:
            found |= {table.name} | _deleted_with(table.name, metadata)
    return found
