"""Commands that list the records of the vault: ``siterig jobs`` and ``siterig events``."""

from __future__ import annotations

from typing import Annotated

import typer

from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import Dir, Json, example, vault
from siterig.cli.follow import task_state
from siterig.cli.tables import style_of


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog=example("siterig jobs --json"))(jobs)
    app.command(epilog=example("siterig events"))(events)
    job = typer.Typer(no_args_is_help=True)
    job.command("cancel", epilog=example("siterig job cancel 3f2a9c41"))(cancel)
    app.add_typer(job, name="job", help="Cancel a job.", epilog=example("siterig job cancel 3f2a9c41"))


def jobs(
    folder: Dir,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show one job with its tasks.", autocompletion=completion.jobs)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the jobs of the vault, or show one job with its tasks and errors."""

    async def work() -> None:
        api = vault(folder)
        if name is None:
            all_jobs = await api.jobs()
            if as_json:
                output.print_json(all_jobs)
                return
            rows = [
                (j.name, j.scenarioName, j.targetObjectName, j.state, j.startTime or "-", j.endTime or "-") for j in all_jobs
            ]
            output.print_table(("job", "scenario", "VM", "state", "start", "end"), rows, empty="no jobs yet")
            return
        job = await api.job(name=name)
        if as_json:
            output.print_json(job)
            return
        output.line(f"{job.friendlyName} {job.targetObjectName}: ", (job.state, style_of(job.state)))
        tasks = [(t.friendlyName, t.name, task_state(t), t.startTime or "-", t.endTime or "-") for t in job.tasks]
        output.print_table(("task", "name", "state", "start", "end"), tasks, empty="no tasks")
        for error in job.errors:
            output.line(f"{error.message} ({error.code})")

    exit_status.run(work)


def cancel(
    folder: Dir,
    name: Annotated[
        str,
        typer.Argument(metavar="JOB", help="Name of the job, or its beginning.", autocompletion=completion.cancellable_jobs),
    ],
    as_json: Json = False,
) -> None:
    """Cancel a job, and return when it has ended; the VM is left as by a failed job, and the operation can be repeated."""

    async def work() -> None:
        job = await vault(folder).cancel_job(name=name)
        if as_json:
            output.print_json({"job": job})
        else:
            output.line(f"{job.friendlyName} {job.targetObjectName}: ", (job.state, style_of(job.state)))

    exit_status.run(work)


def events(folder: Dir, as_json: Json = False) -> None:
    """List the events of the vault."""

    async def work() -> None:
        found = await vault(folder).events()
        if as_json:
            output.print_json(found)
            return
        rows = [(e.timeOfOccurrence, e.severity, e.affectedObject, e.description, e.eventCode) for e in found]
        output.print_table(("time", "severity", "object", "what", "code"), rows, empty="no events yet")

    exit_status.run(work)
