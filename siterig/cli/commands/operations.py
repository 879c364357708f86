"""Operations on a protected VM: each starts a job, shows it, and succeeds only if the job does."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated

import typer

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, Point, VmName, example, vault
from siterig.cli.follow import follow
from siterig.core.parsing import format_size, parse_point


def register(app: typer.Typer) -> None:
    """Add these commands."""
    failover = typer.Typer(no_args_is_help=True)
    failover.command("test", epilog=example("siterig failover test web01 --point latest-app"))(failover_test)
    failover.command("unplanned", epilog=example("siterig failover unplanned web01 --point latest --json"))(
        failover_unplanned
    )
    failover.command("planned", epilog=example("siterig failover planned web01"))(failover_planned)
    app.add_typer(
        failover, name="failover", help="Create a VM from a recovery point.", epilog=example("siterig failover test web01")
    )
    app.command(epilog=example("siterig cleanup web01"))(cleanup)
    app.command(epilog=example("siterig commit web01"))(commit)
    app.command(epilog=example("siterig failback web01"))(failback)
    app.command(epilog=example("siterig reprotect web01"))(reprotect)
    app.command(epilog=example("siterig resync web01"))(resync)
    app.command(epilog=example("siterig pause web01"))(pause)
    app.command(epilog=example("siterig resume web01"))(resume)


async def run_job(api: VaultApi, job: Job, *, as_json: bool) -> int:
    """Follow a job to its end, print its result, and return the exit status."""
    job = await follow(api, job)
    if as_json:
        output.print_json({"job": job})
    elif job.state == "Succeeded" and job.result is not None:
        rows = [(job.result.name, d.name, format_size(d.size_bytes), d.path) for d in job.result.disks]
        output.print_table(("VM", "disk", "size", "file"), rows, empty=f"{job.result.name} has no disks")
        if job.result.lacking_disks:
            output.notice(f"{job.result.name} lacks disks that are not replicated: {', '.join(job.result.lacking_disks)}")
    return job_status(job)


def job_status(job: Job, *, advice: bool = False) -> int:
    """Print the errors of an ended job, as remarks if it succeeded, and return the exit status.

    ``advice``: print also the cause of each error, and what a user does about it.
    A job that failed because a role is away ends the command as a call to that role does.
    """
    if job.state == "Succeeded":
        for error in job.errors:
            output.notice(f"{error.message} ({error.code})")
        return ExitStatus.OK
    failures = [RigError(Code.of(error.code), error.message) for error in job.errors]
    for failure, error in zip(failures, job.errors, strict=True):
        output.error(failure)
        if advice:
            output.advice(error.possibleCauses, error.recommendedAction)
    not_up = any(failure.code.exit_status == ExitStatus.NOT_UP for failure in failures)
    return ExitStatus.NOT_UP if not_up else ExitStatus.FAILED


def _operate(folder: Path, start: Callable[[VaultApi], Awaitable[Job]], *, as_json: bool) -> None:
    async def work() -> int:
        api = vault(folder)
        return await run_job(api, await start(api), as_json=as_json)

    raise typer.Exit(exit_status.run(work))


def failover_test(folder: Dir, vm: VmName, point: Point = "latest-processed", as_json: Json = False) -> None:
    """Create the VM NAME-test from a recovery point; the source VM continues. siterig cleanup removes it."""
    _operate(folder, lambda api: api.test_failover(vm=vm, point=parse_point(point)), as_json=as_json)


def failover_unplanned(
    folder: Dir,
    vm: VmName,
    point: Point = "latest",
    source_actions: Annotated[
        bool, typer.Option("--source-actions", help="Try to shut down the source first; continue if that fails.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Create the VM from a recovery point on the recovery side, when the site is lost."""
    _operate(
        folder,
        lambda api: api.unplanned_failover(vm=vm, point=parse_point(point), source_actions=source_actions),
        as_json=as_json,
    )


def failover_planned(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Shut down the source, replicate the rest, and fail over without loss."""
    _operate(folder, lambda api: api.planned_failover(vm=vm), as_json=as_json)


def cleanup(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Remove the VM of a test failover."""
    _operate(folder, lambda api: api.cleanup_test_failover(vm=vm), as_json=as_json)


def commit(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Keep the result of a failover or failback; all recovery points of the VM are deleted."""
    _operate(folder, lambda api: api.commit_failover(vm=vm), as_json=as_json)


def failback(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Bring a committed VM back to the site: download its disks there."""
    _operate(folder, lambda api: api.failback(vm=vm), as_json=as_json)


def reprotect(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Reverse the replication: protect a VM again after its failback."""
    _operate(folder, lambda api: api.reprotect(vm=vm), as_json=as_json)


def resync(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Compare both sides and send the chunks that differ."""
    _operate(folder, lambda api: api.resync(vm=vm), as_json=as_json)


def pause(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Pause replication of a VM, for maintenance: no cycle runs, and none is missed, until siterig resume."""
    _operate(folder, lambda api: api.pause_replication(vm=vm), as_json=as_json)


def resume(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Resume replication of a paused VM, with a cycle at once."""
    _operate(folder, lambda api: api.resume_replication(vm=vm), as_json=as_json)
