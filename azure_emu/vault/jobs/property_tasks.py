"""The job that changes properties of a protected VM: the names of the VMs that its failovers make."""

from __future__ import annotations

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context import events, vm_names
from siterig.azure_emu.vault.db.schema import ItemRow, JobRow
from siterig.azure_emu.vault.inventory import target_names
from siterig.azure_emu.vault.jobs.engine import JobContext, Scenario, TaskKind, TaskOutcome, with_warning

NEW, FORMER = "new", "former"
"""The keys of the job's variables: the columns of the item, with the values after and before the change."""
COLUMNS = ("recovery_vm_name", "test_vm_name")


def names_of(item: ItemRow) -> dict[str, str | None]:
    """Return the columns of the chosen names."""
    return {column: getattr(item, column) for column in COLUMNS}


async def update(job: JobContext) -> TaskOutcome | None:
    """Change the names, and warn of those that another VM has."""

    def apply(_session: Session, item: ItemRow) -> None:
        _set(item, job.variables[NEW])

    await job.change(apply)
    warning = await target_names.unavailable(job.context, job.vm)
    return None if warning is None else with_warning(warning)


def _set(item: ItemRow, names: dict[str, str | None]) -> None:
    for column in COLUMNS:
        setattr(item, column, names[column])


def _updated(session: Session, item: ItemRow, job: JobRow) -> None:
    recovered, test = vm_names.chosen(item, "Recovered"), vm_names.chosen(item, "TestFailover")
    text = f"a failover of VM {item.vm!r} makes VM {recovered!r}, a test failover makes VM {test!r}"
    events.record(
        session,
        vm=item.vm,
        code="VmPropertiesUpdated",
        kind="VmReplication",
        severity="OK",
        text=text,
        now_ns=job.end_ns or 0,
    )


def _not_updated(_session: Session, item: ItemRow, job: JobRow) -> None:
    _set(item, job.variables[FORMER])


UPDATE = Scenario(
    key="update-properties",
    name="UpdateVmProperties",
    friendly_name="Update the virtual machine",
    # The service does not allow to cancel it either.
    tasks=(TaskKind("UpdateVmPropertiesTask", "Update the virtual machine properties", update, cancellable=False),),
    succeeded=_updated,
    failed=_not_updated,
    resumed=True,
)
