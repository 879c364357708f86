"""Retention deletes expired recovery points: the rules alone, and the vault that follows them."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import trio
import trio.lowlevel
from sqlalchemy import func, insert, select
from trio.testing import MockClock

from siterig.azure_emu.vault.db.schema import PointRow, TagSeenRow
from siterig.azure_emu.vault.points.retention import HOUR_NS, PointFacts, Policy, check_hours, expired, remark
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.points import cut
from tests.support.rigs.vault_fakes import START_NS, ended, protected, running

MINUTE_NS = HOUR_NS // 60
DAY = Policy(24)
NOON_NS = START_NS // HOUR_NS * HOUR_NS  # the beginning of an hour


def point(number: int, elapsed_ns: int, *, app: bool = False) -> PointFacts:
    return PointFacts(id=f"p{number}", position=number, elapsed_ns=elapsed_ns, app_consistent=app)


def kept(points: list[PointFacts], policy: Policy = DAY, in_use: frozenset[str] = frozenset()) -> list[str]:
    gone = expired(points, policy, in_use)
    return [p.id for p in points if p.id not in gone]


def test_every_point_of_two_hours_is_kept_then_the_newest_of_each_hour() -> None:
    points = [point(n, NOON_NS + n * 5 * MINUTE_NS) for n in range(12 * 4)]  # four hours, one each five minutes
    assert kept(points) == ["p11", "p23", *(f"p{n}" for n in range(24, 48))]
    later = point(48, points[-1].elapsed_ns + 10 * MINUTE_NS)  # p24 and p25 are over two hours old, and of one hour
    assert kept([*points, later]) == ["p11", "p23", *(f"p{n}" for n in range(25, 49))]


def test_of_an_hour_the_newest_application_consistent_point_is_kept() -> None:
    points = [point(n, NOON_NS + n * 10 * MINUTE_NS, app=n in (1, 3)) for n in range(6)]
    newest = point(9, NOON_NS + 9 * HOUR_NS)
    assert kept([*points, newest]) == ["p3", "p9"]


def test_only_the_newest_points_of_each_kind_outlive_the_retention() -> None:
    points = [point(1, NOON_NS, app=True), point(2, NOON_NS + HOUR_NS, app=True), point(3, NOON_NS + 2 * HOUR_NS)]
    later = point(4, NOON_NS + 40 * HOUR_NS)
    assert kept([*points, later]) == ["p2", "p4"]
    assert kept([*points, later], in_use=frozenset({"p1"})) == ["p1", "p2", "p4"]


def test_nothing_goes_while_no_new_points_come() -> None:
    points = [point(n, NOON_NS + n * HOUR_NS) for n in range(20)]
    assert kept(points) == [p.id for p in points]


def test_pruning_again_and_again_ends_where_pruning_once_does() -> None:
    for _ in range(10):
        seed = random.randrange(1 << 32)
        rng = random.Random(seed)
        times = sorted(rng.randrange(40 * HOUR_NS) for _ in range(300))
        points = [point(n, NOON_NS + at, app=rng.random() < 0.05) for n, at in enumerate(times)]
        left: list[PointFacts] = []
        for p in points:
            left.append(p)
            gone = set(expired(left, DAY))
            left = [other for other in left if other.id not in gone]
        assert [p.id for p in left] == kept(points), f"seed {seed}"


@pytest.mark.parametrize("hours", [1, 24, 72, 360])
def test_of_twenty_days_the_retention_is_kept_hour_by_hour(hours: int) -> None:
    points = [
        point(n, NOON_NS + n * 30 * MINUTE_NS) for n in range(1001)
    ]  # two an hour; the newest 500 hours after the first
    of_hours = [f"p{n}" for n in range(2 * (500 - hours) + 1, 996, 2)]
    of_two_hours = [f"p{n}" for n in range(997, 1001)]
    at_two_hours = ["p996"] if hours > 1 else []
    assert kept(points, Policy(hours)) == [*of_hours, *at_two_hours, *of_two_hours]


async def test_a_retention_that_hyper_v_does_not_have_is_applied_and_reported(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name="os", size_bytes=1 << 30)])
        job = await ended(vault, await vault.protection.enable_protection(vm="web01", interval_s=30, history_hours=72))
        assert job.state == "Succeeded"
        (item,) = await vault.status.items()
        assert item.recoveryPointHistoryDuration == 72
        assert [
            (event.eventCode, event.description) for event in await vault.status.events() if event.severity == "Warning"
        ] == [
            (
                "RigOnlyPolicy",
                "VM 'web01': retention 72 h: a Hyper-V policy of the service has at most 24 h; VMware's have 72 h with "
                "standard disks, and 15 days when modernized",
            )
        ]
    assert [hours for hours in (1, 24, 25, 360, 361) if remark(hours) is not None] == [25, 360]


def test_hours_out_of_range_are_named_with_the_allowed_ones() -> None:
    for hours in (0, 361, -1):
        with pytest.raises(RigError) as caught:
            check_hours(hours)
        assert (caught.value.code, caught.value.message) == (
            "InvalidPolicy",
            f"recoveryPointHistoryDuration is {hours}; allowed: 1 to 360 hours (of a Hyper-V policy of the service 24 at "
            "most)",
        )


# --- the vault ----------------------------------------------------------------------------------------------------


async def rows(vault: Vault) -> tuple[int, int]:
    def look(session):  # type: ignore[no-untyped-def]
        return tuple(
            session.execute(select(func.count()).select_from(table)).scalar_one() for table in (PointRow, TagSeenRow)
        )

    return await vault.context.database.transact(look)


@pytest.mark.slow
async def test_three_days_of_points_shrink_to_a_day_and_the_recovery_side_knows(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        start_s = trio.current_time()
        app_ns = {}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vault.run_policies)
            for number, passes_s in enumerate([3600] * 69 + [900] * 12):  # a point an hour, then four
                mock_clock.jump(passes_s)
                world.now_ns = START_NS + int((trio.current_time() - start_s) * 1e9)
                made = await cut(world, "ApplicationConsistent" if number % 10 == 0 else "CrashConsistent")
                if made.kind == "ApplicationConsistent":
                    app_ns[made.tag_id] = made.time_ns
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert len(await vault.recovery_points.points(vm="web01")) < 45  # the rounds had been at work all the time
        await vault.retention.round()
        points = await vault.recovery_points.points(vm="web01")
        ages_h = [(world.now_ns - p.time_ns) / HOUR_NS for p in points]
        assert max(ages_h) <= 24
        assert len([age for age in ages_h if age < 2]) == 8
        assert len([age for age in ages_h if age >= 2]) in (22, 23)
        assert {p.id for p in points if p.type == "ApplicationConsistent"} == {
            tag_id for tag_id, at_ns in app_ns.items() if world.now_ns - at_ns <= 24 * HOUR_NS
        }
        assert set(world.retained.values()) == {points[-1].position}
        assert set(world.retained) == {disk.disk_id for disk in world.site["web01"].values()}
        assert await rows(vault) == (len(points), 2 * len(points))


@pytest.mark.slow
async def test_a_recovery_side_that_was_away_gets_its_retention_soon_after(
    tmp_path: Path,
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await cut(world)
        world.failing["recovery.retain"] = RigError(Code.RoleUnavailable, "the applier does not answer", recoverable=True)
        assert not await vault.retention.round()
        assert {wait.code for wait in vault.context.waits.list()} == {"RoleUnavailable"}
        world.stop_failing()
        assert await vault.retention.round()
        assert vault.context.waits.list() == []
        assert world.retained


@pytest.mark.slow
async def test_a_wait_for_a_vm_that_is_not_protected_any_more_ends(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await cut(world)
        world.failing["recovery.retain"] = RigError(Code.RoleUnavailable, "the applier does not answer", recoverable=True)
        await vault.retention.round()
        assert vault.context.waits.list()
        world.failing.clear()
        assert (await ended(vault, await vault.protection.disable_protection(vm="web01"))).state == "Succeeded"
        assert await vault.retention.round()
        assert vault.context.waits.list() == []


@pytest.mark.slow
async def test_pruned_points_do_not_come_back_when_an_applier_reports_again(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        cuts = []
        for _ in range(30):
            world.now_ns += HOUR_NS // 2
            cuts.append(await cut(world))
        await vault.retention.round()
        before = await vault.recovery_points.points(vm="web01")
        assert len(before) < 30
        for made in cuts:  # the applier was killed: it reports all tags of the journal again
            for disk in world.site["web01"].values():
                await world.report(disk.disk_id, made)
        assert await vault.recovery_points.points(vm="web01") == before


@pytest.mark.slow
async def test_points_in_use_are_kept_as_long_as_they_are(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        first, second, third = [point.id for point in (*await vault.recovery_points.points(vm="web01"),)] + [
            (await cut(world)).tag_id for _ in range(2)
        ]
        await ended(vault, await vault.failovers.test_failover(vm="web01", point=second))
        await vault.mounts.mount_point(vm="web01", point=third)
        for _ in range(60):
            world.now_ns += HOUR_NS
            await cut(world)
        await vault.retention.round()
        ids = [point.id for point in await vault.recovery_points.points(vm="web01")]
        assert first not in ids
        assert {second, third} <= set(ids)
        assert set(world.retained.values()) == {20}  # the position of the older one
        await ended(vault, await vault.failovers.cleanup_test_failover(vm="web01"))
        await vault.mounts.unmount_point(vm="web01", name=third)
        await vault.retention.round()
        assert not {second, third} & {point.id for point in await vault.recovery_points.points(vm="web01")}


@pytest.mark.slow
async def test_a_vm_between_points_keeps_no_point_and_retention_continues(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await cut(world)
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point="@15"))
        assert (job.state, set(world.opened_at.values())) == ("Succeeded", {15})
        for _ in range(60):
            world.now_ns += HOUR_NS
            await cut(world)
        await vault.retention.round()
        points = await vault.recovery_points.points(vm="web01")
        assert points[-1].position > 300  # neither of the two around the VM's position is left
        assert set(world.retained.values()) == {points[-1].position}  # the VM's pins hold the rest: the vault need not know
        assert [disk.name for disk in world.azure["web01-test"].values()] == ["data", "os"]


@pytest.mark.slow
async def test_a_recovery_side_that_is_away_gets_its_retention_in_a_later_round(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["recovery.retain"] = RigError(Code.RoleUnavailable, "role applier cannot be reached", recoverable=True)
        await vault.retention.round()
        assert world.retained == {}
        world.stop_failing()
        await vault.retention.round()
        assert set(world.retained.values()) == {10}


@pytest.mark.slow
async def test_ten_thousand_points_are_listed_and_limited(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault)

        def fill(session):  # type: ignore[no-untyped-def]
            session.execute(
                insert(PointRow),
                [
                    {
                        "tag_id": f"p{n}",
                        "vm": "web01",
                        "kind": "CrashConsistent",
                        "name": "x",
                        "position": 100 + n,
                        "time_ns": START_NS + n,
                        "elapsed_ns": n,
                        "available": True,
                    }
                    for n in range(10_000)
                ],
            )

        await vault.context.database.transact(fill)
        began_s = time.process_time()  # the time of a clock depends on the other processes of the machine
        assert len(await vault.recovery_points.points(vm="web01")) == 10_001
        assert time.process_time() - began_s < 3, "about 0.2 s"
        assert [point.id for point in await vault.recovery_points.points(vm="web01", limit=2)] == ["p9999", "p9998"]
