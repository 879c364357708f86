"""The checker must find every way in which a recovered ledger can be wrong."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from siterig.scenarios.checks.ledger_check import LedgerCheck, check_ledger
from siterig.scenarios.workloads import ledger_schema
from siterig.scenarios.workloads.ack_log import Ack

# Transaction n begins at position 10 n and is done at 10 n + 5.
ACKS = [Ack(n, 10 * n, 10 * n + 5, n) for n in range(1, 31)]


def make(path: Path, newest: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in ledger_schema.SCHEMA:
            database.execute(statement)
        database.execute("BEGIN")
        for n in range(1, newest + 1):
            ledger_schema.apply(database, n)
        database.execute("COMMIT")


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(statement)


def check(folder: Path, cut: int | None, acks: list[Ack] = ACKS) -> LedgerCheck:
    return check_ledger(folder / "os.db", folder / "data.db", acks, cut)


def failures(result: LedgerCheck) -> dict[str, str]:
    return {finding.name: finding.evidence for finding in result.findings if not finding.ok}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Make the state at position 208: entry 20 is on the os disk, and no part of it is on the data disk yet."""
    make(tmp_path / "os.db", 20)
    make(tmp_path / "data.db", 19)
    return tmp_path


def test_a_sound_cut_passes_with_its_counts(folder: Path) -> None:
    result = check(folder, 203)
    assert result.ok, failures(result)
    assert (result.acknowledged, result.present, result.lost) == (30, 19, 11)
    evidence = {finding.name: finding.evidence for finding in result.findings}
    assert evidence["order across the disks"] == "newest transaction: os disk 20, data disk 19"
    assert evidence["gapless prefix, os disk"] == "transactions 1 to 20, none missing"
    assert evidence["SQLite integrity, os disk"] == "journal_mode=delete, integrity_check: ok"
    assert evidence["every transaction acknowledged before the point"] == (
        "19 of 30 acknowledged were due, all are on both disks"
    )
    assert evidence["nothing from after the point"] == (
        "10 acknowledged transactions began after position 203, none is there"
    )


def test_a_missing_acknowledged_transaction_is_found(folder: Path) -> None:
    result = check(folder, 205)
    assert failures(result) == {
        "every transaction acknowledged before the point": (
            "1 missing of 20, first 20, done at position 205, the point is 205"
        )
    }


def test_without_a_cut_every_promise_is_due(folder: Path) -> None:
    assert failures(check(folder, None)) == {
        "every acknowledged transaction": "11 missing of 30, first 20, done at position 205"
    }
    assert check(folder, None, ACKS[:19]).ok


def test_a_transaction_from_after_the_cut_is_found(folder: Path) -> None:
    assert failures(check(folder, 200)) == {
        "nothing from after the point": "transaction 20 began at position 200, the point is 200"
    }


@pytest.mark.parametrize("disk", ["os", "data"])
def test_a_gap_is_found(folder: Path, disk: str) -> None:
    change(folder / f"{disk}.db", "DELETE FROM ledger WHERE n = 7")
    result = failures(check(folder, 203))
    assert result[f"gapless prefix, {disk} disk"] == f"transaction 7 is missing of 1 to {20 if disk == 'os' else 19}"
    assert "every transaction acknowledged before the point" in result


@pytest.mark.parametrize(("os_newest", "data_newest"), [(19, 20), (20, 18)])
def test_disks_of_different_moments_are_found(tmp_path: Path, os_newest: int, data_newest: int) -> None:
    make(tmp_path / "os.db", os_newest)
    make(tmp_path / "data.db", data_newest)
    assert failures(check(tmp_path, 180, ACKS[:17])) == {
        "order across the disks": f"newest transaction: os disk {os_newest}, data disk {data_newest}"
    }


def test_a_wrong_payload_is_found(folder: Path) -> None:
    change(folder / "data.db", "UPDATE ledger SET payload = x'00' WHERE n = 4")
    assert failures(check(folder, 203)) == {
        "content, data disk": "ledger: row n=4 is wrong, found (4, 1 bytes 00..., 9), expected (4, 248 bytes "
        f"{ledger_schema.payload(4)[:4].hex()}..., 9)"
    }


def test_an_update_that_did_not_arrive_is_found(folder: Path) -> None:
    change(folder / "os.db", "UPDATE ledger SET revised_by = 6 WHERE n = 3")
    assert "content, os disk" in failures(check(folder, 203))


def test_a_deleted_row_that_is_still_there_is_found(folder: Path) -> None:
    change(folder / "os.db", "INSERT INTO churn VALUES (90, 90, x'00')")
    assert failures(check(folder, 203)) == {"content, os disk": "churn: 20 rows, expected 19"}


def test_a_broken_database_fails_its_check_and_is_no_crash(folder: Path) -> None:
    data = bytearray((folder / "os.db").read_bytes())
    data[4096:8192] = b"\xa5" * 4096
    (folder / "os.db").write_bytes(data)
    assert not check(folder, 203).ok


def test_a_database_that_is_not_there_is_not_made(folder: Path) -> None:
    (folder / "data.db").unlink()
    result = failures(check(folder, 203))
    assert result["SQLite integrity, data disk"] == f"{folder / 'data.db'} is not there"
    assert not (folder / "data.db").exists()
