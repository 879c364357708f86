"""Migrations of the vault's database to the version of ``schema.py``, by Alembic.

``format.version`` is the schema version.  Programs from before these migrations read only it, and refuse a newer one.
When the vault starts, a database of version ``OLDEST_VERSION`` or later is migrated in one transaction, after a copy of it
was written to ``vault.db.version-N``.  A migration that fails or is killed leaves the database as it was.

Each file of ``versions`` makes one schema version; its revision is the version as text.  ``OLDEST_VERSION`` is Alembic's
"base".  A new database is made from the models and is then at the newest revision; test_vault_migrations compares the two.
To add a version: change schema.py, raise FORMAT_VERSION, add a file to ``versions``, and add a database of the previous
version to the test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

if TYPE_CHECKING:
    from alembic.config import Config

OLDEST_VERSION = 4
"""The oldest schema version that can be migrated."""
_VERSION_TABLE = """
CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
)
"""
"""The table in which Alembic keeps the revision of a database, as it creates the table itself."""


def _config(connection: Connection) -> Config:
    from alembic.config import Config  # noqa: PLC0415 (a vault whose database needs no migration starts without Alembic)

    config = Config()
    config.set_main_option("script_location", "siterig.azure_emu.vault.db:migrations")
    config.attributes["connection"] = connection
    return config


def stamp_newest(connection: Connection, version: int) -> None:
    """Record in a database that was just made from the models that it has this version, as ``alembic stamp head`` does."""
    connection.execute(text(_VERSION_TABLE))
    connection.execute(text("INSERT INTO alembic_version (version_num) VALUES (:version)"), {"version": str(version)})


def upgrade(connection: Connection, version: int) -> None:
    """Migrate to the newest schema, and record it as ``version``; runs in the caller's transaction.

    The caller has switched foreign keys off for the connection: SQLite changes a table by making a new one and dropping the
    old one, which would delete the rows that refer to it.
    """
    from alembic import command  # noqa: PLC0415 (see _config)

    command.upgrade(_config(connection), "head")
    connection.execute(text("UPDATE format SET version = :version"), {"version": version})
