"""A ledger of numbers in SQLite.  When :meth:`Ledger.add` has returned, the number must survive a power cut."""

import sqlite3


class Ledger:
    """The ledger in the file ``path``, which is created if it does not exist."""

    def __init__(self, path, synchronous="EXTRA"):
        """Open the ledger; ``synchronous`` is the setting of SQLite."""
        self._database = sqlite3.connect(path, isolation_level=None)
        try:
            self._database.execute(f"PRAGMA synchronous={synchronous}")
            self._database.execute("CREATE TABLE IF NOT EXISTS ledger (number INTEGER PRIMARY KEY, note BLOB)")
        except sqlite3.Error:  # the file is damaged, for example
            self._database.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._database.close()

    def add(self, number, note=b""):
        """Add a number; it is durable when this returns."""
        self._database.execute("INSERT INTO ledger VALUES (?, ?)", (number, note))

    def numbers(self):
        """Return all numbers, in their order."""
        return [number for (number,) in self._database.execute("SELECT number FROM ledger ORDER BY number")]

    def is_sound(self):
        """Return True if SQLite finds no damage."""
        return self._database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
