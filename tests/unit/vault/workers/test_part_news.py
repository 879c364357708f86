"""News of parts reach the applier, and the agent's wait for a watermark ends when one moves."""

from __future__ import annotations

from pathlib import Path

import trio
import trio.testing

from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, protected, running


async def test_reports_of_the_site_are_news_for_the_applier(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await trio.testing.wait_all_tasks_blocked()
        world.news.clear()
        disk_ids = sorted(disk.disk_id for disk in world.site["web01"].values())
        await vault.reports.parts_put(disk_ids=disk_ids[:1])
        await vault.reports.parts_put(disk_ids=[*disk_ids, "unknown"])
        await trio.testing.wait_all_tasks_blocked()
        assert world.news == [disk_ids], "two calls, or a disk that does not replicate"
        await vault.reports.point_sent(
            vm="web01", tag_id="t", kind="CrashConsistent", name="n", position=9000, time_ns=START_NS
        )
        await trio.testing.wait_all_tasks_blocked()
        assert world.news[1:] == [disk_ids]


async def test_news_that_fail_are_lost_and_later_ones_are_not(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await trio.testing.wait_all_tasks_blocked()
        world.news.clear()
        world.failing_once["recovery.parts_put"] = RigError(Code.RoleUnavailable, "away", recoverable=True)
        disk_ids = sorted(disk.disk_id for disk in world.site["web01"].values())[:2]
        for disk_id in disk_ids:
            await vault.reports.parts_put(disk_ids=[disk_id])
            await trio.testing.wait_all_tasks_blocked()
        assert world.news == [disk_ids[1:]]


async def test_a_wait_for_a_watermark_ends_when_one_moves(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        known = await vault.reports.watermarks(vm="web01")
        assert await vault.reports.watermarks(vm="web01", known=known) == known, "without patience it waited"
        assert await vault.reports.watermarks(vm="web01", known=[], patience_s=10) == known
        found = []

        async def wait() -> None:
            found.append(await vault.reports.watermarks(vm="web01", known=known, patience_s=10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert found == []
            await vault.reports.replication_recovered(vm="web01")  # a change of something else
            await trio.testing.wait_all_tasks_blocked()
            assert found == []
            moved = known[0].model_copy(update={"complete_position": known[0].complete_position + 1})
            await vault.reports.applied(watermark=moved, tags=[])
        assert found == [[moved, *known[1:]]]
