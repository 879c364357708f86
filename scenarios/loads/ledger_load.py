"""The ledger on SQLite as a workload of a scenario, on one disk or on two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from siterig.scenarios.checks.ledger_check import check_ledger
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.files.workload_tables import WorkloadTable
from siterig.scenarios.loads.load import LoadPlace
from siterig.scenarios.loads.process_load import ProcessLoad
from siterig.scenarios.workloads.ack_log import Ack


class LedgerLoad(ProcessLoad[WorkloadTable]):
    """Numbered transactions in two SQLite databases; with one disk both are on it."""

    module = "ledger"

    def _databases(self, mounts: Mapping[str, Path]) -> tuple[Path, Path]:
        first, second = mounts[self.disks[0]], mounts[self.disks[-1]]
        return first / self.table.name / "os.db", second / self.table.name / "data.db"

    def arguments(self, place: LoadPlace) -> Sequence[object]:
        os_db, data_db = self._databases(place.mounts)
        for database in (os_db, data_db):
            database.parent.mkdir(exist_ok=True)
        return ["--os-db", os_db, "--data-db", data_db]

    def findings(
        self, mounts: Mapping[str, Path], folder: Path, acks: list[Ack], cut: int | None
    ) -> tuple[list[CheckFinding], frozenset[int]]:
        result = check_ledger(*self._databases(mounts), acks, cut)
        return list(result.findings), frozenset(range(1, result.present + 1))
