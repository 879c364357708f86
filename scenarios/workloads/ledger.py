"""The ledger workload: a process that commits numbered transactions to two databases.

``python -m siterig.scenarios.workloads.ledger --os-db FILE --data-db FILE --acks FILE --position FILE`` runs it. Numbered
transactions are committed to a database on one disk (rollback journal), then to one on another disk (WAL), then
acknowledged to a file outside the disks. Each is durable when it is acknowledged. A new process continues after the newest
transaction in the databases. It stops at a line or the end of its standard input (so it ends with its parent), and when a
disk fails.

It prints ``ready N`` (N: the newest transaction at the start) and at its end ``stopped N`` or ``failed N MESSAGE`` (N: last
acknowledged).
"""

from __future__ import annotations

import argparse
import contextlib
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.scenarios.workloads import ledger_schema
from siterig.scenarios.workloads.ack_log import Ack, AckWriter
from siterig.scenarios.workloads.worker import Steps, add_common_options, work


def open_database(path: Path, *, wal: bool) -> sqlite3.Connection:
    """Open or create one ledger database, so that a commit that returned is durable.

    Rollback journal: ``EXTRA`` also syncs the folder after the journal is deleted; else a commit could come undone.
    WAL: exclusive locking keeps its index in memory; a shared one is mapped from the disk, and a disk that dies would
    then end this process by SIGBUS instead of an error.
    """
    database = sqlite3.connect(path, isolation_level=None, timeout=0)
    if wal:
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
    database.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'DELETE'}")
    database.execute(f"PRAGMA synchronous = {'FULL' if wal else 'EXTRA'}")
    for statement in ledger_schema.SCHEMA:
        database.execute(statement)
    return database


@contextmanager
def _transaction(database: sqlite3.Connection) -> Iterator[None]:
    database.execute("BEGIN IMMEDIATE")
    yield
    database.execute("COMMIT")


class Ledger(Steps):
    """Both databases and the acknowledgement file."""

    failures = (sqlite3.Error, OSError)

    def __init__(self, os_db: Path, data_db: Path, acks: AckWriter, position: Path) -> None:
        self.acknowledged = 0
        self._position = position
        self._os = open_database(os_db, wal=False)
        self._data = open_database(data_db, wal=True)
        self._acks = acks
        self._complete_newest()

    def _complete_newest(self) -> None:
        """Finish a transaction that a crash left on the first disk only; it is not acknowledged."""
        n = ledger_schema.newest(self._data)
        if ledger_schema.newest(self._os) == n + 1:
            with _transaction(self._data):
                ledger_schema.apply(self._data, n + 1)
            n += 1
        self.newest = n

    def step(self) -> None:
        """Commit one transaction on both disks, then acknowledge it."""
        n = self.newest + 1
        begin = read_position(self._position)
        for database in (self._os, self._data):
            with _transaction(database):
                ledger_schema.apply(database, n)
        self._acks.append(Ack(n, begin, read_position(self._position), SYSTEM_CLOCK.wall_ns()))
        self.newest = self.acknowledged = n

    def close(self) -> None:
        """Close all files; the databases may be on a dead disk."""
        self._acks.close()
        for database in (self._os, self._data):
            with contextlib.suppress(sqlite3.Error):
                database.close()


def main() -> int:
    """Parse the arguments and run; exit status 0 if stopped, 1 if a disk failed, 2 if a disk hung."""
    parser = argparse.ArgumentParser(prog="python -m siterig.scenarios.workloads.ledger")
    for name in ("--os-db", "--data-db"):
        parser.add_argument(name, type=Path, required=True)
    options = add_common_options(parser).parse_args()
    return work(lambda acks: Ledger(options.os_db, options.data_db, acks, options.position), Ledger.failures, options)


if __name__ == "__main__":
    sys.exit(main())
