"""Mounted points that are lent to a process: gone when it is, whatever was killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from sqlalchemy import select

from siterig.azure_emu.vault.db.schema import MountRow
from siterig.azure_emu.vault.mounts import leases
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from tests.support.rigs.borrower import Borrower
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import protected, running

pytestmark = pytest.mark.slow

IN_USE = RigError(Code.RecoveryInUse, "recovery/web01/lent/os is in use (open handles: 1)")


@pytest.fixture
def borrower() -> Iterator[Borrower]:
    made = Borrower()
    yield made
    made.kill()


async def names(vault: Vault) -> list[str]:
    """Return the names in the database; the recovery host may have others."""
    return await vault.context.database.transact(lambda session: list(session.scalars(select(MountRow.name))))


async def until_gone(vault: Vault, *left: str) -> None:
    with trio.fail_after(30):
        while await names(vault) != list(left):  # noqa: ASYNC110 (another process's end begins it)
            await trio.sleep(0.005)


async def test_a_lease_ends_with_its_process_and_others_stay(tmp_path: Path, borrower: Borrower) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.mount_point(vm="web01", position=10, name="a-mine", process=HostProcess.own())
        await vault.mounts.mount_point(vm="web01", position=10, name="b-nobodys")
        for name in ("lent", "lent-too"):
            await vault.mounts.mount_point(vm="web01", position=10, name=name, process=borrower.process)
        borrower.kill()
        await until_gone(vault, "a-mine", "b-nobodys")
        assert [name for _, name in world.mounted_points] == ["a-mine", "b-nobodys"]


async def test_one_whose_process_ended_with_the_vault_down_is_released_at_its_start(
    tmp_path: Path, borrower: Borrower
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.mount_point(vm="web01", position=10, name="lent", process=borrower.process)
    async with running(world, tmp_path) as vault:
        await trio.testing.wait_all_tasks_blocked()
        assert await names(vault) == ["lent"], "its process is there"
    borrower.kill()
    async with running(world, tmp_path) as vault:
        await until_gone(vault)
        assert world.mounted_points == {}


async def test_one_in_use_is_tried_again_until_it_is_not(
    tmp_path: Path, borrower: Borrower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RETRY_S", 0.001)
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.mounts.mount_point(vm="web01", position=10, name="lent", process=borrower.process)
        world.failing["azure.close_mounted_point"] = IN_USE
        borrower.kill()
        with trio.fail_after(30):
            while world.calls.count("azure.close_mounted_point") < 3:  # noqa: ASYNC110 (see until_gone)
                await trio.sleep(0.005)
        assert await names(vault) == ["lent"]
        world.stop_failing()
        await until_gone(vault)


async def test_a_state_whose_process_ends_while_it_is_opened_is_released(tmp_path: Path, borrower: Borrower) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held["azure.open_mounted_point"] = trio.Event()
        async with trio.open_nursery() as nursery:

            async def mount() -> None:
                await vault.mounts.mount_point(vm="web01", position=10, name="lent", process=borrower.process)

            nursery.start_soon(mount)
            while "azure.open_mounted_point" not in world.calls:
                await trio.lowlevel.checkpoint()
            borrower.kill()
            world.held["azure.open_mounted_point"].set()
        await until_gone(vault)
        assert world.mounted_points == {}


async def test_a_process_is_not_taken_for_a_later_one_of_its_number(borrower: Borrower) -> None:
    with trio.fail_after(30):
        await borrower.process.model_copy(update={"started": borrower.process.started - 1}).ended()
        borrower.kill()
        await borrower.process.ended()
    assert HostProcess.own() == HostProcess(pid=os.getpid(), started=HostProcess.own().started)


async def test_the_end_of_a_process_is_not_reported_before_it_ends(borrower: Borrower) -> None:
    async with trio.open_nursery() as nursery:
        ended: list[int] = []

        async def wait() -> None:
            await borrower.process.ended()
            ended.append(1)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        os.kill(borrower.process.pid, signal.SIGSTOP)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        borrower.kill()
    assert ended == [1]
