"""The metrics of a vault, read back by the parser of the Prometheus library."""

from __future__ import annotations

import re
import stat
from pathlib import Path

import httpx
import pytest
import trio
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.vault.operations.metrics import METRICS, exposition
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import DiskProgress, VmProgress
from siterig.core.metrics_address import ROLE, address, read_token
from siterig.core.paths import Layout
from siterig.rpc.metrics_server import serve_metrics
from tests.support.repo.metrics_page import PAGE, page
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import START_NS, ended, protected, running

UNITS = {"seconds", "bytes", "info", "total"}


def parsed(text: str) -> dict[str, Metric]:
    """Return the families of an exposition by name; a counter has the name of its samples."""
    return {
        f"{family.name}_total" if family.type == "counter" else family.name: family
        for family in text_string_to_metric_families(text)
    }


def values(families: dict[str, Metric], name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the samples of a metric by the values of these labels."""
    return {tuple(sample.labels[label] for label in labels): sample.value for sample in families[name].samples}


async def test_a_parser_reads_back_the_figures_of_the_vault(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os",))
        role = RoleStatus(name="agent", state="hung", pid=1, restarts=2, detail="", since_ns=0, waits=[])
        await vault.reports.report_roles(roles=[role])
        disk_id = world.site["web01"]["os"].disk_id
        await vault.reports.account_seen(disk_id=disk_id, waiting_bytes=300, skipped=[], skipped_count=0)
        await ended(vault, await vault.failovers.test_failover(vm="web01", point="LatestProcessed"))
        await vault.reports.resync_required(vm="web01", reason="PowerLoss")
        world.now_ns = START_NS + 40 * SECOND_NS
        found = parsed(await vault.observation.metrics())
        assert set(found) == {metric.name for metric in METRICS}
        assert values(found, "siterig_vm_rpo_seconds", "vm") == {("web01",): 40}
        assert values(found, "siterig_vm_unapplied_bytes", "vm") == {("web01",): 300}
        assert values(found, "siterig_vm_recovery_points", "vm") == {("web01",): 1}
        assert values(found, "siterig_vm_recovery_point_age_seconds", "vm", "type") == {("web01", "CrashConsistent"): 40}
        assert values(found, "siterig_vm_recovery_side_vms", "vm", "kind") == {("web01", "TestFailover"): 1}
        health = values(found, "siterig_vm_health", "health")
        assert health == {("Warning",): 1, ("Normal",): 0, ("Critical",): 0, ("None",): 0}
        assert ("ResynchronizationRequired",) in values(found, "siterig_vm_health_error", "code")
        assert values(found, "siterig_role_ready", "role") == {("agent",): 0}
        assert values(found, "siterig_role_restarts_total", "role") == {("agent",): 2}
        assert values(found, "siterig_jobs_ended_total", "scenario", "state")["TestFailover", "Succeeded"] == 1
        assert values(found, "siterig_events_total", "type", "severity")["JobStatus", "OK"] == 3


async def test_other_roles_are_asked_once_for_figures_and_left_out_if_silent(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault, disks=("os", "data"))
        disks = [DiskProgress(disk=name, done_bytes=40, total_bytes=100, sent_bytes=9) for name in ("os", "data")]
        world.progress = [VmProgress(vm="web01", phase="InitialReplication", disks=disks, uploaded_bytes=18)]
        world.progress.append(VmProgress(vm="new", phase=None, disks=[], uploaded_bytes=7))
        world.calls.clear()
        found = parsed(await vault.observation.metrics())
        assert sorted(world.calls) == ["recovery.applied_figures", "site.progress_of_all"]
        assert values(found, "siterig_vm_uploaded_bytes_total", "vm") == {("web01",): 18, ("new",): 7}
        assert values(found, "siterig_vm_copy_done_bytes", "vm", "phase") == {("web01", "InitialReplication"): 80}
        assert values(found, "siterig_vm_copy_total_bytes", "vm", "phase") == {("web01", "InitialReplication"): 200}
        assert values(found, "siterig_vm_account_bytes", "vm") == {("web01",): 2 * 4096}
        assert values(found, "siterig_vm_applied_parts_total", "vm") == {("web01",): 2 * 3}
        assert values(found, "siterig_rig_free_bytes")[()] > 0
        world.failing["recovery.applied_figures"] = RigError(Code.RoleUnavailable, "role applier cannot be reached")
        world.held["site.progress_of_all"] = trio.Event()
        began_s = trio.current_time()
        found = parsed(await vault.observation.metrics())
        assert trio.current_time() - began_s < 3
        for name in ("vm_uploaded_bytes_total", "vm_copy_done_bytes", "vm_account_bytes", "vm_applied_parts_total"):
            assert found[f"siterig_{name}"].samples == []
        assert len(values(found, "siterig_vm_rpo_seconds", "vm")) == 1


async def test_a_value_that_is_not_known_is_left_out(tmp_path: Path) -> None:
    async with running(World(), tmp_path) as vault:
        await protected(vault, disks=("os",))
        assert parsed(await vault.observation.metrics())["siterig_vm_unapplied_bytes"].samples == []


def test_a_name_with_quotes_and_line_ends_is_read_back() -> None:
    name = 'a "b"\n\\c'
    samples = {metric.name: [((name,), 1.0)] if metric.name == "siterig_vm_rpo_seconds" else [] for metric in METRICS}
    assert values(parsed(exposition(samples)), "siterig_vm_rpo_seconds", "vm") == {(name,): 1}


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_names_follow_the_conventions_of_prometheus(metric: object) -> None:
    name, kind = getattr(metric, "name"), getattr(metric, "type")  # noqa: B009
    assert re.fullmatch(r"siterig(_[a-z]+)+", name)
    assert (kind == "counter") == name.endswith("_total")
    last = name.rpartition("_")[2]
    assert last in UNITS or not {"ms", "s", "kib", "mib", "milliseconds", "percent"} & {last}


def test_the_page_of_the_metrics_is_drawn_from_the_list() -> None:
    assert PAGE.read_text() == page(), "run python -m tests.support.repo.metrics_page"


@pytest.mark.slow
async def test_the_address_on_loopback_needs_the_token_of_the_owner(tmp_path: Path) -> None:
    layout = Layout(tmp_path)

    async def text() -> str:
        return "siterig_build_info 1\n"

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_metrics, text, layout.port(ROLE), layout.metrics_token)
        where = address(layout)
        assert where is not None
        assert where.startswith("http://127.0.0.1:")
        assert stat.S_IMODE(layout.metrics_token.stat().st_mode) == 0o600
        token = read_token(layout.metrics_token)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(where)).status_code == 401
            assert (await client.get(where, headers={"Authorization": "Bearer wrong"})).status_code == 401
            answer = await client.get(where, headers={"Authorization": f"Bearer {token}"})
        assert (answer.status_code, answer.text) == (200, await text())
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_metrics, text, layout.port(ROLE), layout.metrics_token)
        assert (read_token(layout.metrics_token), address(layout)) == (token, where), "a restart keeps both"
        nursery.cancel_scope.cancel()
