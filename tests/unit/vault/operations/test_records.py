"""Jobs with their figures, filters of jobs and events, and the events of points, roles, failovers and failbacks."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog

from siterig.azure_emu.contracts.reports import RoleState, RoleStatus
from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock import rfc3339
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.progress import CopyTotals, DiskProgress, VmProgress
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, FakeProvider, ended, idle, protected, running

COPIED = CopyTotals(phase="InitialReplication", total_bytes=1 << 30, sent_bytes=4096, duration_s=2.5)


@pytest.fixture
def copying(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the site report a copy that runs, and one that has ended."""

    async def progress(self: FakeProvider, *, vm: str) -> VmProgress:
        await self.world.called("site.progress")
        disk = DiskProgress(disk="os", done_bytes=1, total_bytes=4, sent_bytes=1)
        return VmProgress(vm=vm, phase="InitialReplication", disks=[disk], last_copy=COPIED)

    monkeypatch.setattr(FakeProvider, "progress", progress)


async def codes(vault: Vault, *, with_points: bool = False) -> list[str]:
    """Return the codes of all events, oldest first."""
    return [event.eventCode for event in reversed(await vault.status.events(with_points=with_points))]


async def test_a_job_has_the_figures_of_its_copy_and_its_duration(tmp_path: Path, copying: None) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        finalize, enable = await vault.status.jobs()
        assert (enable.copied, finalize.copied) == (COPIED, None)
        assert (enable.duration_s, enable.progress) == (0, None)


async def test_the_job_of_added_disks_has_the_figures_of_their_copy(tmp_path: Path, copying: None) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await vault.vms.create_vm(vm="web01", disks=[DiskSpec(name=name, size_bytes=1 << 30) for name in ("data", "os")])
        await vault.protection.enable_protection(vm="web01", interval_s=30, exclude=["data"])
        await idle(vault)
        job = await ended(vault, await vault.protection.add_disks(vm="web01", disks=["data"]))
        assert (job.state, job.copied) == ("Succeeded", COPIED)


async def test_jobs_are_selected_by_vm_state_and_time(tmp_path: Path, copying: None) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        world.now_ns = START_NS + 100 * SECOND_NS
        await vault.vms.create_vm(vm="db", disks=[])
        world.site["db"] = {"a": world.disk("db", "a", 1 << 30)}
        world.failing["site.initial_replication"] = RigError("CacheForbidden", "no")  # type: ignore[arg-type]
        failed = await ended(vault, await vault.protection.enable_protection(vm="db", interval_s=30))
        assert failed.state == "Failed"
        status = vault.status
        assert {job.vm for job in await status.jobs(vm="web01")} == {"web01"}
        assert [job.name for job in await status.jobs(state="Failed")] == [failed.name]
        since = rfc3339(START_NS + 50 * SECOND_NS)
        assert [job.name for job in await status.jobs(since=since)] == [failed.name]
        assert [job.name for job in await status.jobs(vm="web01", state="Failed")] == []
        assert {event.affectedObject for event in await status.events(vm="db", since=since)} == {"db"}
        with pytest.raises(RigError, match="RFC 3339"):
            await status.jobs(since="yesterday")


async def test_the_event_of_a_failover_names_point_and_rpo(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        world.now_ns = START_NS + 90 * SECOND_NS
        job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        assert job.recovery_point is not None
        assert job.chosen_point == "LatestProcessed"
        assert job.rpo_s == pytest.approx(90, abs=0.1)
        event = (await vault.status.events())[0]
        assert event.eventCode == "UnplannedFailoverSucceeded"
        assert f"point {job.recovery_point.id} (CrashConsistent)" in event.description
        assert event.description.endswith("position 10, RPO 90.0 s")


async def test_each_point_is_an_event_and_old_ones_are_pruned(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        await vault.recovery_points.create_point(vm="web01", kind="ApplicationConsistent", name="app")
        assert "RecoveryPointCreated" not in await codes(vault)
        assert (await codes(vault, with_points=True)).count("RecoveryPointCreated") == 2
        newest = next(e for e in await vault.status.events(with_points=True) if e.eventCode == "RecoveryPointCreated")
        assert newest.description.startswith("ApplicationConsistent recovery point ")
        assert "'app' of VM 'web01'" in newest.description
        await vault.context.database.transact(lambda session: events.prune_points(session, 1))
        left = [e for e in await vault.status.events(with_points=True) if e.eventCode == "RecoveryPointCreated"]
        assert left == [newest]
        await vault.context.database.transact(events.prune_points)
        assert len(await codes(vault, with_points=True)) == len(await codes(vault)) + 1


async def test_a_failback_names_the_bytes_that_it_overwrites(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="LatestProcessed"))
        await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        world.written_bytes = {"os": 700, "data": None}
        await ended(vault, await vault.failovers.failback(vm="web01"))
        found = next(event for event in await vault.status.events() if event.eventCode == "SourceOverwritten")
        assert (found.severity, found.description) == (
            "Warning",
            "the failback of VM 'web01' overwrote 700 and an unknown number of bytes that were written at the site after "
            "the recovery point of the failover (disk bytes: data unknown, os 700)",
        )


async def test_the_log_of_the_vault_has_the_id_of_each_point_as_its_trace(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault, disks=("os",))
        with structlog.testing.capture_logs() as lines:
            point = await vault.recovery_points.create_point(vm="web01", kind="CrashConsistent", name="n")
        assert [line["trace"] for line in lines if line["event"] == "point_available"] == [point.id]


def role(state: RoleState, *, pid: int | None = 7, restarts: int = 0) -> RoleStatus:
    """Return a report about the applier."""
    return RoleStatus(name="applier", state=state, pid=pid, restarts=restarts, detail="", since_ns=0, waits=[])


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        ([role("waiting", pid=None), role("starting"), role("ready")], []),
        (
            [role("ready"), role("restarting", pid=None), role("starting", pid=8), role("ready", pid=8)],
            ["RoleEnded", "RoleReady"],
        ),
        ([role("ready"), role("starting", pid=None), role("ready", pid=8)], ["RoleEnded", "RoleReady"]),
        ([role("ready"), role("ready", pid=8, restarts=1)], ["RoleEnded", "RoleReady"]),
        ([role("ready"), role("hung"), role("ready")], ["RoleHung", "RoleReady"]),
        ([role("ready"), role("held", pid=None), role("held", pid=None)], ["RoleEnded"]),
        ([role("ready"), role("failed", pid=None, restarts=5)], ["RoleEnded"]),
    ],
)
async def test_ends_and_returns_of_roles_are_events(tmp_path: Path, reports: list[RoleStatus], expected: list[str]) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        for each in reports:
            await vault.reports.report_roles(roles=[each])
        assert await codes(vault) == expected
        assert {event.affectedObject for event in await vault.status.events()} <= {"applier"}
