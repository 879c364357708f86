"""The moments of the vault: what a committed transaction wrote, in its order, for each follower once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.schema import JobRow, TaskRow


@pytest.fixture
def database(tmp_path: Path) -> Iterator[VaultDatabase]:
    made = VaultDatabase(f"sqlite:///{tmp_path}/vault.db")
    yield made
    made.close()


def begin(session: Session) -> None:
    row = {"friendly_name": "Enable", "state": "InProgress", "start_ns": 1, "variables": {}}
    task = TaskRow(ordinal=0, name="InitialReplication", friendly_name="copy", state="NotStarted")
    session.add(JobRow(name="1", vm="web01", key="enable", scenario="EnableDr", tasks=[task], errors=[], **row))


def enter(session: Session, state: str) -> None:
    row = session.get(JobRow, 1)
    assert row is not None
    row.tasks[0].state = state


def fail(session: Session) -> None:
    events.record(session, vm="web01", code="Lost", kind="VmHealth", severity="OK", text="", now_ns=1)
    session.flush()
    raise ValueError("undone")


async def test_events_jobs_and_tasks_are_moments_when_committed(database: VaultDatabase) -> None:
    start = await database.moments.moments(after=None, epoch="", patience_s=0)
    await database.transact(begin)
    await database.transact(lambda session: enter(session, "InProgress"))
    with pytest.raises(ValueError, match="undone"):
        await database.transact(fail)
    await database.transact(lambda session: enter(session, "Succeeded"))
    found = await database.moments.moments(after=start.last, epoch=start.epoch, patience_s=0)
    assert [(moment.name, moment.vm) for moment in found.moments] == [
        ("EnableDrStarted", "web01"),
        ("InitialReplicationStarted", "web01"),
        ("InitialReplicationSucceeded", "web01"),
    ]
    assert (await database.moments.moments(after=found.last, epoch=found.epoch, patience_s=0)).moments == []


async def test_a_follower_waits_for_moments_and_begins_again_with_a_new_vault(database: VaultDatabase) -> None:
    start = await database.moments.moments(after=None, epoch="", patience_s=0)
    async with trio.open_nursery() as nursery:

        async def follow() -> None:
            with trio.fail_after(30):
                found = await database.moments.moments(after=start.last, epoch=start.epoch, patience_s=20)
            assert [moment.name for moment in found.moments] == ["EnableDrStarted"]

        nursery.start_soon(follow)
        await trio.testing.wait_all_tasks_blocked()
        await database.transact(begin)
    found = await database.moments.moments(after=9, epoch="that of a vault before", patience_s=0)
    assert [moment.name for moment in found.moments] == ["EnableDrStarted"]
