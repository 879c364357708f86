"""A resync that is due begins by itself in its hours; after a failure only an administrator begins one."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.azure_emu.vault.model.resync_window import OFFICIAL_WINDOW, ResyncWindow
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running

HOUR_NS = 3600 * 10**9
WINDOW = ResyncWindow.parse(OFFICIAL_WINDOW)


async def round_of(vault: Vault) -> None:
    await vault.resyncs.round()
    await idle(vault)


def until_hour(world: World, hour: int) -> None:
    """Let time pass until the next full hour of this number, by the time zone of the host."""
    while True:
        world.now_ns += HOUR_NS - world.now_ns % HOUR_NS
        if datetime.fromtimestamp(world.now_ns / 1e9).astimezone().hour == hour:
            return


async def resyncs(vault: Vault) -> list[str]:
    return [job.state for job in await vault.status.jobs() if job.scenarioName == "RepairVMReplication"]


async def due(vault: Vault) -> tuple[str | None, list[str]]:
    (item,) = await vault.status.items()
    of_time = ("ReplicationCyclesMissed", "LogUnsent")  # hours have passed without a cycle
    return item.resynchronizationRequired, [error.errorCode for error in item.healthErrors if error.errorCode not in of_time]


async def test_a_resync_that_is_due_begins_outside_office_hours(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path, resync_window=WINDOW) as vault:
        await protected(vault)
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        until_hour(world, 12)
        await round_of(vault)
        assert await resyncs(vault) == []
        until_hour(world, 19)
        await round_of(vault)
        assert await resyncs(vault) == ["Succeeded"]
        assert (await due(vault))[0] is None
        assert "AutomaticResyncBegun" in {event.eventCode for event in await vault.status.events()}
        await round_of(vault)
        assert await resyncs(vault) == ["Succeeded"]


async def test_a_resync_begins_as_soon_as_it_is_due(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path, resync_window=WINDOW) as vault, trio.open_nursery() as nursery:
        await protected(vault)
        until_hour(world, 19)
        nursery.start_soon(vault.resyncs.run)
        await trio.testing.wait_all_tasks_blocked()
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        with trio.fail_after(10):  # far below a round, which is real time here
            while not await resyncs(vault):
                await trio.testing.wait_all_tasks_blocked()
        await idle(vault)
        assert await resyncs(vault) == ["Succeeded"]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("window", "when"),
    [(WINDOW, "it begins by itself in 18:30-06:00"), (None, "no resync begins by itself")],
    ids=["hours", "never"],
)
async def test_a_resync_that_waits_for_its_hours_is_shown(tmp_path: Path, window: ResyncWindow | None, when: str) -> None:
    def shown(vault: Vault) -> list[tuple[str, str | None, str]]:
        return [(wait.code, wait.vm, wait.reason) for wait in vault.context.waits.list()]

    world = World()
    async with running(world, tmp_path, resync_window=window) as vault:
        await protected(vault)
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        until_hour(world, 12)
        await round_of(vault)
        text = f"the resync of VM 'web01' is due (LogOverflow): {when}; siterig resync web01 begins it now"
        assert shown(vault) == [("ResyncDue", "web01", text)]
        await ended(vault, await vault.protection.resync(vm="web01"))
        await round_of(vault)
        assert shown(vault) == []


def test_the_minutes_until_the_hours_are_counted_over_midnight() -> None:
    assert WINDOW is not None
    assert [WINDOW.minutes_until(minute) for minute in (18 * 60 + 29, 18 * 60 + 30, 18 * 60 + 31, 0)] == [
        1,
        24 * 60,
        24 * 60 - 1,
        18 * 60 + 30,
    ]


async def test_after_a_failure_the_error_stays_until_one_is_started_by_hand(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path, resync_window=WINDOW) as vault:
        await protected(vault)
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        until_hour(world, 1)
        world.failing["site.check_vm"] = RigError(Code.DiskUnhealthy, "the disk is damaged")
        await round_of(vault)
        world.stop_failing()
        for _ in range(3):
            await round_of(vault)
        assert await resyncs(vault) == ["Failed"]
        assert await due(vault) == ("LogOverflow", ["AutomaticResyncFailed", "ResynchronizationRequired"])
        (item,) = await vault.status.items()
        assert item.replicationHealth == "Critical"
        assert item.healthErrors[0].summaryMessage == (
            "the automatic resync of VM 'web01' failed: the disk is damaged (DiskUnhealthy)"
        )
        await ended(vault, await vault.protection.resync(vm="web01"))
        assert await due(vault) == (None, [])
        await vault.reports.resync_required(vm="web01", reason="LogFull")
        await round_of(vault)
        assert await resyncs(vault) == ["Succeeded", "Succeeded", "Failed"]


async def test_a_vm_with_an_open_job_is_left_alone(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path, resync_window=WINDOW) as vault:
        await protected(vault)
        await vault.reports.resync_required(vm="web01", reason="LogOverflow")
        until_hour(world, 1)
        world.held["recovery.process_latest"] = trio.Event()
        job = await vault.failovers.test_failover(vm="web01", point="Latest")
        await vault.resyncs.round()
        assert await resyncs(vault) == []
        world.held.pop("recovery.process_latest").set()
        await ended(vault, job)
        await round_of(vault)
        assert await resyncs(vault) == ["Succeeded"]


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("18:30-06:00", (1110, 1439, 0, 359), (360, 720, 1109)),
        ("08:00-09:30", (480, 569), (479, 570, 0)),
        ("00:00-24:00", (0, 720, 1439), ()),
    ],
)
def test_a_window_can_go_over_midnight(text: str, inside: tuple[int, ...], outside: tuple[int, ...]) -> None:
    window = ResyncWindow.parse(text)
    assert window is not None
    assert window.text == text
    assert all(window.contains(minute) for minute in inside)
    assert not any(window.contains(minute) for minute in outside)


def test_never_is_no_window_and_other_texts_are_refused() -> None:
    assert ResyncWindow.parse("never") is None
    for text in ("", "18:30", "6:00-7:00", "25:00-26:00", "24:00-06:00", "07:00-07:00", "00:00-24:30", "18:30-06:60"):
        with pytest.raises(RigError) as caught:
            ResyncWindow.parse(text)
        assert caught.value.code == "BadRequest"
        assert caught.value.message.startswith(f"--resync-window: {text!r}; allowed: never, or two different times")
