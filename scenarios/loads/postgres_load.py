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
from siterig.scenarios.workloads.postgres_ledger import PAYLOAD
from siterig.scenarios.workloads.postgres_server import PostgresError, PostgresServer

_WRONG = f"SELECT count(*) FROM ledger WHERE payload <> {PAYLOAD} OR revised_by NOT IN (n, 2 * n, 2 * n + 1)"  # noqa: S608


class PostgresLoad(ProcessLoad[WorkloadTable]):
    """Numbered transactions in a PostgreSQL server whose cluster is on the disk."""

    module = "postgres_ledger"

    def _cluster(self, mounts: Mapping[str, Path]) -> Path:
        return mounts[self.disks[0]] / self.table.name

    def arguments(self, place: LoadPlace) -> Sequence[object]:
        # The server runs as another user, which must reach the folders.
        for folder in (place.folder, *place.mounts.values()):
            _let_pass(folder)
        return ["--cluster", self._cluster(place.mounts), "--sockets", place.folder / f"{self.table.name}-pg"]

    def findings(
        self, mounts: Mapping[str, Path], folder: Path, acks: list[Ack], cut: int | None
    ) -> tuple[list[CheckFinding], frozenset[int]]:
        for each in (folder, *mounts.values()):
            _let_pass(each)
        sockets = folder / f"{self.table.name}-pg-check"
        try:
            with PostgresServer(self._cluster(mounts), sockets) as server:
                count, newest, wrong = (
                    int(server.sql(query) or 0)
                    for query in ("SELECT count(*) FROM ledger", "SELECT coalesce(max(n), 0) FROM ledger", _WRONG)
                )
                checked = "every table and index is sound"
                server.run("pg_amcheck", "-d", "postgres", "--install-missing", "--heapallindexed")
        except PostgresError as error:
            return [CheckFinding("PostgreSQL recovers", False, str(error))], frozenset()
        finally:
            shutil.rmtree(sockets, ignore_errors=True)
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
