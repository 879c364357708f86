"""The job engine: runs scenarios task by task, and keeps every step in the database.

A *scenario* is an official job type: its tasks, and the effect of its success or failure on the item.  Each task body must
be safe to run again from its start: the engine repeats it after a kill in a scenario that is resumed, and after the absence
of a role.  The end of a job is one transaction: the last task, the job, the item's new state, the event and a follow-on job.

Multi-task safety: all methods run on the trio thread.  The rule "one open job for each VM" is checked in the transaction
that inserts the job (:func:`enqueue`); the transactions are serial (database.py).
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import structlog
import trio
from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session, joinedload

from siterig.azure_emu.vault.context import events
from siterig.azure_emu.vault.context.vault_context import VaultContext
from siterig.azure_emu.vault.db.schema import ItemRow, JobErrorRow, JobRow, TaskRow
from siterig.azure_emu.vault.jobs.job_errors import each_of
from siterig.azure_emu.vault.jobs.job_wire import COPIED, rpo_s
from siterig.azure_emu.vault.model.resources import JobState, RecoveryPoint, Vm
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress

T = TypeVar("T")
_log = structlog.get_logger()

ROOM_RETRY_S = 1.0
"""The time after which a job that waits for room on the host's disk tries again."""
BEFORE, CHANGING = "before", "changing"
"""Keys of a job's variables: the states of the item before the operation; whether the job has begun to change things."""
STOP_ANSWER_S = 10.0
"""The time that another role has to stop its work for a job that a user cancels."""
PROGRESS_ANSWER_S = 2.0
"""The time that the site has to report its progress to a display."""
NOTICED_S = 5.0
"""A role that is away for this time while a task runs is shown as the reason of a wait."""


@dataclass(frozen=True)
class TaskOutcome:
    """The end of a task, if it is not plainly Completed."""

    state: JobState
    description: str | None
    error: RigError | None = None


SKIPPED = TaskOutcome("Other", "Skipped")
INFORMATION = TaskOutcome("Succeeded", "CompletedWithInformation")


def with_warning(warning: RigError) -> TaskOutcome:
    """Return the outcome of a task that succeeded with a warning."""
    return TaskOutcome("Succeeded", "CompletedWithInformation", warning)


def failed_but_continued(error: RigError) -> TaskOutcome:
    """Return the outcome of a task that failed although the scenario continues."""
    return TaskOutcome("Failed", None, error)


@dataclass
class JobContext:
    """The context and variables of a running job, for its task bodies.  ``variables`` is JSON, saved when a task ends."""

    context: VaultContext
    vm: str
    variables: dict[str, Any]
    begin_changes: Callable[[], Awaitable[None]]
    """Records durably that the checks of the body are done; a failure after it leads to the scenario's failed state."""
    save_variables: Callable[[], Awaitable[None]]
    """Makes the variables durable before the end of the task."""
    task: int = 0
    """The ordinal of the task that runs."""
    result_vm: Vm | None = None
    result_point: RecoveryPoint | None = None

    async def change(self, change: Callable[[Session, ItemRow], T]) -> T:
        """Change the item in one transaction and wake all tasks that wait for it."""
        return await self.context.change_item(self.vm, change)


@dataclass(frozen=True)
class TaskKind:
    """A task type.  While a role that the body needs is away, the engine waits, and then runs the body again.

    ``waits_for_roles`` False: the engine waits only for a role that the supervisor is restarting; the loss of any other role
    is a result of the task.  ``checks``: the body changes nothing of the VM, or nothing before it calls
    :attr:`JobContext.begin_changes`.  A job that fails before that leaves the item in the states that it had.
    ``cancellable`` False: a user cannot cancel the job during this task, because it must be completed; otherwise a cancelled
    job leaves the item in the state of a failed one.
    """

    name: str
    friendly_name: str
    body: Callable[[JobContext], Awaitable[TaskOutcome | None]]
    waits_for_roles: bool = True
    checks: bool = False
    cancellable: bool = True


@dataclass(frozen=True)
class Scenario:
    """A job type.  ``key`` belongs to the rig and is unique; ``name`` is the official scenarioName.

    ``succeeded`` and ``failed`` change the item inside the transaction that ends the job; ``failed`` only if the job had
    begun to change things.  ``succeeded`` can return the key of a scenario that then starts for the same VM.
    ``without_item`` replaces ``succeeded`` in a job of a VM that need not be protected.  ``resumed``: after a kill the job
    continues with the first task that has not ended; otherwise it fails and names that task.  ``progress`` returns the
    progress of the job; a scenario that copies nothing has none.  ``stop`` stops work that the job has begun in another
    role, when a user cancels it.
    """

    key: str
    name: str
    friendly_name: str
    tasks: tuple[TaskKind, ...]
    resumed: bool
    succeeded: Callable[[Session, ItemRow, JobRow], str | None] = lambda _session, _item, _job: None
    failed: Callable[[Session, ItemRow, JobRow], None] = lambda _session, _item, _job: None
    without_item: Callable[[Session, JobRow], None] | None = None
    progress: Callable[[VaultContext, str, dict[str, Any]], Awaitable[VmProgress]] | None = None
    stop: Callable[[VaultContext, str], Awaitable[None]] | None = None


_JOB = select(JobRow).where(JobRow.name == bindparam("name")).options(joinedload(JobRow.tasks))
_OPEN_JOB = select(JobRow).where(JobRow.vm == bindparam("vm"), JobRow.end_ns.is_(None))


def open_job(session: Session, vm: str) -> JobRow | None:
    """Return the job of this VM that has not ended; None if there is none."""
    return session.scalars(_OPEN_JOB, {"vm": vm}).one_or_none()


def require_no_job(session: Session, vm: str) -> None:
    """Raise ``JobInProgress`` if a job of this VM has not ended."""
    job = open_job(session, vm)
    if job is not None:
        raise RigError(
            Code.JobInProgress,
            f"job {job.name} ({job.friendly_name}) of VM {vm!r} is in progress; "
            "a VM has one job at a time: wait for its end",
            recoverable=True,
        )


def enqueue(session: Session, scenario: Scenario, vm: str, variables: dict[str, Any], now_ns: int) -> JobRow:
    """Insert a job with its tasks; the caller starts it after the commit (:meth:`JobEngine.start`)."""
    require_no_job(session, vm)
    job = JobRow(
        name=str(uuid.uuid4()),
        vm=vm,
        key=scenario.key,
        scenario=scenario.name,
        friendly_name=scenario.friendly_name,
        state="InProgress",
        start_ns=now_ns,
        variables=variables,
    )
    job.tasks = [
        TaskRow(ordinal=ordinal, name=kind.name, friendly_name=kind.friendly_name, state="NotStarted")
        for ordinal, kind in enumerate(scenario.tasks)
    ]
    session.add(job)
    session.flush()
    return job


def _key_and_variables(session: Session, vm: str) -> tuple[str, dict[str, Any]] | None:
    job = open_job(session, vm)
    return None if job is None else (job.key, dict(job.variables))


async def site_progress(context: VaultContext, vm: str, _variables: dict[str, Any]) -> VmProgress:
    """Return the progress of a job whose data the site sends; empty if the site does not answer within a moment."""
    if context.roles.role_error("agent") is None:
        with context.clock.real.move_on_after(PROGRESS_ANSWER_S):
            return await context.site.progress(vm=vm)
    return VmProgress(vm=vm, phase=None, disks=[])


@dataclass
class _Running:
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    vm: str = ""
    in_body: bool = False
    """True while a task's body runs; False while the engine waits before the next attempt."""
    waits_for: RigError | None = None
    cancelled_by: str = ""
    """The operation or person that cancelled the job, as messages name it."""
    scenario: Scenario | None = None
    task: TaskKind | None = None
    """The task that runs or is about to run; None before the first one."""
    by_user: bool = False


class JobEngine:
    """Runs the jobs of one vault."""

    def __init__(self, context: VaultContext, scenarios: tuple[Scenario, ...]) -> None:
        self._context = context
        self._scenarios = {scenario.key: scenario for scenario in scenarios}
        self._nursery: trio.Nursery | None = None
        self._running: dict[str, _Running] = {}

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        """Recover the jobs that a kill interrupted, then run jobs until cancelled; a cancelled engine leaves jobs open."""
        async with trio.open_nursery() as nursery:
            for name in await self._context.database.transact(self._recover_interrupted_jobs):
                self._spawn(nursery, name)
            nursery.start_soon(self._watch_roles)
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def progress(self, vm: str) -> VmProgress | None:
        """Return the progress of the open job of a VM; None if there is no open job.

        The job decides which role it asks.  A job that copies nothing has no progress and asks no role, so a lost or hanging
        site does not delay the display of a failover.
        """
        found = await self._context.database.transact(lambda session: _key_and_variables(session, vm))
        if found is None:
            return None
        key, variables = found
        progress = self._scenarios[key].progress
        if progress is None:
            return VmProgress(vm=vm, phase=None, disks=[])
        return await progress(self._context, vm, variables)

    def waiting_for(self, name: str) -> str | None:
        """Return the reason for which the running task of a job waits; None if it does not wait."""
        running = self._running.get(name)
        return None if running is None or running.waits_for is None else running.waits_for.message

    def start(self, name: str) -> None:
        """Run a job that was enqueued and committed."""
        if self._nursery is None:
            raise RuntimeError("Vault.run must be running before an operation is asked for")
        self._spawn(self._nursery, name)

    def _spawn(self, nursery: trio.Nursery, name: str) -> None:
        self._running[name] = _Running()
        nursery.start_soon(self._run_job, name)

    async def cancel(self, name: str, operation: str) -> None:
        """Stop a job for an operation on its VM, and return when the job has ended: as Cancelled, or by itself."""
        running = self._running.get(name)
        if running is not None:
            running.cancelled_by = f"{operation} of the VM"
            running.scope.cancel()
            await running.ended.wait()

    def is_cancellable(self, name: str) -> bool:
        """Return False if the job is in a task that a user cannot cancel."""
        running = self._running.get(name)
        return running is None or running.task is None or running.task.cancellable

    def check_cancellable(self, name: str) -> None:
        """Raise ``InvalidState`` if the job is in a task that a user cannot cancel; a job that has ended passes."""
        running = self._running.get(name)
        if running is None or running.task is None or running.task.cancellable or running.scenario is None:
            return
        others = ", ".join(kind.name for kind in running.scenario.tasks if kind.cancellable)
        raise RigError(
            Code.InvalidState,
            f"job {name} ({running.scenario.friendly_name}) cannot be cancelled in task {running.task.name}, which must be "
            f"completed; it can be cancelled in: {others}",
        )

    async def cancel_for_user(self, name: str) -> None:
        """Stop a job and the work that it has begun in other roles; return when it has ended.

        Raises:
            RigError: ``InvalidState`` if its task must be completed.
        """
        self.check_cancellable(name)
        running = self._running.get(name)
        if running is not None:
            running.cancelled_by, running.by_user = "a user", True
            running.scope.cancel()
            await running.ended.wait()

    async def _stop_elsewhere(self, running: _Running) -> None:
        """Stop the work of a cancelled job in another role; one that is away is asked by the next job of the VM."""
        stop = None if running.scenario is None else running.scenario.stop
        if not running.by_user or stop is None or self._context.roles.role_error("agent") is not None:
            return
        try:
            with self._context.clock.real.move_on_after(STOP_ANSWER_S):
                await stop(self._context, running.vm)
        except RigError as error:
            _log.warning("cancelled_work_not_stopped", vm=running.vm, code=error.code, reason=error.message)

    def _recover_interrupted_jobs(self, session: Session) -> list[str]:
        """Return the names of the open jobs that are to be resumed, and let the other open jobs fail."""
        resumed = []
        for job in session.scalars(select(JobRow).where(JobRow.end_ns.is_(None)).order_by(JobRow.id)):
            if self._scenarios[job.key].resumed:
                resumed.append(job.name)
                continue
            task = next(task for task in job.tasks if task.end_ns is None)
            message = f"the vault was stopped while task {task.name} of job {job.name} ({job.friendly_name}) was in progress"
            self._abort(session, job, "Failed", RigError(Code.VaultStopped, f"{message}; start the operation again"))
        return resumed

    async def _run_job(self, name: str) -> None:
        running = self._running[name]
        follow_on = None
        try:
            with running.scope:
                follow_on = await self._run_tasks(name)
            if running.scope.cancelled_caught:
                await self._stop_elsewhere(running)
                error = RigError(Code.Cancelled, f"the job was cancelled by {running.cancelled_by}")
                await self._transact(name, lambda session, job: self._abort(session, job, "Cancelled", error))
        finally:
            del self._running[name]
            running.ended.set()
        if follow_on is not None and self._nursery is not None:
            self._spawn(self._nursery, follow_on)

    async def _run_tasks(self, name: str) -> str | None:
        """Run the remaining tasks of a job; return the name of the follow-on job, if any."""
        scenario, vm, variables, first = await self._transact(name, self._load)
        running = self._running[name]
        running.scenario, running.vm = scenario, vm

        def change_now(job: JobRow) -> None:
            variables[CHANGING] = True
            job.variables = job.variables | {CHANGING: True}

        async def begin_changes() -> None:
            await self._transact(name, lambda _session, job: change_now(job))

        async def save_variables() -> None:
            await self._transact(name, lambda _session, job: setattr(job, "variables", dict(variables)))

        def begin(job: JobRow, ordinal: int) -> None:
            self._begin_task(job, ordinal)
            if not scenario.tasks[ordinal].checks:
                change_now(job)

        context = JobContext(self._context, vm, variables, begin_changes, save_variables)
        follow_on = None
        running.task = scenario.tasks[first]
        await self._transact(name, lambda _session, job: begin(job, first))
        for ordinal in range(first, len(scenario.tasks)):
            kind = scenario.tasks[ordinal]
            context.task = ordinal
            try:
                outcome = await self._run_body(name, kind, context)
            except RigError as error:
                await self._fail(name, error)
                return None
            except Exception as error:
                # A bug must not end the other jobs and the reports: it ends this job, with an error and a traceback.
                _log.exception("job_crashed", job=name, task=kind.name)
                await self._fail(name, RigError(Code.InternalError, f"task {kind.name} crashed: {error!r}"))
                return None
            last = ordinal == len(scenario.tasks) - 1

            def end(session: Session, job: JobRow, *, n: int, how: TaskOutcome | None, finish: bool) -> str | None:
                self._end_task(job, n, how, context)
                if finish:
                    return self._complete(session, scenario, job)
                begin(job, n + 1)
                return None

            running.task = kind if last else scenario.tasks[ordinal + 1]  # before it begins: it decides about a cancel
            follow_on = await self._transact(
                name,
                lambda session, job, n=ordinal, how=outcome, fin=last: end(session, job, n=n, how=how, finish=fin),  # type: ignore[misc]
            )
        return follow_on

    async def _run_body(self, name: str, kind: TaskKind, context: JobContext) -> TaskOutcome | None:
        """Run the body of a task, several times if necessary (:meth:`Roles.retry_while_away`)."""
        running = self._running[name]

        def on_wait(reason: RigError | None) -> None:
            running.in_body = reason is None
            self._show_wait(name, context.vm, reason or self._context.roles.lasting_error(NOTICED_S))

        async def body() -> TaskOutcome | None:
            running.in_body = True
            return await kind.body(context)

        try:
            return await self._context.roles.retry_while_away(body, on_wait=on_wait, lost_is_final=not kind.waits_for_roles)
        finally:
            running.in_body = False
            self._show_wait(name, context.vm, None)

    def _show_wait(self, name: str, vm: str, reason: RigError | None) -> None:
        """Show the reason in the job's task and in the vault's waits; None ends the wait."""
        self._running[name].waits_for = reason
        if reason is None:
            self._context.waits.clear(f"job {name}", vm=vm)
        else:
            self._context.waits.set(f"job {name}", reason.code, reason.message, vm=vm)

    async def _watch_roles(self) -> None:
        """Show the error of a role in every running job, because a call to a role that hangs may never return."""
        roles = self._context.roles
        while True:
            await roles.wait_for_change(NOTICED_S if roles.is_any_away() else math.inf)
            reason = roles.lasting_error(NOTICED_S)
            for name, running in self._running.items():
                if running.in_body:
                    self._show_wait(name, running.vm, reason)

    async def _transact(self, name: str, change: Callable[[Session, JobRow], T]) -> T:
        vm = ""

        def transaction(session: Session) -> T:
            nonlocal vm
            job = session.scalars(_JOB, {"name": name}).unique().one()
            vm = job.vm
            return change(session, job)

        while True:
            try:
                result = await self._context.database.transact(transaction)
                break
            except RigError as error:
                # A job whose progress cannot be written waits for room: it can neither continue nor end.
                if error.code != Code.DiskFull:
                    raise
                _log.warning("job_waits_for_room", job=name, reason=error.message, next_try_s=ROOM_RETRY_S)
                await self._context.clock.real.sleep(ROOM_RETRY_S)
        self._context.notifications.notify(vm)
        return result

    def _load(self, _session: Session, job: JobRow) -> tuple[Scenario, str, dict[str, Any], int]:
        first = next(task.ordinal for task in job.tasks if task.end_ns is None)
        return self._scenarios[job.key], job.vm, dict(job.variables), first

    def _begin_task(self, job: JobRow, ordinal: int) -> None:
        task = job.tasks[ordinal]
        task.state = "InProgress"
        task.start_ns = task.start_ns or self._now_ns(job)

    def _now_ns(self, job: JobRow) -> int:
        """Return the wall time, or the latest time of the job if the clock was set back: times stay in order."""
        known = [time_ns for task in job.tasks for time_ns in (task.start_ns, task.end_ns) if time_ns is not None]
        return max([self._context.clock.wall_ns(), job.start_ns, *known])

    def _end_task(self, job: JobRow, ordinal: int, outcome: TaskOutcome | None, context: JobContext) -> None:
        task = job.tasks[ordinal]
        how = outcome or TaskOutcome("Succeeded", "Completed")
        task.state, task.state_description, task.end_ns = how.state, how.description, self._now_ns(job)
        if how.error is not None:
            job.errors.append(JobErrorRow(code=how.error.code, message=how.error.message))
        job.variables = dict(context.variables)
        job.result_vm = context.result_vm.model_dump() if context.result_vm else job.result_vm
        job.result_point = context.result_point.model_dump() if context.result_point else job.result_point

    def _complete(self, session: Session, scenario: Scenario, job: JobRow) -> str | None:
        now_ns = self._now_ns(job)
        ends = {(task.state, task.state_description) for task in job.tasks}
        plain = ends <= {("Succeeded", "Completed"), ("Other", "Skipped")}
        job.state, job.end_ns = "Succeeded", now_ns
        job.state_description = "Completed" if plain else "CompletedWithInformation"
        if scenario.without_item is not None:
            follow_on = None
            scenario.without_item(session, job)
        else:
            item = session.get(ItemRow, job.vm)
            if item is None:
                raise RuntimeError(f"job {job.name} lost its item {job.vm}")
            follow_on = scenario.succeeded(session, item, job)
        session.flush()
        text = f"{job.friendly_name} of VM {job.vm!r}: {job.state_description}{_point_text(job)}"
        events.record(
            session, vm=job.vm, code=f"{job.scenario}Succeeded", kind="JobStatus", severity="OK", text=text, now_ns=now_ns
        )
        if follow_on is None:
            return None
        return enqueue(session, self._scenarios[follow_on], job.vm, {}, now_ns).name

    async def _fail(self, name: str, error: RigError) -> None:
        await self._transact(name, lambda session, job: self._abort(session, job, "Failed", error))

    def _abort(self, session: Session, job: JobRow, state: Literal["Failed", "Cancelled"], error: RigError) -> None:
        now_ns = self._now_ns(job)
        for task in job.tasks:
            if task.state == "InProgress":
                task.state, task.end_ns = state, now_ns
        job.state, job.end_ns = state, now_ns
        job.errors += [JobErrorRow(code=each.code, message=each.message) for each in each_of(error)]
        item = session.get(ItemRow, job.vm)
        if item is not None and BEFORE in job.variables and CHANGING not in job.variables:
            for column, value in job.variables[BEFORE].items():
                setattr(item, column, value)
        elif item is not None:
            self._scenarios[job.key].failed(session, item, job)
        severity: events.Severity = "Critical" if state == "Failed" else "Warning"
        text = f"{job.friendly_name} of VM {job.vm!r}: {error.message}"
        events.record(
            session, vm=job.vm, code=f"{job.scenario}{state}", kind="JobStatus", severity=severity, text=text, now_ns=now_ns
        )


def _point_text(job: JobRow) -> str:
    """Return the point of a failover and its RPO, for the event of its end; empty for every other job."""
    if job.result_point is None:
        return ""
    point = RecoveryPoint.model_validate(job.result_point)
    return f"; point {point.id} ({point.type}) of {point.time}, position {point.position}, RPO {rpo_s(job, point):.1f} s"


async def note_copied(job: JobContext) -> None:
    """Note the figures of the copy that the site has just ended; without an answer of the site there are none."""
    with suppress(RigError):
        progress = await site_progress(job.context, job.vm, {})
        if progress.last_copy is not None:
            job.variables[COPIED] = progress.last_copy.model_dump()
