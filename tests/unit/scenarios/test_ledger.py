"""The ledger's transactions and its acknowledgement file."""

from __future__ import annotations

import sqlite3
import struct
import threading
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.scenarios.checks.ledger_check import check_ledger
from siterig.scenarios.workloads import ledger_schema
from siterig.scenarios.workloads.ack_log import RECORD_BYTES, Ack, AckWriter, read_acks
from siterig.scenarios.workloads.ledger import Ledger
from siterig.scenarios.workloads.worker import run


def write_acks(path: Path, count: int) -> list[Ack]:
    acks = [Ack(n, n * 10, n * 10 + 5, n) for n in range(1, count + 1)]
    with AckWriter(path) as writer:
        for ack in acks:
            writer.append(ack)
    return acks


def test_acks_are_read_as_written(tmp_path: Path) -> None:
    acks = write_acks(tmp_path / "acks", 3)
    assert read_acks(tmp_path / "acks") == acks
    assert (tmp_path / "acks").stat().st_size == 3 * RECORD_BYTES


@pytest.mark.parametrize("kept", range(RECORD_BYTES))
def test_a_torn_last_ack_is_dropped_wherever_it_is_torn(tmp_path: Path, kept: int) -> None:
    acks = write_acks(tmp_path / "acks", 2)
    data = (tmp_path / "acks").read_bytes()
    (tmp_path / "acks").write_bytes(data[: RECORD_BYTES + kept])
    assert read_acks(tmp_path / "acks") == acks[:1]


def test_a_writer_cuts_the_torn_tail_that_an_earlier_one_left(tmp_path: Path) -> None:
    acks = write_acks(tmp_path / "acks", 2)
    with (tmp_path / "acks").open("ab") as file:
        file.write(b"torn")
    with AckWriter(tmp_path / "acks") as writer:
        writer.append(Ack(3, 1, 2, 3))
    assert read_acks(tmp_path / "acks") == [*acks, Ack(3, 1, 2, 3)]


def test_a_damaged_ack_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_acks(tmp_path / "acks", 3)
    data = bytearray((tmp_path / "acks").read_bytes())
    data[RECORD_BYTES] ^= 1
    (tmp_path / "acks").write_bytes(data)
    with pytest.raises(RigError) as caught:
        read_acks(tmp_path / "acks")
    assert caught.value.code == "AckFileCorrupt"
    assert caught.value.message == f"{tmp_path / 'acks'}: record 1 at offset {RECORD_BYTES} has a wrong checksum"


def test_no_ack_file_is_no_acks(tmp_path: Path) -> None:
    assert read_acks(tmp_path / "acks") == []


def ledger(folder: Path, acks: str = "acks") -> Ledger:
    position = folder / "position"
    if not position.exists():
        position.write_bytes(struct.pack("<Q", 7))
    return Ledger(folder / "os.db", folder / "data.db", AckWriter(folder / acks), position)


def test_a_ledger_continues_where_the_databases_end(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    for _ in range(3):
        first.step()
    first.close()
    second = ledger(tmp_path, "acks-of-the-recovered-vm")
    second.step()
    second.close()
    assert [ack.n for ack in read_acks(tmp_path / "acks")] == [1, 2, 3]
    (ack,) = read_acks(tmp_path / "acks-of-the-recovered-vm")
    assert (ack.n, ack.begin_position, ack.end_position) == (4, 7, 7)
    assert check_ledger(tmp_path / "os.db", tmp_path / "data.db", [ack], None).ok


def test_half_a_transaction_is_finished_and_not_acknowledged(tmp_path: Path) -> None:
    first = ledger(tmp_path)
    first.step()
    first.close()
    (tmp_path / "data.db").unlink()
    second = ledger(tmp_path)
    second.close()
    assert second.newest == 1
    assert len(read_acks(tmp_path / "acks")) == 1
    result = check_ledger(tmp_path / "os.db", tmp_path / "data.db", read_acks(tmp_path / "acks"), None)
    assert result.ok, result.findings


def test_one_database_has_a_rollback_journal_and_the_other_a_wal(tmp_path: Path) -> None:
    running = ledger(tmp_path)
    running.step()
    running.close()
    modes = []
    for name in ("os.db", "data.db"):
        database = sqlite3.connect(tmp_path / name)
        modes += database.execute("PRAGMA journal_mode").fetchone()
        database.close()
    assert modes == ["delete", "wal"]


def test_a_failing_disk_ends_the_run_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_database: sqlite3.Connection, _n: int) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    running = ledger(tmp_path)
    running.step()
    monkeypatch.setattr(ledger_schema, "apply", fail)
    line = run(running, threading.Event(), 0)
    running.close()
    assert line == "failed 1 disk I/O error"


def test_a_stop_ends_the_run_after_a_whole_transaction(tmp_path: Path) -> None:
    running = ledger(tmp_path)
    stop = threading.Event()
    stop.set()
    assert run(running, stop, 100) == "stopped 0"
    running.close()
