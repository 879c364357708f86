"""The ledger keeps every acknowledged number, whenever the power fails."""

import sqlite3

import pytest
from ledger import Ledger

from siterig import testing

pytestmark = pytest.mark.siterig_crash

small_fs = testing.fs(size="8MiB", log=False)


def losses(fs, synchronous):
    """Fill a ledger, and return a text for each acknowledged number, or whole ledger, that a power cut loses."""
    acknowledged = {}
    with Ledger(fs / "ledger.db", synchronous) as ledger:
        created = fs.position
        for number in range(20):
            ledger.add(number)
            acknowledged[number] = fs.position
    fs.remount()  # so that everything is on the disk, also without syncs
    lost = []
    for position in fs.positions(15, after=created):
        due = {number for number, at in acknowledged.items() if at <= position}
        with fs.state(position) as folder:
            try:
                with Ledger(folder / "ledger.db") as ledger:
                    if not ledger.is_sound():
                        lost.append(f"position {position}: the ledger is damaged")
                    lost += [f"position {position}: number {number}" for number in due - set(ledger.numbers())]
            except sqlite3.DatabaseError as error:
                lost.append(f"position {position}: {error}")
    return lost


def test_every_acknowledged_number_survives_a_power_cut(siterig_fs):
    assert losses(siterig_fs, "EXTRA") == []


def test_numbers_are_lost_without_syncs(siterig_fs):
    """The test above can fail."""
    assert losses(siterig_fs, "OFF")


def test_a_full_disk_is_an_error_and_no_damage(small_fs):
    with Ledger(small_fs / "ledger.db") as ledger:
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            for number in range(1000):
                ledger.add(number, bytes(100_000))
        kept = ledger.numbers()
    small_fs.remount()
    with Ledger(small_fs / "ledger.db") as ledger:
        assert ledger.is_sound()
        assert ledger.numbers() == kept == list(range(len(kept)))
