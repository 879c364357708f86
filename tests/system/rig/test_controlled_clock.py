"""A rig whose clock is moved: retention, points and RPO follow it, and a wall clock that is set decides nothing."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.vault.model.resources import RecoveryPoint
from siterig.blockfs.clocks.clock_terms import SECOND_NS
from siterig.blockfs.clocks.rig_clock_control import RigClockControl
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.testing.testbed import Testbed
from tests.support.rigs.protected_vm import Source

pytestmark = pytest.mark.system

HOUR_S = 3600
HOUR_NS = HOUR_S * SECOND_NS
ROUND_NS = 301 * SECOND_NS
"""Retention makes a round every five minutes."""


async def points_of(rig: Testbed) -> list[RecoveryPoint]:
    """Return the points, oldest first."""
    return sorted(await rig.vault.points(vm="web01"), key=lambda point: point.position)


async def until(what: str, check: Callable[[], Awaitable[bool]]) -> None:
    with trio.move_on_after(60):
        while not await check():  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.1)
        return
    pytest.fail(f"not within 60 s: {what}")


async def new_point(rig: Testbed) -> RecoveryPoint:
    """Return a point that is newer than all that exist now."""
    known = (await points_of(rig))[-1].position

    async def is_there() -> bool:
        return (await points_of(rig))[-1].position > known

    await until("a new point", is_there)
    return (await points_of(rig))[-1]


async def codes(rig: Testbed) -> set[str]:
    return {event.eventCode for event in await rig.vault.events()}


def last_line_ns(log: Path) -> int:
    """Return the time of the last line of a log."""
    stamp = re.findall(r"^(\d{4}-\S+Z) ", log.read_text(), re.M)[-1]
    return int(datetime.fromisoformat(stamp).timestamp() * SECOND_NS)


async def test_a_rig_lives_by_its_controlled_clock(tmp_path: Path) -> None:
    async with Testbed.up(tmp_path / "rig") as rig:
        source = Source(rig, tmp_path)
        await source.protect()
        with RigClockControl(rig.layout.clock) as clock:
            await time_passes(rig, clock)
            await the_wall_clock_is_set_back(rig, clock)
            await one_role_has_another_time(rig, clock)


async def time_passes(rig: Testbed, clock: RigClockControl) -> None:
    await new_point(rig)
    before = await points_of(rig)
    await rig.supervisor.kill_role(name="agent", hold=True)
    await clock.advance(25 * HOUR_NS)
    (item,) = await rig.vault.items()
    assert item.lastRpoInSeconds is not None
    assert 25 * HOUR_S <= item.lastRpoInSeconds < 25 * HOUR_S + 600
    await rig.supervisor.start_role(name="agent")
    after = await new_point(rig)
    assert after.time_ns - before[-1].time_ns >= 25 * HOUR_NS
    assert before[0] in await points_of(rig)  # retention has not made its round
    await new_point(rig)
    await clock.advance(ROUND_NS)

    async def are_deleted() -> bool:
        return not set(before) & set(await points_of(rig))

    await until("points of more than 24 hours are deleted", are_deleted)
    await new_point(rig)
    points = await points_of(rig)
    assert [point.time_ns for point in points] == sorted(point.time_ns for point in points)
    assert (await rig.vault.items())[0].lastRpoInSeconds < 600  # type: ignore[operator]


async def the_wall_clock_is_set_back(rig: Testbed, clock: RigClockControl) -> None:
    before = await points_of(rig)
    await clock.jump(-HOUR_NS)
    back = await new_point(rig)
    assert back.time_ns < before[-1].time_ns
    await clock.advance(ROUND_NS)
    await new_point(rig)

    async def is_noticed() -> bool:
        return "ClockJumped" in await codes(rig)

    await until("the event ClockJumped", is_noticed)
    assert set(before) <= set(await points_of(rig))
    (item,) = await rig.vault.items()
    assert item.lastRpoInSeconds is not None
    assert item.lastRpoInSeconds < 600

    async def is_healthy() -> bool:
        errors = (await rig.vault.items())[0].healthErrors
        return {error.errorCode for error in errors} <= {"ReplicationCyclesMissed"}  # in the hours that passed at once

    await until("no health error but that of missed cycles", is_healthy)


async def one_role_has_another_time(rig: Testbed, clock: RigClockControl) -> None:
    for role in ("agent", "site"):
        state = await clock.set_skew([role], 3 * HOUR_NS)
        shifted = last_line_ns(rig.layout.log(role)) - SYSTEM_CLOCK.wall_ns() - state.wall_ahead_ns
        assert abs(shifted - 3 * HOUR_NS) < 60 * SECOND_NS
        assert last_line_ns(rig.layout.log("vault")) - SYSTEM_CLOCK.wall_ns() - state.wall_ahead_ns < 60 * SECOND_NS
    await new_point(rig)  # its cut may have been made before
    ahead = await new_point(rig)
    assert abs(ahead.time_ns - SYSTEM_CLOCK.wall_ns() - state.wall_ahead_ns - 3 * HOUR_NS) < 60 * SECOND_NS
    assert (await rig.vault.items())[0].lastRpoInSeconds < 600  # type: ignore[operator]
