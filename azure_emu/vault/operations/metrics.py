"""The metrics of a vault in the text format of Prometheus.

They are computed when they are asked for, from the vault's own state, one transaction, and one call to the agent and to the
applier: they cost nothing meanwhile.  A role that does not answer at once leaves its metrics out.  ``METRICS`` is the list
of them; docs/reference/metrics.md is drawn from it.  Names and units follow the conventions of Prometheus: base units, the
unit at the end of the name, ``_total`` for counters.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import trio
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import rig_clock
from siterig.azure_emu.vault.context.events import POINT_CREATED
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import AzureVmRow, DiskRow, EventRow, JobRow
from siterig.azure_emu.vault.model.resources import Health, ProtectedItem
from siterig.azure_emu.vault.operations.status import VaultStatus
from siterig.azure_emu.vault.points import points
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.errors import RigError

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Labels = tuple[str, ...]
Samples = dict[str, list[tuple[Labels, float]]]


@dataclass(frozen=True, slots=True)
class MetricKind:
    """One metric: its name, type and labels, and the text that describes it."""

    name: str
    type: Literal["gauge", "counter"]
    labels: Labels
    help: str


def _gauge(name: str, labels: str, text: str) -> MetricKind:
    return MetricKind(f"siterig_{name}", "gauge", tuple(labels.split()), text)


def _counter(name: str, labels: str, text: str) -> MetricKind:
    return MetricKind(f"siterig_{name}_total", "counter", tuple(labels.split()), text)


METRICS = (
    _gauge("build_info", "version", "1; the version of siterig."),
    _gauge("role_ready", "role", "1 if the role is ready, otherwise 0."),
    _counter("role_restarts", "role", "How often the process of the role ended by itself since the start of the rig."),
    _gauge("role_waits", "role", "Number of the role's waits."),
    _gauge(
        "vm_info",
        "vm protection_state active_location replication_state test_failover_state",
        "1; the states of a protected VM.",
    ),
    _gauge("vm_health", "vm health", "1 for the VM's replicationHealth, 0 for the other values."),
    _gauge("vm_health_error", "vm code", "1 for each reason of bad health that is not acknowledged."),
    _gauge("vm_rpo_seconds", "vm", "Age of the newest state whose data and tag are in the cache account."),
    _gauge("vm_applied_lag_seconds", "vm", "How much older the applied state is than that one."),
    _gauge("vm_replication_interval_seconds", "vm", "Replication interval of the policy."),
    _gauge("vm_unapplied_bytes", "vm", "Bytes in the cache account that are not applied."),
    _gauge("vm_recovery_points", "vm", "Number of usable recovery points."),
    _gauge("vm_recovery_point_age_seconds", "vm type", "Age of the newest recovery point of a type."),
    _gauge("vm_recovery_side_vms", "vm kind", "Number of VMs on the recovery side: TestFailover, Recovered, Copy."),
    _gauge("vm_paused", "vm", "1 if a user paused replication, otherwise 0."),
    _gauge("vm_resync_required", "vm", "1 if a resync is due, otherwise 0."),
    _counter("vm_uploaded_bytes", "vm", "Bytes that the site has sent to the cache account since the start of the agent."),
    _counter(
        "vm_applied_parts",
        "vm",
        "Number of parts that were applied since the start of the applier.",
    ),
    _gauge("vm_account_bytes", "vm", "Bytes of all parts of the VM in the cache account, also of applied ones."),
    _gauge("vm_copy_done_bytes", "vm phase", "Bytes of the disks that the present copy has done; left out if none runs."),
    _gauge("vm_copy_total_bytes", "vm phase", "Bytes of the disks that the present copy has to do."),
    _gauge("rig_free_bytes", "", "Free space of the file system with the rig's folder, for its owner."),
    _gauge("jobs_in_progress", "scenario", "Number of jobs that have not ended."),
    _counter("jobs_ended", "scenario state", "Number of jobs that have ended, since the vault was made."),
    _counter("events", "type severity", "Number of events, without those of recovery points, since the vault was made."),
)
"""All metrics.  A value that is not known is left out, and never 0."""

ANSWER_S = 2.0
"""The time that another role has to answer."""
_POINT_TYPES = ("CrashConsistent", "ApplicationConsistent")


class VaultMetrics:
    """The metrics of one vault."""

    def __init__(self, context: VaultContext, status: VaultStatus, folder: Path) -> None:
        self._context = context
        self._status = status
        self._folder = folder

    async def text(self) -> str:
        """Return all metrics, as a scrape of Prometheus reads them."""
        items = await self._status.items()
        samples: Samples = {metric.name: [] for metric in METRICS}
        self._roles(samples)
        for item in items:
            _item(samples, item)
        vms = [item.name for item in items]
        disks = await self._context.database.transact(lambda session: _rows(session, samples, vms, self._context.clock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask, "agent", partial(self._progress, samples))
            nursery.start_soon(self._ask, "applier", partial(self._applied, samples, disks))
            nursery.start_soon(self._free_space, samples)
        return exposition(samples)

    async def _ask(self, role: str, question: Callable[[], Awaitable[None]]) -> None:
        """Ask another role, which leaves its metrics out if it does not answer at once."""
        if self._context.roles.role_error(role) is None:
            with suppress(RigError), self._context.clock.real.move_on_after(ANSWER_S):
                await question()

    async def _progress(self, samples: Samples) -> None:
        for found in await self._context.site.progress_of_all():
            samples["siterig_vm_uploaded_bytes_total"].append(((found.vm,), found.uploaded_bytes))
            if found.phase is not None and found.phase != "DeltaReplication":
                labels = (found.vm, found.phase)
                samples["siterig_vm_copy_done_bytes"].append((labels, sum(disk.done_bytes for disk in found.disks)))
                samples["siterig_vm_copy_total_bytes"].append((labels, sum(disk.total_bytes for disk in found.disks)))

    async def _applied(self, samples: Samples, disks: Mapping[str, Sequence[str]]) -> None:
        figures = await self._context.recovery.applied_figures(disk_ids=[each for ids in disks.values() for each in ids])
        for vm, ids in disks.items():
            known = [figures[each] for each in ids if each in figures]
            sizes = [each.account_bytes for each in known if each.account_bytes is not None]
            samples["siterig_vm_applied_parts_total"].append(((vm,), sum(each.applied_parts for each in known)))
            if len(sizes) == len(ids):
                samples["siterig_vm_account_bytes"].append(((vm,), sum(sizes)))

    async def _free_space(self, samples: Samples) -> None:
        with suppress(OSError):
            found = await trio.to_thread.run_sync(os.statvfs, self._folder)
            samples["siterig_rig_free_bytes"].append(((), found.f_bavail * found.f_frsize))

    def _roles(self, samples: Samples) -> None:
        samples["siterig_build_info"].append(((metadata.version("siterig"),), 1))
        for role in self._context.roles.all():
            samples["siterig_role_ready"].append(((role.name,), role.state == "ready"))
            samples["siterig_role_restarts_total"].append(((role.name,), role.restarts))
            samples["siterig_role_waits"].append(((role.name,), len(role.waits)))


def _item(samples: Samples, item: ProtectedItem) -> None:
    def add(name: str, value: float | None, *more: str) -> None:
        if value is not None:
            samples[f"siterig_vm_{name}"].append(((item.name, *more), value))

    states = (item.protectionState, item.activeLocation, item.replication_state, item.testFailoverState)
    add("info", 1, *states)
    for health in get_args(Health):
        add("health", health == item.replicationHealth, health)
    for code in sorted({error.errorCode for error in item.healthErrors}):
        add("health_error", 1, code)
    add("rpo_seconds", item.lastRpoInSeconds)
    add("applied_lag_seconds", item.applied_lag_s)
    add("replication_interval_seconds", item.policy_interval_s)
    add("unapplied_bytes", item.unapplied_bytes)
    add("paused", item.paused_since is not None)
    add("resync_required", item.resynchronizationRequired is not None)


def _rows(session: Session, samples: Samples, vms: Sequence[str], clock: Clock) -> dict[str, list[str]]:
    """Add what rows of the database say; return the ids of the managed disks of each VM."""
    elapsed_ns = rig_clock.elapsed_ns(session, clock)
    for vm in vms:
        samples["siterig_vm_recovery_points"].append(((vm,), points.count(session, vm)))
        for kind in _POINT_TYPES:
            newest_ns = points.newest_elapsed_ns(session, vm, kind)
            if newest_ns is not None:
                age_s = max(0, elapsed_ns - newest_ns) / SECOND_NS
                samples["siterig_vm_recovery_point_age_seconds"].append(((vm, kind), age_s))
    kinds = session.execute(
        select(AzureVmRow.owner, AzureVmRow.kind, func.count()).group_by(AzureVmRow.owner, AzureVmRow.kind)
    )
    samples["siterig_vm_recovery_side_vms"] += [((owner, kind), count) for owner, kind, count in kinds if owner in vms]
    running = select(JobRow.scenario, func.count()).where(JobRow.end_ns.is_(None)).group_by(JobRow.scenario)
    samples["siterig_jobs_in_progress"] += [((scenario,), count) for scenario, count in session.execute(running)]
    ended = select(JobRow.scenario, JobRow.state, func.count()).where(JobRow.end_ns.is_not(None))
    rows = session.execute(ended.group_by(JobRow.scenario, JobRow.state))
    samples["siterig_jobs_ended_total"] += [((scenario, state), count) for scenario, state, count in rows]
    counted = select(EventRow.type, EventRow.severity, func.count()).where(EventRow.code != POINT_CREATED)
    found = session.execute(counted.group_by(EventRow.type, EventRow.severity))
    samples["siterig_events_total"] += [((kind, severity), count) for kind, severity, count in found]
    disks: dict[str, list[str]] = {vm: [] for vm in vms}
    for vm, disk_id in session.execute(select(DiskRow.vm, DiskRow.disk_id)):
        disks.get(vm, []).append(disk_id)
    return disks


def exposition(samples: Mapping[str, Sequence[tuple[Labels, float]]]) -> str:
    """Return samples of :data:`METRICS` in the text format of Prometheus."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415 (only a rig that is scraped needs it)
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily  # noqa: PLC0415
    from prometheus_client.registry import Collector  # noqa: PLC0415

    class Families(Collector):
        def collect(self) -> Iterator[Metric]:
            for metric in METRICS:
                family = GaugeMetricFamily if metric.type == "gauge" else CounterMetricFamily
                shown = family(metric.name, metric.help, labels=metric.labels)
                for labels, value in samples[metric.name]:
                    shown.add_metric(list(labels), float(value))
                yield shown

    registry = CollectorRegistry()
    registry.register(Families())
    return generate_latest(registry).decode()
