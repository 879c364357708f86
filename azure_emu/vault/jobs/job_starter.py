"""The start of a job: the state of the item is checked, and the job is inserted, in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.context.states import Operation, require
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.database import find_item
from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.azure_emu.vault.jobs import engine, job_wire
from siterig.azure_emu.vault.model.resources import Job

Prepare = Callable[[Session, ItemRow], tuple[engine.Scenario, dict[str, Any]]]
"""A function that changes the item for an operation, and returns the scenario and the variables of its job."""


class JobStarter:
    """Inserts the jobs of operations into the database, and starts them in the engine."""

    def __init__(self, context: VaultContext, jobs: engine.JobEngine) -> None:
        self._context = context
        self._engine = jobs

    async def start(self, insert: Callable[[Session], Job]) -> Job:
        """Insert a job in one transaction, start it, and return it."""
        job = await self._context.database.transact(insert)
        self._engine.start(job.name)
        self._context.notifications.notify(job.targetObjectName)
        return job

    async def begin(self, vm: str, operation: Operation, prepare: Prepare) -> Job:
        """Start the job of an operation on a protected item.

        Raises:
            RigError: ``VmNotFound``, ``JobInProgress``; ``InvalidState`` if the item's state does not allow the operation.
        """

        def insert(session: Session) -> Job:
            item = find_item(session, vm)
            engine.require_no_job(session, vm)
            require(item, operation)
            before = {"protection_state": item.protection_state, "test_failover_state": item.test_failover_state}
            scenario, variables = prepare(session, item)
            variables |= {engine.BEFORE: before}
            job = engine.enqueue(session, scenario, vm, variables, self._context.clock.wall_ns())
            return job_wire.to_wire(job, cancellable=scenario.tasks[0].cancellable)

        return await self.start(insert)

    async def stop(self, vm: str, operation: str, keys: set[str], may: Callable[[Session, ItemRow], bool]) -> None:
        """Cancel the open job of a VM for an operation that does not wait for it.

        Args:
            vm: the VM.
            operation: the operation, as messages name it.
            keys: the keys of the scenarios that the operation stops.
            may: returns False if the operation would be refused; then no job is stopped.
        """

        def look(session: Session) -> str | None:
            job = engine.open_job(session, vm)
            return job.name if job is not None and job.key in keys and may(session, find_item(session, vm)) else None

        name = await self._context.database.transact(look)
        if name is not None:
            await self._engine.cancel(name, operation)
