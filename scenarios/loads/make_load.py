"""The workload of each kind."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence

from siterig.scenarios.files.workload_tables import WorkloadTable
from siterig.scenarios.loads.command_load import CommandLoad
from siterig.scenarios.loads.files_load import FilesLoad
from siterig.scenarios.loads.fio_load import FioLoad
from siterig.scenarios.loads.ledger_load import LedgerLoad
from siterig.scenarios.loads.load import Load
from siterig.scenarios.loads.postgres_load import PostgresLoad
from siterig.scenarios.workloads.postgres_server import programs

_KINDS: Mapping[str, Callable[[WorkloadTable, Sequence[str]], Load]] = {
    "ledger": LedgerLoad,
    "ledger-postgresql": PostgresLoad,
    "fio": FioLoad,
    "files": FilesLoad,
    "command": CommandLoad,
}


def make_load(table: WorkloadTable, disks: Sequence[str]) -> Load:
    """Return the workload of a table.

    Args:
        table: the workload in the scenario file.
        disks: the disks of its VM that have a file system.
    """
    return _KINDS[table.kind](table, table.disks or disks)


def missing_program(kind: str) -> str | None:
    """Return the name of a program that a kind of workload needs and this machine lacks; None if nothing is missing."""
    if kind == "ledger-postgresql" and programs() is None:
        return "initdb (on Debian: apt-get install postgresql)"
    if kind == "fio" and shutil.which("fio") is None:
        return "fio (on Debian: apt-get install fio)"
    return None
