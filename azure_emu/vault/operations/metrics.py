"""The metrics of a vault in the text format of Prometheus.

They are computed when they are asked for, from the vault's own state and one transaction: they cost nothing meanwhile, and
no other role is asked.  ``METRICS`` is the list of them; docs/reference/metrics.md is drawn from it.  Names and units follow
the conventions of Prometheus: base units, the unit at the end of the name, ``_total`` for counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal, get_args

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import rig_clock
from siterig.azure_emu.vault.context.events import POINT_CREATED
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import AzureVmRow, EventRow, JobRow
from siterig.azure_emu.vault.model.api import Health, ProtectedItem
from siterig.azure_emu.vault.operations.status import VaultStatus
from siterig.azure_emu.vault.points import points
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.clock_reading import SECOND_NS

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
    _gauge("jobs_in_progress", "scenario", "Number of jobs that have not ended."),
    _counter("jobs_ended", "scenario state", "Number of jobs that have ended, since the vault was made."),
    _counter("events", "type severity", "Number of events, without those of recovery points, since the vault was made."),
)
"""All metrics.  A value that is not known is left out, and never 0."""

_POINT_TYPES = ("CrashConsistent", "ApplicationConsistent")


class VaultMetrics:
    """The metrics of one vault."""

    def __init__(self, context: VaultContext, status: VaultStatus) -> None:
        self._context = context
        self._status = status

    async def text(self) -> str:
        """Return all metrics, as a scrape of Prometheus reads them."""
        items = await self._status.items()
        samples: Samples = {metric.name: [] for metric in METRICS}
        self._roles(samples)
        for item in items:
            _item(samples, item)
        vms = [item.name for item in items]
        await self._context.database.transact(lambda session: _rows(session, samples, vms, self._context.clock))
        return exposition(samples)

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


def _rows(session: Session, samples: Samples, vms: Sequence[str], clock: Clock) -> None:
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
