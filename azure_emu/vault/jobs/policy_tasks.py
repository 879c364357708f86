"""The policy of a protected VM: its limits, and the job that changes it while the VM replicates.

The vault has the truth: the item changes first, then the schedule at the site.  After a kill of the vault the job continues;
an agent that was killed, or whose call was lost, asks the vault when it starts.  The retention concerns the vault only.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.db.schema import ItemRow, JobRow
from siterig.azure_emu.vault.jobs.engine import JobContext, Scenario, TaskKind
from siterig.azure_emu.vault.jobs.pause_tasks import count_cycles_from_now
from siterig.azure_emu.vault.model.choices import OFFICIAL_INTERVALS_S
from siterig.azure_emu.vault.points.retention import remark as history_remark
from siterig.blockfs.core.errors import Code, RigError

INTERVAL_S_MIN, INTERVAL_S_MAX = 1.0, 86400.0
NEW, FORMER = "new", "former"
"""The keys of the job's variables: the columns of the item, with the values after and before the change."""
COLUMNS = ("interval_s", "app_consistent_every_s", "history_hours")


def check_policy(interval_s: float, app_consistent_every_s: float | None) -> None:
    """Check a policy (``InvalidPolicy`` names the key, its value and the limits); the rig allows more intervals."""
    if not INTERVAL_S_MIN <= interval_s <= INTERVAL_S_MAX:
        raise RigError(
            Code.InvalidPolicy,
            f"interval_s is {interval_s:g}; allowed: 30, 300 or 900 as in the service; in this rig any value from "
            f"{INTERVAL_S_MIN:g} to {INTERVAL_S_MAX:g}",
        )
    if app_consistent_every_s is not None and not interval_s <= app_consistent_every_s <= INTERVAL_S_MAX:
        raise RigError(
            Code.InvalidPolicy,
            f"app_consistent_every_s is {app_consistent_every_s:g}; allowed: from interval_s ({interval_s:g}) to "
            f"{INTERVAL_S_MAX:g}, or none",
        )


def policy_of(item: ItemRow) -> dict[str, Any]:
    """Return the columns of the policy of an item."""
    return {column: getattr(item, column) for column in COLUMNS}


def record_remarks(session: Session, item: ItemRow, now_ns: int) -> None:
    """Record an event for each value of the policy that the service does not have for Hyper-V."""
    found = []
    if item.interval_s not in OFFICIAL_INTERVALS_S:
        found.append(f"interval_s {item.interval_s:g} of VM {item.vm!r} is rig-only: the service has 30, 300 and 900")
    retention = history_remark(item.history_hours)
    if retention is not None:
        found.append(f"VM {item.vm!r}: {retention}")
    for text in found:
        events.record(
            session, vm=item.vm, code="RigOnlyPolicy", kind="VmReplication", severity="Warning", text=text, now_ns=now_ns
        )


async def modify(job: JobContext) -> None:
    """Change the policy of the item, and then the schedule at the site."""
    new, former = job.variables[NEW], job.variables[FORMER]

    def apply(session: Session, item: ItemRow) -> bool:
        _set(item, new)
        if new["interval_s"] != former["interval_s"]:
            # Cycles are counted by the interval, so those of the former interval do not count any more.
            count_cycles_from_now(session, item, rig_clock.elapsed_ns(session, job.context.clock))
        return any(new[column] != former[column] for column in ("interval_s", "app_consistent_every_s"))

    if await job.change(apply):
        await job.context.site.change_schedule(
            vm=job.vm, interval_s=new["interval_s"], app_consistent_every_s=new["app_consistent_every_s"]
        )


def _set(item: ItemRow, policy: dict[str, Any]) -> None:
    for column in COLUMNS:
        setattr(item, column, policy[column])


def _modified(session: Session, item: ItemRow, job: JobRow) -> None:
    now_ns = job.end_ns or 0
    app_s = item.app_consistent_every_s
    text = (
        f"the policy of VM {item.vm!r} is now: interval {item.interval_s:g} s, retention {item.history_hours} h, "
        f"application-consistent points {'on demand' if app_s is None else f'every {app_s:g} s'}"
    )
    events.record(session, vm=item.vm, code="PolicyChanged", kind="VmReplication", severity="OK", text=text, now_ns=now_ns)
    record_remarks(session, item, now_ns)


def _not_modified(_session: Session, item: ItemRow, job: JobRow) -> None:
    _set(item, job.variables[FORMER])


# The name of the task is this rig's choice: no recording shows the tasks of this scenario.
MODIFY = Scenario(
    key="modify-policy",
    name="ModifyProtectionProfile",
    friendly_name="Modify settings of the replication policy",
    tasks=(TaskKind("ModifyProtectionProfileTask", "Modifying the replication policy", modify),),
    succeeded=_modified,
    failed=_not_modified,
    resumed=True,
)
