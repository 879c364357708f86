"""Shows work until it has ended: a job's tasks, and the import of a new VM's images."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence

import trio

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import Job, Task, Vm
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.progress import DiskProgress, VmProgress
from siterig.cli import output
from siterig.cli.tables import Line, style_of
from siterig.core.interruption import interrupted
from siterig.core.parsing import format_size

POLL_S = 0.25
_MARKS = {"Succeeded": "✓", "Failed": "✗", "InProgress": "…", "Other": "-"}


def task_state(task: Task) -> str:
    """Return the state of a task for people: a task that had nothing to do is ``Other`` at the service, and skipped here."""
    return task.stateDescription or task.state if task.state == "Other" else task.state


async def follow(vault: VaultApi, job: Job) -> Job:
    """Show a job until it has ended; returns its last state.  After Ctrl-C the job continues, and a notice names it."""
    try:
        return await (_draw if output.may_draw(sys.stderr) else _print)(vault, job)
    except BaseException as error:
        if interrupted(error):
            output.notice(
                f"job {job.name} ({_title(job)}) continues; its state: siterig jobs {job.name}; to end it: "
                f"siterig job cancel {job.name}"
            )
        raise


async def _print(vault: VaultApi, job: Job) -> Job:
    told: dict[str, str] = {}
    told_wait: str | None = None
    while True:
        for task in job.tasks:
            if task.waiting_for not in (None, told_wait):
                told_wait = task.waiting_for
                output.progress(f"{_title(job)}: {task.friendlyName}: waiting: {told_wait}")
            if told.get(task.name) != task.state and task.state != "NotStarted":
                told[task.name] = task.state
                output.progress(f"{_title(job)}: {task.friendlyName}: {task_state(task)}")
        if job.endTime is not None:
            output.progress(f"{_title(job)}: {job.state}")
            return job
        await SYSTEM_CLOCK.sleep(POLL_S)
        job = await vault.job(name=job.name)


async def _draw(vault: VaultApi, job: Job) -> Job:
    with output.Drawing(sys.stderr) as drawing:
        while True:
            progress = await _progress(vault, job.targetObjectName) if job.endTime is None else None
            drawing.draw(_lines(job, progress), bars_of(progress))
            if job.endTime is not None:
                return job
            await SYSTEM_CLOCK.sleep(POLL_S)
            job = await vault.job(name=job.name)


def _title(job: Job) -> str:
    return f"{job.friendlyName} {job.targetObjectName}"


def _lines(job: Job, progress: VmProgress | None) -> list[Line]:
    lines: list[Line] = [[f"{_title(job)}: ", (job.state, style_of(job.state))]]
    for task in job.tasks:
        lines.append([(f"  {_MARKS.get(task.state, ' ')} {task.friendlyName}", style_of(task.state))])
        if task.waiting_for is not None:
            lines.append([f"    waiting: {task.waiting_for}"])
    if progress is not None and progress.phase is not None and progress.detail:
        lines.append(f"  {progress.detail}")
    return lines


def bars_of(progress: VmProgress | None) -> list[output.Bar]:
    """Return a bar for each disk that the agent works on; no bar if the agent did not answer."""
    if progress is None or progress.phase is None:
        return []
    phase = progress.phase
    return [output.Bar(f"{phase}  {disk.disk}", disk.done_bytes, disk.total_bytes, _sent(disk)) for disk in progress.disks]


def _sent(disk: DiskProgress) -> str:
    return f"{format_size(disk.sent_bytes)} sent"


async def _progress(vault: VaultApi, vm: str) -> VmProgress | None:
    try:
        return await vault.progress(vm=vm)
    except RigError:
        return None  # a picture, not a result: the job says what matters


async def with_import_progress(vault: VaultApi, vm: str, disks: Sequence[DiskSpec], make: Callable[[], Awaitable[Vm]]) -> Vm:
    """Make a VM, with a progress bar of the images that its disks are filled from."""
    total_bytes = sum(disk.size_bytes for disk in disks if disk.image is not None)
    if not total_bytes or not output.may_draw(sys.stderr):
        return await make()
    with output.bar(f"{vm}: import", total_bytes) as advance:

        async def watch() -> None:
            shown_bytes = 0
            while True:
                await SYSTEM_CLOCK.sleep(POLL_S)
                progress = await _progress(vault, vm)
                done_bytes = sum(disk.done_bytes for disk in progress.disks) if progress is not None else 0
                if done_bytes > shown_bytes:
                    advance(done_bytes - shown_bytes)
                    shown_bytes = done_bytes

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            made = await make()
            nursery.cancel_scope.cancel()
    return made
