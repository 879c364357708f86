"""The database: versions, durability settings, and that a failed transaction leaves nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.schema import Base, EventRow
from siterig.blockfs.core.errors import Code, RigError


async def test_a_file_that_is_no_database_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "vault.db"
    path.write_bytes(b"no database at all, but long enough to have a header" * 10)
    with pytest.raises(RigError) as caught:
        VaultDatabase(f"sqlite:///{path}")
    assert (caught.value.code, caught.value.message) == (
        "StateUnreadable",
        f"the vault's database sqlite:///{path} cannot be opened: file is not a database",
    )


async def test_a_missing_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(RigError, match=r"no/vault\.db cannot be opened: unable to open database file$"):
        VaultDatabase(f"sqlite:///{tmp_path}/no/vault.db")


async def test_commits_wait_for_the_disk_and_foreign_keys_hold(tmp_path: Path) -> None:
    store = VaultDatabase(f"sqlite:///{tmp_path}/vault.db")

    def settings(session: Session) -> tuple[object, ...]:
        return tuple(
            session.execute(text(f"PRAGMA {name}")).scalar_one() for name in ("journal_mode", "synchronous", "foreign_keys")
        )

    assert await store.transact(settings) == ("wal", 2, 1)
    store.close()


async def test_a_transaction_that_raises_leaves_nothing(tmp_path: Path) -> None:
    store = VaultDatabase(f"sqlite:///{tmp_path}/vault.db")

    def half(session: Session) -> None:
        session.add(EventRow(code="a", type="b", severity="OK", at_ns=0, affected_object="c", description="d"))
        session.flush()
        raise RigError(Code.of("Stop"), "stop")

    with pytest.raises(RigError):
        await store.transact(half)
    assert await store.transact(lambda session: session.scalars(select(EventRow)).all()) == []
    store.close()


def test_every_column_of_the_schema_has_a_comment() -> None:
    source = (Path(__file__).parents[4] / "azure_emu/vault/db/schema.py").read_text()
    columns = re.findall(r"^    (\w+): Mapped\[.*mapped_column\((.*)\n(?=(.*))", source, re.MULTILINE)
    assert len(columns) == sum(len(table.columns) for table in Base.metadata.tables.values())
    bare = [name for name, rest, after in columns if "  # " not in rest and not after.strip().startswith(f"# {name}: ")]
    assert bare == []
