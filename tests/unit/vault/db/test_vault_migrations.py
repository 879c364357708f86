"""A vault's database of an older schema version comes out complete, with the schema of a new one, or stays as it was."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from setuptools import find_packages
from sqlalchemy import Connection, MetaData, Table, create_engine, select

from siterig.azure_emu.vault.db import migrations
from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.schema import FORMAT_VERSION, Base
from siterig.azure_emu.vault.model.resources import RecoveryPoint, Vm
from siterig.blockfs.core.errors import RigError

REPLACED = {("item", "protected_since_ns")}
VERSION_4 = (Path(__file__).parent / "vault_version_4.sql").read_text()


def of_version_4(folder: Path) -> Path:
    path = folder / "vault.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(VERSION_4)
    return path


def opened(path: Path) -> None:
    VaultDatabase(f"sqlite:///{path}").close()


def query(path: Path, statement: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(statement).fetchall()


def tables(path: Path) -> list[str]:
    return [name for (name,) in query(path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]


def shape(path: Path) -> dict[str, list[object]]:
    """Columns (type, NOT NULL, default, key), indexes and references of every table; not the order of columns."""
    found: dict[str, list[object]] = {}
    for table in tables(path):
        columns = sorted(row[1:] for row in query(path, f"PRAGMA table_info({table})"))
        indexes = [
            (unique, name if origin == "c" else "", [row[2] for row in query(path, f"PRAGMA index_info({name})")])
            for _, name, unique, origin, _ in query(path, f"PRAGMA index_list({table})")
        ]
        references = sorted(row[2:] for row in query(path, f"PRAGMA foreign_key_list({table})"))
        found[table] = [columns, sorted(indexes), references]
    return found


def rows(path: Path, table: str) -> list[dict[str, object]]:
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        found = connection.execute(select(Table(table, MetaData(), autoload_with=connection))).mappings()
        result = sorted((dict(row) for row in found), key=repr)
    engine.dispose()
    return result


def test_a_migrated_database_has_the_schema_of_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    new, migrated = tmp_path / "new" / "vault.db", of_version_4(tmp_path)
    opened(new)
    opened(migrated)
    assert shape(migrated) == shape(new)
    engine = create_engine(f"sqlite:///{migrated}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_a_migrated_database_and_a_new_one_are_at_the_newest_revision(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    new, migrated = tmp_path / "new" / "vault.db", of_version_4(tmp_path)
    config = Config()
    config.set_main_option("script_location", "siterig.azure_emu.vault.db:migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == str(FORMAT_VERSION)
    for path in (new, migrated):
        opened(path)
        assert query(path, "SELECT version FROM format") == [(FORMAT_VERSION,)]
        assert query(path, "SELECT version_num FROM alembic_version") == [(str(FORMAT_VERSION),)]


@pytest.mark.slow
def test_a_migration_keeps_every_row_and_value(tmp_path: Path) -> None:
    path = of_version_4(tmp_path)
    before = {table: rows(path, table) for table in tables(path) if table != "format"}
    assert all(before.values())
    opened(path)
    for table, old in before.items():
        new = rows(path, table)
        kept = [key for key in old[0] if (table, key) not in REPLACED]
        if table != "cycle":
            assert [{key: row[key] for key in kept} for row in new] == [{key: row[key] for key in kept} for row in old], (
                table
            )


def test_migrated_points_have_ages_with_gaps_of_an_hour_at_most(tmp_path: Path) -> None:
    path = of_version_4(tmp_path)
    opened(path)
    hour_s = 3600
    assert query(path, "SELECT name, elapsed_ns / 1000000000 FROM point ORDER BY position") == [
        ("two days before", -60 - hour_s),
        ("clock ahead", -60),
        ("first", -60),
        ("cycle", -30),
        ("cycle", 0),
    ]


def test_health_of_a_migrated_database_begins_at_the_migration(tmp_path: Path) -> None:
    path = of_version_4(tmp_path)
    opened(path)
    assert query(path, "SELECT vm, sent_elapsed_ns, protected_since_elapsed_ns FROM item ORDER BY vm") == [
        ("db02", None, None),
        ("web01", 0, 0),
    ]
    assert rows(path, "cycle") == []


def test_the_results_of_earlier_jobs_can_be_read(tmp_path: Path) -> None:
    path = of_version_4(tmp_path)
    vm = {"name": "web01-test", "fabric": "azure", "state": "TestFailover", "disks": []}
    point = {
        "id": "p1",
        "name": "first",
        "recoveryPointType": "CrashConsistent",
        "recoveryPointTime": "2027-01-15T08:00:00Z",
        "position": 7,
        "time_ns": 1800000000000000000,
        "downgradedBecause": None,
    }
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE job SET result_vm = ?, result_point = ?", (json.dumps(vm), json.dumps(point)))
    opened(path)
    ((found_vm, found_point),) = query(path, "SELECT result_vm, result_point FROM job")
    assert Vm.model_validate_json(found_vm) == Vm(name="web01-test", side="azure", state="TestFailover", disks=[])
    read = RecoveryPoint.model_validate_json(found_point)
    assert (read.id, read.type, read.time, read.position) == ("p1", "CrashConsistent", "2027-01-15T08:00:00Z", 7)


@pytest.mark.slow
def test_a_copy_of_the_old_database_is_kept(tmp_path: Path) -> None:
    path = of_version_4(tmp_path)
    before = {table: rows(path, table) for table in tables(path)}
    opened(path)
    copy = tmp_path / "vault.db.version-4"
    assert {table: rows(copy, table) for table in tables(copy)} == before
    assert copy.stat().st_mode & 0o777 == 0o600
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["vault.db", "vault.db.version-4"]


def test_a_database_is_migrated_once(tmp_path: Path) -> None:
    path = of_version_4(tmp_path)
    opened(path)
    copy = tmp_path / "vault.db.version-4"
    made = copy.stat()
    opened(path)
    assert copy.stat() == made


@pytest.mark.slow
def test_a_migration_that_fails_leaves_the_old_database_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = of_version_4(tmp_path)
    before = {table: rows(path, table) for table in tables(path)}
    real = migrations.upgrade

    def fails_at_its_end(*args: Any) -> None:
        real(*args)
        raise sqlite3.OperationalError("no more")

    monkeypatch.setattr(migrations, "upgrade", fails_at_its_end)
    with pytest.raises(RigError, match="cannot be opened: no more") as caught:
        opened(path)
    assert caught.value.code == "StateUnreadable"
    assert {table: rows(path, table) for table in tables(path)} == before
    monkeypatch.undo()
    opened(path)
    assert query(path, "SELECT version FROM format") == [(FORMAT_VERSION,)]


def test_a_copy_that_cannot_be_written_for_want_of_room_is_disk_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = of_version_4(tmp_path)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(RigError) as caught:
        patched.setattr("siterig.azure_emu.vault.db.database.os.fsync", full)
        opened(path)
    assert (caught.value.code, caught.value.recoverable) == ("DiskFull", True)
    assert query(path, "SELECT version FROM format") == [(4,)]


def test_the_files_of_a_killed_copy_are_replaced(tmp_path: Path) -> None:
    path = of_version_4(tmp_path)
    (tmp_path / "vault.db.version-4.new").write_bytes(b"half")
    opened(path)
    assert query(tmp_path / "vault.db.version-4", "SELECT version FROM format") == [(4,)]


@pytest.mark.parametrize("version", [3, FORMAT_VERSION + 1])
def test_a_version_that_cannot_be_migrated_is_refused_and_untouched(tmp_path: Path, version: int) -> None:
    path = of_version_4(tmp_path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE format SET version = ?", (version,))
    before = path.read_bytes()
    with pytest.raises(RigError) as caught:
        opened(path)
    assert (caught.value.code, caught.value.message) == (
        "StateVersion",
        f"the vault's database sqlite:///{path} has format version {version}; this program reads versions 4 to "
        f"{FORMAT_VERSION}: use the siterig that created it",
    )
    assert path.read_bytes() == before


def test_rows_that_refer_to_others_survive_when_a_table_is_recreated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alembic's batch mode recreates a table: with foreign keys on, dropping ``item`` would delete its disks and points."""
    path = of_version_4(tmp_path)
    real = migrations.upgrade

    def recreates_item(connection: Connection, version: int) -> None:
        real(connection, version)
        with Operations(MigrationContext.configure(connection)).batch_alter_table("item", recreate="always"):
            pass

    monkeypatch.setattr(migrations, "upgrade", recreates_item)
    opened(path)
    assert [len(rows(path, table)) for table in ("item", "disk", "point", "mount", "tag_seen")] == [2, 1, 5, 1, 1]


def test_foreign_keys_hold_again_after_a_migration(tmp_path: Path) -> None:
    store = VaultDatabase(f"sqlite:///{of_version_4(tmp_path)}")
    try:
        with store.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar_one() == 1
    finally:
        store.close()


def test_every_revision_is_packaged() -> None:
    packages = set(find_packages(str(Path(__file__).parents[4]), include=["siterig", "siterig.*"]))  # as pyproject.toml does
    assert {"siterig.azure_emu.vault.db.migrations", "siterig.azure_emu.vault.db.migrations.versions"} <= packages
