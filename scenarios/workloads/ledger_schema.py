"""The changes that a transaction of the ledger makes; they depend only on its number.

So the content after any transaction can be computed, and a recovered database is compared with it row by row.
"""

from __future__ import annotations

import hashlib
import sqlite3

SCHEMA = (
    "CREATE TABLE IF NOT EXISTS ledger (n INTEGER PRIMARY KEY, payload BLOB NOT NULL, revised_by INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS churn (slot INTEGER PRIMARY KEY, written_by INTEGER NOT NULL, filler BLOB NOT NULL)",
)
TABLES = {"ledger": "n", "churn": "slot"}
_SLOTS = 97


def payload(n: int) -> bytes:
    """Return the payload of row ``n``: 100 to 1599 bytes."""
    return hashlib.shake_256(b"ledger %d" % n).digest(100 + n * 37 % 1500)


def filler(n: int) -> bytes:
    """Return the bytes that transaction ``n`` writes to its slot: up to 6 KB, so overflow pages come and go."""
    return hashlib.shake_256(b"churn %d" % n).digest(n * 613 % 6000)


def apply(database: sqlite3.Connection, n: int) -> None:
    """Apply transaction ``n`` between BEGIN and COMMIT of the caller: insert, update, replace, sometimes delete."""
    database.execute("INSERT INTO ledger (n, payload, revised_by) VALUES (?, ?, ?)", (n, payload(n), n))
    database.execute("UPDATE ledger SET revised_by = ? WHERE n = ?", (n, n // 2))
    database.execute("REPLACE INTO churn (slot, written_by, filler) VALUES (?, ?, ?)", (n % _SLOTS, n, filler(n)))
    if n % 5 == 0:
        database.execute("DELETE FROM churn WHERE slot = ?", (n * 7 % _SLOTS,))


def newest(database: sqlite3.Connection) -> int:
    """Return the highest number in the ledger, 0 if it is empty."""
    (n,) = database.execute("SELECT coalesce(max(n), 0) FROM ledger").fetchone()
    return int(n)
