"""A standstill becomes a health error and an event; its end is an event of severity OK."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from sqlalchemy import event
from trio.testing import MockClock

from siterig.azure_emu.contracts.reports import RoleState, RoleStatus, SkippedBlob
from siterig.azure_emu.vault.model import bounds
from siterig.azure_emu.vault.model.alert_api import AlertSettings
from siterig.azure_emu.vault.monitoring.repairs import ASK_AGAIN_S, SENT_S, UNREADABLE_S
from siterig.azure_emu.vault.monitoring.standstill import ASK_AFTER_S
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.changelog.tags import TagSeen
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Wait
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, ended, idle, protected, running

pytestmark = pytest.mark.slow

INTERVAL_S = 30


class Watched:
    """A vault that looks for standstills when the test calls it, after at least a second of elapsed time."""

    def __init__(self, world: World, vault: Vault) -> None:
        self.world, self.vault = world, vault
        self.position = 10_000

    async def passes(self, seconds: float, roles: list[RoleStatus] | None = None) -> None:
        """Let time pass while the supervisor reports."""
        self.world.clock.advance_ns(int(seconds * SECOND_NS))
        await self.vault.reports.report_roles(roles=roles or [])
        await self.vault.watch.round()

    async def codes(self) -> list[str]:
        (item,) = await self.vault.status.items()
        return [error.errorCode for error in item.healthErrors]

    async def health(self) -> str:
        (item,) = await self.vault.status.items()
        return item.replicationHealth

    async def events(self) -> list[tuple[str, str]]:
        """(code, severity) of events about health, oldest first."""
        return [(e.eventCode, e.severity) for e in reversed(await self.vault.status.events()) if e.eventType == "VmHealth"]

    async def cycle(self, *, apply: bool) -> None:
        self.position += 10
        time_ns = self.world.now_ns
        await self.vault.reports.point_sent(
            vm="web01", tag_id=str(self.position), kind="CrashConsistent", name="c", position=self.position, time_ns=time_ns
        )
        if apply:
            await self.apply()

    async def apply(self) -> None:
        for disk in self.world.site["web01"].values():
            mark = self.world.mark(disk.disk_id, disk.generation, self.position, self.position * 1000)
            self.world.managed[disk.disk_id] = mark.model_copy(update={"complete_time_ns": self.world.now_ns})
            await self.world.report(disk.disk_id)

    def wait(self, code: str, *, disk: str | None = None, vm: str | None = None) -> Wait:
        return Wait(vm=vm, disk=disk, code=code, reason="why", since_ns=self.world.now_ns)


@asynccontextmanager
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        found = Watched(world, vault)
        await found.cycle(apply=True)
        await found.passes(1)
        assert await found.codes() == []
        yield found


def role(name: str, state: RoleState, waits: list[Wait] | None = None, since_ns: int = START_NS) -> RoleStatus:
    return RoleStatus(name=name, state=state, pid=1, restarts=0, detail="why", since_ns=since_ns, waits=waits or [])


async def test_an_applier_that_stands_still_is_noticed_without_its_help(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await it.cycle(apply=False)
        await it.passes(bounds.STALLED_S - 1)
        assert await it.health() == "Normal"
        await it.passes(2)
        assert await it.codes() == ["ApplyStalled"]
        assert await it.health() == "Warning"
        await it.apply()
        await it.passes(1)
        assert await it.codes() == []
        assert await it.events() == [("ApplyStalled", "Warning"), ("ApplyStalled", "OK")]


def test_the_bounds_on_points_fit_the_interval() -> None:
    for interval_s in (30, 300, 900):
        assert bounds.point_s(interval_s) > 2 * interval_s


async def test_a_vm_of_a_long_interval_is_healthy_between_two_cycles(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, interval_s=900)
        it = Watched(world, vault)
        for _ in range(3):
            await it.cycle(apply=True)
            await it.passes(890)
            assert await it.codes() == []


async def test_an_applier_that_makes_progress_is_late_only_after_minutes(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await it.cycle(apply=False)
        (disk, *_) = it.world.site["web01"].values()
        for part in range(int(bounds.APPLIED_BEHIND_S // 10)):
            mark = it.world.managed[disk.disk_id]
            it.world.managed[disk.disk_id] = mark.model_copy(update={"log_seq": mark.log_seq + part + 1})
            await it.world.report(disk.disk_id)
            assert "ApplyStalled" not in await it.codes()
            await it.passes(10)
        assert "AppliedStateBehind" in await it.codes()
        await it.apply()
        await it.passes(1)
        assert "AppliedStateBehind" not in await it.codes()


async def test_lag_bytes_and_age_are_shown(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        disk_id = it.world.site["web01"]["os"].disk_id
        (item,) = await it.vault.status.items()
        assert item.applied_lag_s == 0.0
        it.world.clock.advance_ns(40 * SECOND_NS)
        await it.cycle(apply=False)
        await it.vault.reports.account_seen(disk_id=disk_id, waiting_bytes=7000, skipped=[], skipped_count=0)
        (item,) = await it.vault.status.items()
        assert (item.applied_lag_s, item.unapplied_bytes) == (41.0, 7000)
        assert item.newest_point_age_s is not None
        assert item.newest_point_age_s >= 40


async def test_no_new_point_for_three_intervals_and_a_minute_is_an_error(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await it.passes(bounds.point_s(INTERVAL_S) - 10)
        assert "NoRecentRecoveryPoint" not in await it.codes()
        await it.passes(20)
        assert "NoRecentRecoveryPoint" in await it.codes()


async def test_a_rig_that_was_down_is_not_late_with_its_next_point(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
    world.clock.advance_ns(3600 * SECOND_NS)
    async with running(world, tmp_path) as vault:
        it = Watched(world, vault)
        await it.passes(1)
        assert "NoRecentRecoveryPoint" not in await it.codes()
        await it.passes(bounds.point_s(INTERVAL_S))
        assert "NoRecentRecoveryPoint" in await it.codes()


@pytest.mark.parametrize(
    ("state", "after_s", "code", "health"),
    [
        ("hung", 0.0, "RoleHung", "Warning"),
        ("failed", 0.0, "RoleFailed", "Critical"),
        ("restarting", bounds.ROLE_AWAY_S, "RoleUnavailable", "Warning"),
        ("held", bounds.ROLE_AWAY_S, "RoleHeld", "Warning"),
        ("starting", bounds.ROLE_AWAY_S, "RoleUnavailable", "Warning"),
    ],
)
async def test_a_role_that_is_not_ready_is_an_error_of_the_vm_until_it_is(
    tmp_path: Path, state: RoleState, after_s: float, code: str, health: str
) -> None:
    async with watched(tmp_path) as it:
        away = [role("applier", state, since_ns=it.world.now_ns)]
        await it.passes(max(0.0, after_s - 5), away)
        assert (await it.codes() == []) == (after_s > 0)
        await it.passes(6, away)
        assert (await it.codes(), await it.health()) == ([code], health)
        await it.passes(6, away)
        await it.passes(1, [role("applier", "ready")])
        assert await it.codes() == []
        assert await it.events() == [(code, health), (code, "OK")]


async def test_a_failed_role_does_not_end_jobs_that_wait(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await it.passes(1, [role("azure", "failed")])
        assert await it.health() == "Critical"
        assert (await it.vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="p")).name == "p"


async def test_a_wait_that_lasts_too_long_is_an_error_and_one_that_is_short_is_none(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        disk_id = it.world.site["web01"]["os"].disk_id
        waits = [it.wait("CacheUnreachable", disk=disk_id), it.wait("Elsewhere", vm="db01"), it.wait("Other", disk="x")]
        roles = [role("applier", "ready", waits)]
        await it.passes(bounds.wait_s("CacheUnreachable") - 5, roles)
        assert await it.codes() == []
        await it.passes(10, roles)
        assert await it.codes() == ["CacheUnreachable"]
        (item,) = await it.vault.status.items()
        assert "disk 'os': why" in item.healthErrors[0].summaryMessage
        await it.passes(1, [role("applier", "ready")])
        assert await it.codes() == []


async def test_a_wait_of_the_whole_role_concerns_every_vm(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        roles = [role("agent", "ready", [it.wait("RoleUnavailable")])]
        await it.passes(bounds.WAIT_S + 1, roles)
        assert await it.codes() == ["RoleUnavailable"]


async def test_a_problem_that_the_agent_reported_is_not_reported_twice(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await it.vault.reports.replication_error(
            vm="web01", code="CacheUnreachable", message="m", recoverable=True, attempt=1, next_try_s=1
        )
        roles = [role("agent", "ready", [it.wait("CacheUnreachable", vm="web01")])]
        await it.passes(bounds.WAIT_S + 1, roles)
        assert await it.codes() == ["CacheUnreachable"]
        assert await it.events() == [("CacheUnreachable", "Warning")]


async def test_a_step_of_the_wall_clock_makes_no_wait_too_long(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        roles = [role("agent", "ready", [it.wait("RoleUnavailable")])]
        await it.passes(1, roles)
        it.world.clock.step_wall_ns(86_400 * SECOND_NS)
        await it.passes(1, roles)
        assert await it.codes() == []


async def test_the_site_of_a_vm_that_has_failed_over_may_be_away(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await ended(it.vault, await it.vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        away = [role("agent", "failed"), role("site", "failed")]
        await it.passes(bounds.ROLE_AWAY_S * 2, away)
        assert not {"RoleFailed", "RoleUnavailable"} & set(await it.codes())


async def test_a_supervisor_that_reports_nothing_any_more_is_an_error(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        it.world.clock.advance_ns(int((bounds.SUPERVISOR_SILENT_S - 1) * SECOND_NS))
        await it.vault.watch.round()
        assert await it.codes() == []
        it.world.clock.advance_ns(2 * SECOND_NS)
        await it.vault.watch.round()
        assert await it.codes() == ["SupervisorSilent"]


async def test_blobs_that_are_passed_over_are_a_warning_once_until_they_are_gone(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        disk_id = it.world.site["web01"]["os"].disk_id
        stray = SkippedBlob(name=f"{disk_id}/notes.txt", reason="not the name of a replication part")
        for _ in range(3):
            await it.vault.reports.account_seen(disk_id=disk_id, waiting_bytes=0, skipped=[stray], skipped_count=1)
            await it.passes(1)
        assert await it.codes() == ["BlobsSkipped"]
        (item,) = await it.vault.status.items()
        assert "notes.txt" in item.healthErrors[0].summaryMessage
        await it.vault.reports.account_seen(disk_id=disk_id, waiting_bytes=0, skipped=[], skipped_count=0)
        await it.passes(1)
        assert await it.events() == [("BlobsSkipped", "Warning"), ("BlobsSkipped", "OK")]


async def test_unusable_parts_are_requested_and_a_refusal_is_a_wait(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        disk_id = it.world.site["web01"]["os"].disk_id
        it.world.failing["site.send_again"] = RigError(Code.CacheForbidden, "403")
        await it.vault.reports.send_again(disk_id=disk_id, parts=["a", "b"], is_temporary=False)
        await trio.testing.wait_all_tasks_blocked()
        (wait,) = it.vault.context.waits.list()
        assert (wait.vm, wait.code) == ("web01", "CacheForbidden")
        it.world.stop_failing()
        await it.vault.reports.send_again(disk_id=disk_id, parts=["a"], is_temporary=False)
        await trio.testing.wait_all_tasks_blocked()
        assert it.world.asked_again == [("web01", ["a"])]
        assert it.vault.context.waits.list() == []


async def test_a_part_that_fails_again_makes_a_resync_due_and_is_named(tmp_path: Path, autojump_clock: MockClock) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        disk_id = world.site["web01"]["os"].disk_id

        async def asked(part: str) -> str | None:
            await vault.reports.send_again(disk_id=disk_id, parts=[part], is_temporary=False)
            await trio.testing.wait_all_tasks_blocked()
            return (await vault.status.items())[0].resynchronizationRequired

        world.failing["site.send_again"] = RigError(Code.RoleUnavailable, "the site is away", recoverable=True)
        for _ in range(3):
            assert await asked("a") is None, "the site has not sent it"
            await trio.sleep(SENT_S)
        world.stop_failing()
        assert await asked("a") is None
        await trio.sleep(SENT_S / 2)
        assert await asked("a") is None, "nobody has looked at it since"
        await trio.sleep(SENT_S)
        assert await asked("b") is None
        assert await asked("a") == "PartUnusable"
        event = next(event for event in await vault.status.events() if event.eventCode == "ResynchronizationRequired")
        assert event.description == "VM 'web01' needs a resync: PartUnusable: part a was sent again and is still unusable"
        await ended(vault, await vault.protection.resync(vm="web01"))
        assert (await vault.status.items())[0].resynchronizationRequired is None


async def test_a_part_that_the_account_does_not_give_is_unusable_after_a_while(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        disk_id = world.site["web01"]["os"].disk_id

        async def asked(*parts: str, is_temporary: bool) -> str | None:
            await vault.reports.send_again(disk_id=disk_id, parts=list(parts), is_temporary=is_temporary)
            await trio.testing.wait_all_tasks_blocked()
            return (await vault.status.items())[0].resynchronizationRequired

        assert await asked("a", "b", is_temporary=True) is None
        await trio.sleep(2 * SENT_S)
        assert await asked("b", is_temporary=False) is None, "it was sent beside another one, and not tried before"
        for _ in range(int(UNREADABLE_S / (2 * SENT_S)) - 1):
            assert await asked("a", is_temporary=True) is None
            await trio.sleep(2 * SENT_S)
        await trio.sleep(2 * SENT_S)
        assert await asked("a", is_temporary=True) == "PartUnusable"


async def test_the_site_checks_sent_parts_that_are_neither_listed_nor_applied(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await it.cycle(apply=False)
        await it.passes(ASK_AFTER_S + 1)
        await it.passes(1)
        await trio.testing.wait_all_tasks_blocked()
        assert it.world.asked_again == [("web01", [])]


async def test_a_request_to_the_site_that_failed_is_repeated_until_it_was_answered(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with watched(tmp_path) as it:
        it.world.failing["site.send_again"] = RigError(Code.CacheUnreachable, "the account is away", recoverable=True)
        await it.cycle(apply=False)
        await it.passes(ASK_AFTER_S + 1)
        await trio.sleep(2.5 * ASK_AGAIN_S)
        assert [wait.code for wait in it.vault.context.waits.list()] == ["CacheUnreachable"]
        assert it.world.asked_again == []
        it.world.stop_failing()
        await trio.sleep(ASK_AGAIN_S)
        assert (it.world.asked_again, it.vault.context.waits.list()) == ([("web01", [])], [])


async def test_a_restarted_vault_continues_with_the_errors_that_it_had_recorded(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.report_roles(roles=[role("applier", "hung")])
        await vault.watch.round()
    async with running(world, tmp_path) as vault:
        it = Watched(world, vault)
        assert await it.codes() == ["RoleHung"]
        await it.passes(1, [role("applier", "ready")])
        assert await it.codes() == []
        assert await it.events() == [("RoleHung", "Warning"), ("RoleHung", "OK")]


async def test_a_wait_of_a_role_with_another_wall_time_is_not_older_for_that(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        for since_ns in (it.world.now_ns - 10**13, it.world.now_ns + 10**13):
            monotonic_ns = it.vault.context.clock.monotonic_ns()
            wait = it.wait("DiskFull").model_copy(update={"since_ns": since_ns, "since_monotonic_ns": monotonic_ns})
            waiting = [role("applier", "ready", [wait])]
            await it.passes(bounds.wait_s("DiskFull") - 1, waiting)
            assert await it.codes() == []
            await it.passes(2, waiting)
            assert await it.codes() == ["DiskFull"]
            await it.passes(1)
            assert await it.codes() == []


async def test_a_round_asks_the_database_as_often_for_many_vms_as_for_one(tmp_path: Path) -> None:
    statements: list[str] = []
    async with watched(tmp_path) as it:
        event.listen(it.vault.context.database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))

        async def count() -> int:
            await it.passes(1)
            statements.clear()
            await it.passes(1)
            return len(statements)

        for_one = await count()
        for vm in ("web02", "web03", "web04"):
            await it.vault.vms.create_vm(vm=vm, disks=[DiskSpec(name="data", size_bytes=1 << 30)])
            await it.vault.protection.enable_protection(vm=vm, interval_s=INTERVAL_S)
        await idle(it.vault)
        assert await count() == for_one, statements


async def test_a_point_that_is_young_enough_is_not_looked_for(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        for _ in range(10):  # more time than the bound
            await it.cycle(apply=True)
            tag = TagSeen(
                tag_id=str(it.position), kind="CrashConsistent", name="c", position=it.position, time_ns=it.world.now_ns
            )
            for disk in it.world.site["web01"].values():
                await it.vault.reports.applied(watermark=it.world.managed[disk.disk_id], tags=[tag])
            await it.passes(INTERVAL_S)
        statements: list[str] = []
        event.listen(it.vault.context.database.engine, "before_cursor_execute", lambda *call: statements.append(call[2]))
        await it.passes(1)
        assert not [each for each in statements if "FROM point" in each]
        await it.passes(bounds.point_s(INTERVAL_S))
        assert [each for each in statements if "FROM point" in each]
        assert "NoRecentRecoveryPoint" in await it.codes()


async def test_an_rpo_beyond_the_threshold_is_an_event_at_begin_and_end(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await it.vault.alerts.configure_alerts(settings=AlertSettings(rpo_threshold_s=120))
        await it.passes(110)
        assert "RpoAboveThreshold" not in await it.codes()
        for _ in range(3):
            await it.passes(10)
        assert "RpoAboveThreshold" in await it.codes()
        await it.cycle(apply=True)
        await it.passes(1)
        changes = [event for event in await it.events() if event[0] == "RpoAboveThreshold"]
        assert changes == [("RpoAboveThreshold", "Warning"), ("RpoAboveThreshold", "OK")]


async def test_the_threshold_of_the_rpo_is_at_least_two_intervals(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, interval_s=900)
        it = Watched(world, vault)
        await it.cycle(apply=True)
        await it.passes(1790)
        assert "RpoAboveThreshold" not in await it.codes()
        await it.passes(20)
        assert "RpoAboveThreshold" in await it.codes()


async def test_late_replication_is_an_event_that_a_restart_does_not_repeat(tmp_path: Path) -> None:
    codes = {"ReplicationCyclesMissed", "LogUnsent"}
    async with watched(tmp_path) as it:
        await it.passes(3700)
        await it.passes(1)
        assert codes <= set(await it.codes())
        world = it.world
    async with running(world, tmp_path) as vault:
        it = Watched(world, vault)
        it.position = 20_000
        await it.passes(10)
        assert codes <= set(await it.codes())
        await it.cycle(apply=True)
        await it.passes(10)
        found = [event for event in await it.events() if event[0] in codes]
        assert sorted(found[:2]) == [("LogUnsent", "Warning"), ("ReplicationCyclesMissed", "Warning")]
        assert found[2:] == [("LogUnsent", "OK")]


async def test_a_paused_vm_is_not_late(tmp_path: Path) -> None:
    async with watched(tmp_path) as it:
        await ended(it.vault, await it.vault.protection.pause_replication(vm="web01"))
        await it.passes(5000)
        assert await it.codes() == ["ReplicationPaused"]
