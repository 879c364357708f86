"""Answers that are kept: no statement while their tables do not change, and a fresh read after each change."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import delete, event, select, update
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db import known_answers
from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.schema import DataKeyRow, EventRow, MountRow, RigClockRow
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import protected, running


class Asked:
    """A database, and the statements that it executes."""

    def __init__(self, database: VaultDatabase) -> None:
        self.database = database
        self.statements: list[str] = []
        event.listen(database.engine, "before_cursor_execute", lambda *call: self.statements.append(call[2]))

    async def reads(self, key: str = "events") -> list[str]:
        """Ask for the descriptions of all events; return the statements that this took."""
        self.statements.clear()
        found = await self.database.known(key, descriptions)
        assert found == await self.database.transact(descriptions)
        return self.statements[:-1]


def descriptions(session: Session) -> list[str]:
    return list(session.scalars(select(EventRow.description).order_by(EventRow.id)))


def write(session: Session, text: str) -> None:
    session.add(EventRow(code="a", type="b", severity="OK", at_ns=0, affected_object="c", description=text))


@pytest.fixture
async def asked(tmp_path: Path) -> AsyncIterator[Asked]:
    database = VaultDatabase(f"sqlite:///{tmp_path}/vault.db")
    yield Asked(database)
    database.close()


async def test_an_answer_is_read_again_only_after_a_change_of_its_table(asked: Asked) -> None:
    assert len(await asked.reads()) == 1
    assert await asked.reads() == []
    await asked.database.transact(
        lambda session: session.add(RigClockRow(id=1, elapsed_ns=0, boot_id="", boottime_ns=0, wall_ns=0))
    )
    assert await asked.reads() == []
    for change in (
        lambda session: write(session, "one"),
        lambda session: session.execute(update(EventRow).values(description="two")),
        lambda session: session.execute(delete(EventRow)),
    ):
        await asked.database.transact(change)
        assert len(await asked.reads()) == 1
        assert await asked.reads() == []


async def test_a_transaction_that_fails_leaves_no_wrong_answer(asked: Asked) -> None:
    def half(session: Session) -> None:
        write(session, "undone")
        session.flush()
        raise RigError(Code.of("Stop"), "stop")

    await asked.reads()
    with pytest.raises(RigError):
        await asked.database.transact(half)
    await asked.reads()
    assert await asked.database.known("events", descriptions) == []


async def test_a_question_that_changes_rows_is_asked_each_time(asked: Asked) -> None:
    for count in (1, 2):
        await asked.database.known("wrong", lambda session: write(session, "again"))
        assert len(await asked.database.transact(descriptions)) == count


async def test_the_kept_answers_are_bounded(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "KEPT_MAX", 3)
    monkeypatch.setattr(known_answers, "ROWS_MAX", 2)
    for number in range(3):
        await asked.reads(str(number))
    assert await asked.reads("2") == []
    await asked.reads("3")
    assert len(await asked.reads("0")) == 1
    for _ in range(3):
        await asked.database.transact(lambda session: write(session, "x"))
    assert [len(await asked.reads()) for _ in range(2)] == [1, 1]


async def test_rows_that_the_database_deletes_with_others_drop_answers(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        database = vault.context.database
        await database.transact(lambda session: session.add(MountRow(vm="web01", name="x", position=1)))
        names = select(MountRow.name)
        assert await database.known("mounts", lambda session: list(session.scalars(names))) == ["x"]
        await database.transact(
            lambda session: session.connection().exec_driver_sql("DELETE FROM item WHERE vm = 'web01'") and None
        )
        assert await database.known("mounts", lambda session: list(session.scalars(names))) == []


async def test_a_row_by_its_key_is_found_once_in_a_transaction(asked: Asked) -> None:
    def twice(session: Session) -> bool:
        write(session, "one")
        return session.get(EventRow, 1) is session.get(EventRow, 1) is not None

    assert await asked.database.transact(twice)
    assert len([text for text in asked.statements if text.startswith("SELECT")]) <= 1
    assert await asked.database.transact(lambda session: session.get(DataKeyRow, "none")) is None
