"""Commands that list the records of the vault: ``siterig jobs`` and ``siterig events``."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siterig.blockfs.core.clock import SYSTEM_CLOCK, rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import Dir, Json, example, vault
from siterig.cli.tables import style_of

if TYPE_CHECKING:
    from siterig.azure_emu.vault.model.job_parts import ProviderCall
    from siterig.azure_emu.vault.model.resources import Job, JobState

OfVm = Annotated[
    str | None, typer.Option("--vm", metavar="VM", help="Only those of this VM.", autocompletion=completion.vms)
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Only those since a time (RFC 3339), or since a while ago (2h, 30m)."),
]
State = Annotated[
    str | None,
    typer.Option("--state", metavar="STATE", help="Only jobs in this state: InProgress, Succeeded, Failed, Cancelled."),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(epilog=example("siterig jobs --json"))(jobs)
    app.command(epilog=example("siterig events --vm web01 --since 2h"))(events)
    job = typer.Typer(no_args_is_help=True)
    job.command("list", epilog=example("siterig job list --vm web01 --state Failed --since 2h"))(job_list)
    job.command("cancel", epilog=example("siterig job cancel 3f2a9c41"))(cancel)
    app.add_typer(job, name="job", help="List and cancel jobs.", epilog=example("siterig job cancel 3f2a9c41"))


def jobs(
    folder: Dir,
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show one job with its tasks.", autocompletion=completion.jobs)
    ] = None,
    as_json: Json = False,
) -> None:
    """List the jobs of the vault, or show one job with its tasks and errors."""
    if name is None:
        exit_status.run(lambda: _list_jobs(folder, as_json=as_json))
    else:
        exit_status.run(lambda: _show_job(folder, name, as_json=as_json))


def job_list(folder: Dir, vm: OfVm = None, state: State = None, since: Since = None, as_json: Json = False) -> None:
    """List the jobs of the vault, with progress, bytes, duration, chosen point and waits."""
    exit_status.run(lambda: _list_jobs(folder, vm=vm, state=state, since=since, as_json=as_json))


async def _list_jobs(
    folder: Path, *, vm: str | None = None, state: str | None = None, since: str | None = None, as_json: bool
) -> None:
    found = await vault(folder).jobs(vm=vm, state=_job_state(state), since=_time_of(since), with_progress=True)
    if as_json:
        output.print_json(found)
        return
    columns = ("job", "scenario", "VM", "state", "start", "duration", "copied", "point", "now")
    output.print_table(
        columns, [_row(job) for job in found], empty="no jobs yet" if vm is state is since is None else "no jobs"
    )


def _row(job: Job) -> tuple[str, ...]:
    point = job.chosen_point if job.recovery_point is None else job.recovery_point.id
    return (
        job.name,
        job.scenarioName,
        job.targetObjectName,
        job.state,
        job.startTime or "-",
        "-" if job.duration_s is None else output.duration(int(job.duration_s)),
        _copied(job),
        point or "-",
        _now(job) or "-",
    )


def _copied(job: Job) -> str:
    from siterig.core.parsing import format_size

    if job.copied is None:
        return "-"
    text = f"{format_size(job.copied.total_bytes)}, {format_size(job.copied.sent_bytes)} sent"
    return f"{text} after {format_size(job.copied.before_bytes)}" if job.copied.before_bytes else text


def _now(job: Job) -> str:
    """Return what a job that has not ended does now: its task, the wait or the progress of it."""
    from siterig.cli.views.vm_view import copy_text

    task = next((task for task in job.tasks if task.state == "InProgress"), None)
    if task is None:
        return ""
    text = task.friendlyName
    if job.progress is not None and (copy := copy_text(job.progress)):
        text += f": {copy}"
    return text if task.waiting_for is None else f"{text}: waiting: {task.waiting_for}"


async def _show_job(folder: Path, name: str, *, as_json: bool) -> None:
    from siterig.cli.follow import task_state

    job = await vault(folder).job(name=name, with_progress=True)
    if as_json:
        output.print_json(job)
        return
    output.line(f"{job.friendlyName} {job.targetObjectName}: ", (job.state, style_of(job.state)))
    if job.duration_s is not None:
        output.print_lines(output.detail("duration", output.duration(int(job.duration_s))))
    if job.chosen_point is not None:
        output.print_lines(output.detail("chosen point", job.chosen_point))
    if (point := job.recovery_point) is not None:
        rpo = "" if job.rpo_s is None else f", RPO {output.duration(int(job.rpo_s))}"
        output.print_lines(output.detail("recovery point", f"{point.id} ({point.type}) of {point.time}{rpo}"))
    if job.copied is not None:
        output.print_lines(output.detail("copied", f"{_copied(job)} in {output.duration(int(job.copied.duration_s))}"))
    if now := _now(job):
        output.print_lines(output.detail("now", now))
    tasks = [(t.friendlyName, t.name, task_state(t), t.startTime or "-", t.endTime or "-") for t in job.tasks]
    output.print_table(("task", "name", "state", "start", "end"), tasks, empty="no tasks")
    for task in job.tasks:
        for call in task.provider_calls:
            output.line(f"{task.name} called {call.name}: {_call_state(call)}")
    for error in job.errors:
        output.line(f"{error.message} ({error.code})")
        for heading, text in (("cause", error.possibleCauses), ("action", error.recommendedAction)):
            output.print_lines(output.detail(heading, text) if text else [])


def _job_state(text: str | None) -> JobState | None:
    if text is None:
        return None
    from siterig.azure_emu.vault.model.resources import JobState

    known = typing.get_args(JobState)
    found = next((state for state in known if state.lower() == text.lower()), None)
    if found is None:
        raise RigError(Code.BadRequest, f"--state: {text!r} is no state of a job; allowed: {', '.join(known)}")
    return typing.cast("JobState", found)


def _time_of(text: str | None) -> str | None:
    """Return the time of ``--since`` in RFC 3339: a time as it is, a duration counted back from now."""
    if text is None or "-" in text or ":" in text:
        return text
    from siterig.blockfs.documents.quantities import parse_duration

    try:
        ago_ns = parse_duration(text)
    except ValueError as error:
        raise RigError(Code.InvalidTime, f"--since: {error}; allowed: a duration, or a time in RFC 3339") from None
    return rfc3339(max(0, SYSTEM_CLOCK.wall_ns() + output.wall_ahead_ns() - ago_ns))


def _call_state(call: ProviderCall) -> str:
    often = f", {call.attempts} attempts" if call.attempts > 1 else ""
    if call.endTime is None:
        return f"begun {call.startTime}{often}"
    how = "ended" if call.error is None else f"failed with {call.error}"
    return f"{how} {call.endTime}, begun {call.startTime}{often}"


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


def events(
    folder: Dir,
    vm: OfVm = None,
    since: Since = None,
    with_points: Annotated[
        bool, typer.Option("--points", help="Show also the event of each recovery point that was taken.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the events of the vault."""

    async def work() -> None:
        found = await vault(folder).events(vm=vm, since=_time_of(since), with_points=with_points)
        if as_json:
            output.print_json(found)
            return
        rows = [(e.timeOfOccurrence, e.severity, e.affectedObject, e.description, e.eventCode) for e in found]
        output.print_table(("time", "severity", "object", "what", "code"), rows, empty="no events yet")

    exit_status.run(work)
