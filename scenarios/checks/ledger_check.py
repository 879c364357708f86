"""The check of a recovered ledger: every promise is kept, and the state existed at one moment."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.workloads import ledger_schema
from siterig.scenarios.workloads.ack_log import Ack


@dataclass(frozen=True)
class LedgerCheck:
    """The counts: ``acknowledged`` transactions, ``present`` ones on both disks, ``lost`` ones only acknowledged."""

    findings: tuple[CheckFinding, ...]
    acknowledged: int
    present: int
    lost: int

    @property
    def ok(self) -> bool:
        """True if every finding is ok."""
        return all(finding.ok for finding in self.findings)


@dataclass(frozen=True)
class _Side:
    newest: int
    numbers: frozenset[int]
    findings: tuple[CheckFinding, ...]


def check_ledger(os_db: Path, data_db: Path, acks: Sequence[Ack], cut_position: int | None) -> LedgerCheck:
    """Check both databases against each other, the promises, and the cut that they were recovered at.

    Without ``cut_position`` every promise must be kept.  SQLite recovers a database when it is opened, so the files must be
    writable.
    """
    os_side = _check_database("os", os_db)
    data_side = _check_database("data", data_db)
    both = os_side.numbers & data_side.numbers
    findings = [
        *os_side.findings,
        *data_side.findings,
        _order(os_side.newest, data_side.newest),
        _promises(acks, both, cut_position),
    ]
    if cut_position is not None:
        findings.append(_nothing_after(acks, os_side.numbers | data_side.numbers, cut_position))
    lost = sum(1 for ack in acks if ack.n not in both)
    return LedgerCheck(tuple(findings), len(acks), len(both), lost)


def _check_database(disk: str, path: Path) -> _Side:
    try:
        if not path.is_file():
            raise sqlite3.DatabaseError(f"{path} is not there")
        with closing(sqlite3.connect(path, isolation_level=None, timeout=0)) as database:
            return _check_content(disk, database)
    except (sqlite3.Error, OSError) as error:
        return _Side(0, frozenset(), (CheckFinding(f"SQLite integrity, {disk} disk", False, str(error)),))


def _check_content(disk: str, database: sqlite3.Connection) -> _Side:
    (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    answers = [str(row[0]) for row in database.execute("PRAGMA integrity_check(5)")]
    sound = CheckFinding(
        f"SQLite integrity, {disk} disk", answers == ["ok"], f"journal_mode={mode}, integrity_check: {'; '.join(answers)}"
    )
    numbers = [int(row[0]) for row in database.execute("SELECT n FROM ledger ORDER BY n")]
    newest = numbers[-1] if numbers else 0
    gap = next((i for i, n in enumerate(numbers, 1) if i != n), None)
    prefix = CheckFinding(
        f"gapless prefix, {disk} disk",
        gap is None,
        f"transactions 1 to {newest}, none missing" if gap is None else f"transaction {gap} is missing of 1 to {newest}",
    )
    wrong = _first_difference(database, newest)
    content = CheckFinding(
        f"content, {disk} disk", wrong is None, wrong or f"every row is as {newest} transactions leave it"
    )
    return _Side(newest, frozenset(numbers), (sound, prefix, content))


def _first_difference(database: sqlite3.Connection, newest: int) -> str | None:
    """Replay 1 to ``newest`` in memory and compare each table row by row."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as right:
        for statement in ledger_schema.SCHEMA:
            right.execute(statement)
        right.execute("BEGIN")
        for n in range(1, newest + 1):
            ledger_schema.apply(right, n)
        right.execute("COMMIT")
        for table, key in ledger_schema.TABLES.items():
            query = f"SELECT * FROM {table} ORDER BY {key}"  # noqa: S608 (our own names)
            found, expected = database.execute(query).fetchall(), right.execute(query).fetchall()
            for row, wanted in zip(found, expected, strict=False):
                if row != wanted:
                    return f"{table}: row {key}={wanted[0]} is wrong, found {_short(row)}, expected {_short(wanted)}"
            if len(found) != len(expected):
                return f"{table}: {len(found)} rows, expected {len(expected)}"
    return None


def _short(row: tuple[object, ...]) -> str:
    shown = [f"{len(value)} bytes {value[:4].hex()}..." if isinstance(value, bytes) else str(value) for value in row]
    return f"({', '.join(shown)})"


def _order(newest_os: int, newest_data: int) -> CheckFinding:
    """Check that the data disk has as many transactions as the os disk, which is written first, or one less."""
    ok = newest_data <= newest_os <= newest_data + 1
    return CheckFinding("order across the disks", ok, f"newest transaction: os disk {newest_os}, data disk {newest_data}")


def _promises(acks: Sequence[Ack], present: frozenset[int], cut_position: int | None) -> CheckFinding:
    due = [ack for ack in acks if cut_position is None or ack.end_position <= cut_position]
    missing = [ack for ack in due if ack.n not in present]
    name = "every acknowledged transaction" if cut_position is None else "every transaction acknowledged before the point"
    if missing:
        first = missing[0]
        text = f"{len(missing)} missing of {len(due)}, first {first.n}, done at position {first.end_position}"
        return CheckFinding(name, False, text + ("" if cut_position is None else f", the point is {cut_position}"))
    return CheckFinding(name, True, f"{len(due)} of {len(acks)} acknowledged were due, all are on both disks")


def _nothing_after(acks: Sequence[Ack], present: frozenset[int], cut_position: int) -> CheckFinding:
    later = [ack for ack in acks if ack.begin_position >= cut_position]
    extra = [ack for ack in later if ack.n in present]
    name = "nothing from after the point"
    if extra:
        first = extra[0]
        text = f"transaction {first.n} began at position {first.begin_position}, the point is {cut_position}"
        return CheckFinding(name, False, text)
    return CheckFinding(
        name, True, f"{len(later)} acknowledged transactions began after position {cut_position}, none is there"
    )
