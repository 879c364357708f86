"""The ledger on PostgreSQL as a workload of a scenario."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.files.workload_tables import WorkloadTable
from siterig.scenarios.loads.load import LoadPlace
from siterig.scenarios.loads.process_load import ProcessLoad, promises
from siterig.scenarios.workloads.ack_log import Ack
from siterig.scenarios.workloads.postgres_ledger import PAYLOAD, REVISED_BY
from siterig.scenarios.workloads.postgres_server import PostgresError, PostgresServer

_COUNTS = "SELECT count(*), coalesce(max(n), 0) FROM ledger"
_WRONG = f"SELECT count(*) FROM ledger WHERE payload <> {PAYLOAD} OR revised_by <> {REVISED_BY}"  # noqa: S608


class PostgresLoad(ProcessLoad[WorkloadTable]):
    """Numbered transactions in a PostgreSQL server whose cluster is on the disk; with two, its log is on the last one."""

    module = "postgres_ledger"

    def _cluster(self, mounts: Mapping[str, Path]) -> Path:
        return mounts[self.disks[0]] / self.table.name

    def _wal(self, mounts: Mapping[str, Path]) -> Path | None:
        return None if len(self.disks) == 1 else mounts[self.disks[-1]] / f"{self.table.name}-wal"

    def arguments(self, place: LoadPlace) -> Sequence[object]:
        # The server runs as another user, which must reach the folders.
        for folder in (place.folder, *place.mounts.values()):
            _let_pass(folder)
        words = ["--cluster", self._cluster(place.mounts), "--log-folder", place.folder / f"{self.table.name}-pg"]
        wal = self._wal(place.mounts)
        return words if wal is None else [*words, "--wal", wal]

    def findings(
        self, mounts: Mapping[str, Path], folder: Path, acks: list[Ack], cut: int | None
    ) -> tuple[list[CheckFinding], frozenset[int]]:
        for each in (folder, *mounts.values()):
            _let_pass(each)
        log_folder = folder / f"{self.table.name}-pg-check"
        try:
            with PostgresServer(self._cluster(mounts), log_folder, self._wal(mounts)) as server:
                count, newest = map(int, server.sql(_COUNTS).split("|"))
                wrong = int(server.sql(_WRONG.format(newest=newest)))
                checked = "every table and index is sound"
                server.run("pg_amcheck", "-d", "postgres", "--install-missing", "--heapallindexed")
        except PostgresError as error:
            return [CheckFinding("PostgreSQL recovers", False, str(error))], frozenset()
        finally:
            shutil.rmtree(log_folder, ignore_errors=True)
        text = f"{count} transactions, the newest is {newest}; {wrong} rows are wrong"
        present = frozenset(range(1, newest + 1)) if count == newest else frozenset[int]()
        return [
            CheckFinding("PostgreSQL recovers", True, f"pg_amcheck: {checked}"),
            CheckFinding("the ledger has no gap, and its rows are as written", count == newest and not wrong, text),
            *promises("transaction", acks, present, cut),
        ], present


def _let_pass(folder: Path) -> None:
    """Let every user pass the folder and those above it, up to the first that does already."""
    for each in (folder, *folder.parents):
        mode = each.stat().st_mode
        if not mode & 0o001:
            each.chmod(mode & 0o7777 | 0o011)
