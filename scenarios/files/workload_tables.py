"""The tables ``[[workload]]``: programs that write to a VM's disks, and know what was acknowledged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from siterig.blockfs.documents.model_problems import misfit
from siterig.scenarios.faults.values import CountFrom1, Names, Size, Text
from siterig.scenarios.files.keyed_tables import KeyedTable, table_problems
from siterig.scenarios.files.topology import ScenarioTable

WorkloadKind = Literal["ledger", "ledger-postgresql", "fio", "files", "command"]
WORKLOAD_KINDS: tuple[WorkloadKind, ...] = get_args(WorkloadKind)
WORKLOADS: Mapping[str, KeyedTable] = {
    "ledger": KeyedTable(
        "Numbered transactions in two SQLite databases, on one disk or on two; each is fsynced on both, then acknowledged. "
        "The check: both databases are sound and without a gap, and have every transaction that was acknowledged before the "
        "recovered state, and none from after it.",
        takes=("disks", "rate"),
    ),
    "ledger-postgresql": KeyedTable(
        "Numbered transactions in a PostgreSQL server of its own, whose cluster is on the disk; with two disks, its "
        "write-ahead log is on the last one. The check: the server recovers the cluster, its tables and indexes are sound, "
        "every transaction that was acknowledged before the recovered state is there, and none is there by half.",
        takes=("disks", "rate"),
    ),
    "fio": KeyedTable(
        "Rounds of fio with `verify=crc32c`, each a file of its own that is fsynced and then acknowledged. The check: fio "
        "verifies the file of every acknowledged round, and no round from after the recovered state is there.",
        takes=("disks", "size", "rounds", "kept", "rate"),
    ),
    "files": KeyedTable(
        "A tree of files with known contents: each is written, fsynced, renamed into place and acknowledged; older ones are "
        "deleted. The check: every acknowledged file has its SHA-256, and no other file is there.",
        takes=("disks", "rate"),
    ),
    "command": KeyedTable(
        "A command of a shell, which runs until the workload is stopped by SIGTERM, and one that checks the disks: exit "
        "status 0 is success. Mount points are in the variables `SITERIG_DISK_NAME` and `SITERIG_DISK` (the first disk), a "
        "folder outside the disks in `SITERIG_SCRATCH`.",
        needs=("run",),
        takes=("disks", "check"),
    ),
}
"""The kinds of workloads with their keys; docs/reference/scenario-files.md is drawn from it."""
_COMMON = ("name", "kind", "vm", "start")


class WorkloadTable(ScenarioTable):
    """A workload; the kind selects which keys it takes."""

    name: Text = Field(description="its name in timeline, expectations and report")
    kind: WorkloadKind = Field(description="the program")
    vm: Text = Field(description="the VM on whose disks it works")
    start: bool = Field(default=True, description="`false`: it starts with the operation `start-workload` only")
    disks: Names | None = Field(default=None, description="the disks; all that have a file system if left out")
    rate: Annotated[CountFrom1, Field(le=100_000)] = Field(default=50, description="acknowledged steps a second at most; 50")
    size: Size = Field(default=256 << 10, description="size of the file of a round; `256KiB`")
    rounds: CountFrom1 = Field(default=40, description="the number of rounds, after which it waits; 40")
    kept: CountFrom1 | None = Field(
        default=None, description="the newest rounds whose files stay; older ones are deleted; all stay if left out"
    )
    run: Text | None = Field(default=None, description="the command")
    check: Text | None = Field(default=None, description="the command that checks the disks of a recovered VM")

    @model_validator(mode="before")
    @classmethod
    def _has_known_keys(cls, data: object) -> object:
        if isinstance(data, Mapping) and (problems := list(table_problems(data, "kind", WORKLOADS, _COMMON))):
            raise misfit(*problems)
        return data
