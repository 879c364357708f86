"""Task bodies that pause and resume the replication of a VM.

The vault has the truth.  The item changes before the site is called, and an agent that is paused asks the vault at intervals
whether it still is.  So after a kill, or a call whose answer was lost, the agent follows the item.
"""

from __future__ import annotations

from sqlalchemy import delete
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events, rig_clock
from siterig.azure_emu.vault.db.schema import CycleRow, ItemRow, JobRow
from siterig.azure_emu.vault.jobs.engine import JobContext, Scenario, TaskKind
from siterig.azure_emu.vault.monitoring import health

PAUSED_NS = "paused_ns"
"""The key of a resuming job's variables for the time since which the VM was paused."""


async def pause(job: JobContext) -> None:
    """Pause the item, and then the cycles at the site."""

    def mark(session: Session, item: ItemRow) -> None:
        if item.paused_ns is None:
            item.paused_ns = job.context.clock.wall_ns()
        health.clear_errors(session, item.vm)  # it is not retried any more

    await job.change(mark)
    await job.context.site.pause(vm=job.vm)


async def resume(job: JobContext) -> None:
    """Resume the item, and then the cycles at the site; cycles that could not run meanwhile were not missed."""

    def mark(session: Session, item: ItemRow) -> None:
        item.paused_ns = None
        count_cycles_from_now(session, item, rig_clock.elapsed_ns(session, job.context.clock))

    await job.change(mark)
    await job.context.site.resume(vm=job.vm)


def count_cycles_from_now(session: Session, item: ItemRow, elapsed_ns: int) -> None:
    """Begin to count the cycles of an item: none before ``elapsed_ns`` (the rig's clock) was missed."""
    item.protected_since_elapsed_ns = elapsed_ns
    session.execute(delete(CycleRow).where(CycleRow.vm == item.vm))


def _paused(session: Session, item: ItemRow, job: JobRow) -> None:
    text = f"replication of VM {item.vm!r} is paused; siterig resume {item.vm} continues it"
    events.record(
        session, vm=item.vm, code=health.PAUSED, kind="VmHealth", severity="Warning", text=text, now_ns=job.end_ns or 0
    )


def _resumed(session: Session, item: ItemRow, job: JobRow) -> None:
    text = f"replication of VM {item.vm!r} continues"
    events.record(
        session, vm=item.vm, code="ReplicationResumed", kind="VmHealth", severity="OK", text=text, now_ns=job.end_ns or 0
    )


def _not_paused(_session: Session, item: ItemRow, _job: JobRow) -> None:
    item.paused_ns = None


def _not_resumed(_session: Session, item: ItemRow, job: JobRow) -> None:
    item.paused_ns = job.variables[PAUSED_NS]


# The names are this rig's choice: the service pauses at the Hyper-V host only (Suspend-VMReplication).
PAUSE = Scenario(
    key="pause",
    name="PauseReplication",
    friendly_name="Pause replication",
    tasks=(TaskKind("PauseReplicationTask", "Pausing replication at the site", pause),),
    succeeded=_paused,
    failed=_not_paused,
    resumed=True,
)
RESUME = Scenario(
    key="resume",
    name="ResumeReplication",
    friendly_name="Resume replication",
    tasks=(TaskKind("ResumeReplicationTask", "Resuming replication at the site", resume),),
    succeeded=_resumed,
    failed=_not_resumed,
    resumed=True,
)
