"""The ledger on PostgreSQL with its log on another disk: it is recovered elsewhere, and half a transaction is found."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.files.ownership import check_own_below
from siterig.scenarios.contracts.finding import CheckFinding
from siterig.scenarios.files.workload_tables import WorkloadTable
from siterig.scenarios.loads.load import LoadPlace
from siterig.scenarios.loads.postgres_load import PostgresLoad
from siterig.scenarios.workloads.ack_log import AckWriter, read_acks
from siterig.scenarios.workloads.postgres_ledger import PostgresLedger
from siterig.scenarios.workloads.postgres_server import PostgresServer, programs
from tests.support.needs import needs_program

pytestmark = [pytest.mark.slow, needs_program("initdb")]

COUNT = 7


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Return a folder that any user can reach; other users cannot reach pytest's folders."""
    with tempfile.TemporaryDirectory(prefix="siterig-pg-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def failed(findings: list[CheckFinding]) -> list[str]:
    return [finding.name for finding in findings if not finding.ok]


def test_a_database_on_two_disks_is_recovered_and_half_a_transaction_is_found(reachable: Path) -> None:
    assert programs() is not None
    table = WorkloadTable.model_validate({"name": "load", "kind": "ledger-postgresql", "vm": "web01"})
    load = PostgresLoad(table, ["data", "log"])
    disks, acks, position = reachable / "disks", reachable / "load.acks", reachable / "position"
    mounts = {name: disks / name for name in ("data", "log")}
    for mount in mounts.values():
        mount.mkdir(parents=True)
    position.write_bytes(bytes(8))
    words = load.arguments(LoadPlace(mounts, position, reachable, "site-1"))
    cluster, log_folder, wal = (Path(str(words[at])) for at in (1, 3, 5))
    (cluster / "base").mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("a machine died while it created this cluster")

    ledger = PostgresLedger(cluster, log_folder, AckWriter(acks), position, wal=wal)
    for _ in range(COUNT):
        ledger.step()
    assert log_folder.stat().st_uid == os.geteuid()
    check_own_below(log_folder, "a rig's state folder")
    ledger.close()  # as a crash does

    assert (wal / "archive_status").is_dir()
    moved = reachable / "elsewhere"  # the disks of a point are mounted in another place
    shutil.move(disks, moved)
    mounts = {name: moved / name for name in mounts}
    findings, present = load.findings(mounts, reachable, read_acks(acks), None)
    assert (failed(findings), set(present)) == ([], set(range(1, COUNT + 1)))

    with PostgresServer(moved / "data" / "load", log_folder, moved / "log" / "load-wal") as server:
        server.sql("UPDATE ledger SET revised_by = n WHERE n = 3")  # as if transaction 7 had only its first change
    findings, _ = load.findings(mounts, reachable, read_acks(acks), None)
    assert failed(findings) == ["the ledger has no gap, and its rows are as written"]
