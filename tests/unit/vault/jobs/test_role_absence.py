"""Operations of the vault while a role is away: they wait for one that comes back, and name one that does not."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.azure_emu.contracts.reports import RoleState, RoleStatus
from siterig.azure_emu.vault.context.roles import ABSENCE_EFFECT_S, PROGRESS_S, Roles
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, idle, protected, running

NAMES = ("azurite", "site", "azure", "vault", "applier", "agent")


@pytest.fixture(autouse=True)
def retries_soon(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retry after hundredths of a second, except where the test's clock jumps over the real delays."""
    if "autojump_clock" not in request.fixturenames:
        monkeypatch.setattr("siterig.azure_emu.vault.context.roles._DELAYS_S", (0.01, 0.02, 0.05, 0.1, 8.0))
        monkeypatch.setattr("siterig.azure_emu.vault.context.roles.REPORT_DELAY_S", 0.1)


def states(detail: str = "", *, pid: int = 1, **others: RoleState) -> list[RoleStatus]:
    return [
        RoleStatus(
            name=name,
            state=others.get(name, "ready"),
            pid=pid,
            restarts=0,
            detail=detail if name in others else "",
            since_ns=0,
            waits=[],
        )
        for name in NAMES
    ]


def cache_away() -> RigError:
    return RigError(Code.CacheUnreachable, "no answer from the account", recoverable=True)


def agent_away(*, uncertain: bool = False) -> RigError:
    return RigError(Code.RoleUnavailable, "nobody answers", recoverable=True, role="agent", uncertain=uncertain)


async def until(check: Callable[[], bool]) -> None:
    with trio.fail_after(1000):
        while not check():  # noqa: ASYNC110 (another thread changes it)
            await trio.sleep(0.002)


@pytest.mark.slow
@pytest.mark.parametrize("call", ["site.replicate_now", "recovery.process_latest", "azure.create_disk_from_point"])
@pytest.mark.parametrize(
    "error",
    [
        cache_away(),
        agent_away(),
        RigError(Code.HostIoError, "Input/output error", recoverable=True),
        RigError(Code.DiskHostUnreachable, "the mount is dead", recoverable=True),
    ],
)
async def test_a_planned_failover_waits_for_a_role_that_is_started_again(tmp_path: Path, call: str, error: RigError) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.report_roles(roles=states(azurite="restarting"))
        world.failing[call] = error
        before = world.calls.count(call)
        job = await vault.failovers.planned_failover(vm="web01")
        await until(lambda: world.calls.count(call) > before + 1)
        shown = await vault.status.job(name=job.name)
        (task,) = [task for task in shown.tasks if task.state == "InProgress"]
        assert task.waiting_for is not None
        assert [wait.vm for wait in vault.context.waits.list()] == ["web01"]
        world.stop_failing()
        await vault.reports.report_roles(roles=states())
        job = await ended(vault, job)
        assert (job.state, [error.code for error in job.errors]) == ("Succeeded", [])
        assert {task.waiting_for for task in job.tasks} == {None}
        assert vault.context.waits.list() == []


@pytest.mark.slow
async def test_the_wait_has_the_state_of_the_role_by_the_supervisor(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.report_roles(roles=states("killed by SIGKILL", azurite="restarting"))
        world.failing["recovery.process_latest"] = cache_away()
        await vault.failovers.test_failover(vm="web01", point="Latest")
        await until(lambda: bool(vault.context.waits.list()))
        (wait,) = vault.context.waits.list()
        assert (wait.code, wait.reason) == ("RoleUnavailable", "role azurite is restarting: killed by SIGKILL")


async def test_only_a_failure_shortly_after_a_restart_is_retried(autojump_clock: MockClock) -> None:
    roles = Roles()
    roles.update(states(), 0)
    error = RigError(Code.NotSynchronized, "the account forgot a blob", recoverable=True)
    assert roles.role_cause(error) is None
    roles.update(states(pid=2), 0)
    assert roles.role_cause(error) is error
    assert roles.role_cause(RigError(Code.VmNotFound, "no such VM")) is None
    await trio.sleep(ABSENCE_EFFECT_S + 1)
    assert roles.role_cause(error) is None


@pytest.mark.slow
@pytest.mark.parametrize("point", ["Latest", "LatestProcessed"])
async def test_an_abandoned_role_fails_the_operation_with_error_and_remedy(tmp_path: Path, point: str) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.report_roles(roles=states("ended 5 times within 60 s; last: no room", applier="failed"))
        away = RigError(Code.RoleUnavailable, "nobody answers", recoverable=True, role="applier")
        world.failing["recovery.process_latest"] = world.failing["azure.create_disk_from_point"] = away
        job = await ended(vault, await vault.failovers.test_failover(vm="web01", point=point))
        assert [(error.code, error.message) for error in job.errors] == [
            (
                "RoleFailed",
                "role applier failed and is not started again: ended 5 times within 60 s; last: no room; "
                "start it with siterig role restart applier",
            )
        ]


@pytest.mark.slow
async def test_taking_a_point_does_not_wait_for_ever_for_an_abandoned_applier(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.apply = False
        with pytest.raises(ExceptionGroup) as caught:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="mine")
                )
                await until(lambda: bool(world.cached))
                await vault.reports.report_roles(roles=states("no room", applier="failed"))
        assert [getattr(error, "code", None) for error in caught.value.exceptions] == ["RoleFailed"]


@pytest.mark.slow
async def test_a_planned_failover_of_a_lost_site_names_the_remedy(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.report_roles(roles=states(site="held", agent="held"))
        world.failing["site.list_vms"] = agent_away()
        job = await ended(vault, await vault.failovers.planned_failover(vm="web01"))
        (error,) = job.errors
        assert (error.code, error.message) == (
            "RoleHeld",
            "role agent is down on purpose; start it with siterig role restart agent, "
            "or a lost site with siterig site restore",
        )


@pytest.mark.slow
async def test_a_planned_failover_that_has_shut_the_vm_down_waits_for_a_lost_site(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["site.replicate_now"] = agent_away()
        await vault.reports.report_roles(roles=states(site="held", agent="held"))
        job = await vault.failovers.planned_failover(vm="web01")
        await until(lambda: bool(vault.context.waits.list()))
        shown = await vault.status.job(name=job.name)
        assert [(task.name, task.state, task.waiting_for is not None) for task in shown.tasks][:3] == [
            ("PlannedFailoverPreflightChecksTask", "Succeeded", False),
            ("ShutdownVmOnPrimary", "Succeeded", False),
            ("PrepareForFailoverTask", "InProgress", True),
        ]
        assert [wait.code for wait in vault.context.waits.list()] == ["RoleHeld"]
        world.stop_failing()
        await vault.reports.report_roles(roles=states())
        job = await ended(vault, job)
        assert (job.state, job.errors, vault.context.waits.list()) == ("Succeeded", [], [])


@pytest.mark.slow
async def test_the_wait_of_a_planned_failover_for_a_lost_site_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = Roles.retry_while_away.__kwdefaults__ or {}
    monkeypatch.setattr(Roles.retry_while_away, "__kwdefaults__", usual | {"limit_s": 0.02})
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing["site.replicate_now"] = agent_away()
        await vault.reports.report_roles(roles=states(site="held", agent="held"))
        job = await ended(vault, await vault.failovers.planned_failover(vm="web01"))
        assert [error.code for error in job.errors] == ["RoleHeld"]
        assert [item.protectionState for item in await vault.status.items()] == ["PlannedFailoverFailed"]
        world.stop_failing()
        job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        assert (job.state, job.errors) == ("Succeeded", [])


@pytest.mark.slow
async def test_an_unplanned_failover_shuts_down_a_source_that_restarts(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.report_roles(roles=states(agent="restarting"))
        world.failing["site.shutdown_vm"] = agent_away()
        job = await vault.failovers.unplanned_failover(vm="web01", point="Latest", source_actions=True)
        await until(lambda: "site.shutdown_vm" in world.calls)
        world.stop_failing()
        await vault.reports.report_roles(roles=states())
        job = await ended(vault, job)
        assert (job.state, job.errors) == ("Succeeded", [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "operation",
    [
        lambda vault: vault.mounts.mount_point(vm="web01"),
        lambda vault: vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="mine"),
        lambda vault: vault.vms.create_vm(vm="web02", disks=[DiskSpec(name="os", size_bytes=512)]),
        lambda vault: vault.protection.enable_protection(vm="web03", interval_s=30),
    ],
)
async def test_operations_that_are_no_jobs_wait_too(tmp_path: Path, operation: Callable[[Vault], object]) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.vms.create_vm(vm="web03", disks=[DiskSpec(name="os", size_bytes=512)])
        calls = (
            "azure.open_mounted_point",
            "azure.create_disk_from_point",
            "site.replicate_now",
            "site.create_vm",
            "site.list_vms",
        )
        await vault.reports.report_roles(roles=states(agent="restarting", azure="restarting"))
        for call in calls:
            world.failing_once[call] = agent_away()
        done = trio.Event()

        async def work() -> None:
            await operation(vault)  # type: ignore[misc]
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            await until(lambda: bool(vault.context.waits.list()))
            await vault.reports.report_roles(roles=states())
            with trio.fail_after(30):
                await done.wait()
        assert vault.context.waits.list() == []
        await idle(vault)


@pytest.mark.slow
async def test_a_point_that_may_have_been_taken_is_not_taken_a_second_time(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.report_roles(roles=states(agent="restarting"))
        before = world.calls.count("site.replicate_now")
        world.failing_once["site.replicate_now"] = agent_away(uncertain=True)
        with pytest.raises(RigError) as caught:
            await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="mine")
        assert caught.value.message == (
            "nobody answers; it is not known whether the recovery point was taken: see siterig points web01"
        )
        assert world.calls.count("site.replicate_now") == before + 1


@pytest.mark.slow
async def test_all_attempts_to_take_a_point_are_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.reports.report_roles(roles=states(azurite="restarting"))
        requests = []
        site = vault.context.site
        replicate_now = site.replicate_now

        async def noted(*, request_id: str | None = None, **arguments: object) -> object:
            requests.append(request_id)
            if len(requests) < 3:
                raise cache_away()
            await vault.reports.report_roles(roles=states())
            return await replicate_now(**arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(site, "replicate_now", noted)
        await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="mine")
        assert len(requests) == 3
        assert len(set(requests)) == 1
        assert uuid.UUID(requests[0])


@pytest.mark.slow
async def test_a_list_of_vms_does_not_ask_a_role_that_hangs(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await vault.vms.list_vms()
        world.held["site.list_vms"] = trio.Event()
        await vault.reports.report_roles(roles=states(agent="hung"))
        with trio.fail_after(60):
            assert [vm.name for vm in await vault.vms.list_vms()] == ["web01"]


@pytest.mark.slow
async def test_a_job_whose_call_hangs_names_the_role_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.azure_emu.vault.jobs.engine.NOTICED_S", 0.01)
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.held["recovery.process_latest"] = trio.Event()
        job = await vault.failovers.test_failover(vm="web01", point="Latest")
        await until(lambda: "recovery.process_latest" in world.calls)
        await vault.reports.report_roles(roles=states("has not answered since 12:00:00 UTC", applier="hung"))
        await until(lambda: bool(vault.context.waits.list()))
        assert vault.context.waits.list()[0].code == "RoleHung"
        world.held["recovery.process_latest"].set()
        await vault.reports.report_roles(roles=states())
        assert (await ended(vault, job)).state == "Succeeded"


REAL_S_MAX = 60.0


async def in_virtual_time(check: Callable[[], bool]) -> None:
    """Poll until ``check`` holds.  The clock jumps while the vault's threads work, so real time bounds the wait."""
    end_s = time.monotonic() + REAL_S_MAX
    while not check():
        assert time.monotonic() < end_s
        await trio.sleep(0.1)


@pytest.mark.slow
async def test_the_wait_of_a_task_is_not_shown_after_it_continues(tmp_path: Path, autojump_clock: MockClock) -> None:
    """No role changes its state: only the task itself can tell."""
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.failing_once["azure.create_disk_from_point"] = cache_away()
        job = await vault.failovers.test_failover(vm="web01", point="Latest")
        await in_virtual_time(lambda: bool(vault.context.waits.list()))
        held = world.held["azure.create_disk_from_point"] = trio.Event()
        await in_virtual_time(lambda: not vault.context.waits.list())
        (task,) = [task for task in (await vault.status.job(name=job.name)).tasks if task.state == "InProgress"]
        assert (task.name, task.waiting_for) == ("PrepareTestProtectedEntitiesTask", None)
        held.set()
        assert (await ended(vault, job)).state == "Succeeded"


async def test_the_wait_of_an_operation_is_not_shown_after_it_continues(tmp_path: Path, autojump_clock: MockClock) -> None:
    world = World()
    async with running(world, tmp_path) as vault, trio.open_nursery() as nursery:
        await vault.reports.report_roles(roles=states(agent="restarting"))
        world.failing_once["site.create_vm"] = agent_away()
        disks = [DiskSpec(name="os", size_bytes=1 << 20)]
        nursery.start_soon(partial(vault.vms.create_vm, vm="new", disks=disks))
        await in_virtual_time(lambda: bool(vault.context.waits.list()))
        held = world.held["site.create_vm"] = trio.Event()
        await in_virtual_time(lambda: not vault.context.waits.list())
        held.set()


async def test_a_wait_ends_only_when_the_next_attempt_has_lasted_for_a_while(autojump_clock: MockClock) -> None:
    roles, told = Roles(), list[tuple[float, bool]]()
    lasts_s = [0.0, PROGRESS_S / 2, PROGRESS_S * 2]
    began_s = trio.current_time()

    async def work() -> None:
        await trio.sleep(lasts_s.pop(0))
        if lasts_s:
            raise cache_away()

    await roles.retry_while_away(
        work, on_wait=lambda reason: told.append((trio.current_time() - began_s, reason is not None))
    )
    first_retry_s, second_retry_s = 0.5, 0.5 + PROGRESS_S / 2 + 1.0
    assert told == [(0.0, True), (first_retry_s + PROGRESS_S / 2, True), (second_retry_s + PROGRESS_S, False)]


@pytest.mark.parametrize("failure", [RigError(Code.HostIoError, "no"), ValueError("a bug")])
async def test_a_later_attempt_fails_with_its_own_error(autojump_clock: MockClock, failure: Exception) -> None:
    roles, failures = Roles(), [cache_away(), failure]

    async def work() -> None:
        raise failures.pop(0)

    with pytest.raises(type(failure)) as caught:
        await roles.retry_while_away(work, on_wait=lambda _reason: None)
    assert caught.value is failure
