"""What commands print: tables and progress for people, JSON for scripts.

Results go to stdout, everything on the way there to stderr; a job's tasks are drawn live on a terminal and told line
by line elsewhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import trio
from pydantic import BaseModel
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from azure_emu.ports import DiskSpec
from azure_emu.vault.api import Job, Task, VaultApi, Vm
from blockfs.errors import RigError
from blockfs.progress import VmProgress
from siterig.values import format_size

POLL_S = 0.25
_WIDTH_IN_A_PIPE = 500
_ROWS_DRAWN_MAX = 200
_STYLES = {"Succeeded": "green", "Failed": "red", "InProgress": "yellow", "Critical": "red", "Warning": "yellow"}
_STYLES |= {"Normal": "green", "ready": "green", "failed": "red", "restarting": "yellow", "held": "yellow", "hung": "red"}


def out() -> Console:
    """For results.  In a pipe or a file a table is as wide as it needs to be: a line is a row."""
    console = Console(highlight=False, soft_wrap=True)
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, width=_WIDTH_IN_A_PIPE)


def err() -> Console:
    """For notices and progress."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def print_json(value: object) -> None:
    """One JSON document; models as their fields."""

    def plain(item: object) -> Any:
        if isinstance(item, BaseModel):
            return item.model_dump(mode="json")
        raise TypeError(f"{type(item).__name__} has no JSON form")

    print(json.dumps(value, default=plain, indent=2))


def notice(text: str) -> None:
    """A remark that is no result."""
    err().print(f"siterig: note: {text}", markup=False, soft_wrap=True)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A plain table; values with a meaning (states) are coloured."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*(Text(_cell(value), style=_STYLES.get(str(value), "")) for value in row))
    return result


def age(since_ns: int) -> str:
    """How long ago a wall-clock time was, in two units at most: ``3 s``, ``2 min 5 s``, ``4 h 10 min``."""
    seconds = max(0, (time.time_ns() - since_ns) // 1_000_000_000)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def _cell(value: object) -> str:
    """A name may say anything, but must not draw on the terminal or begin a line."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in str(value))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str) -> None:
    """The table, or what to say where it would have no row."""
    console = out()
    if not rows:
        console.print(empty, markup=False)
    elif console.is_terminal and len(rows) <= _ROWS_DRAWN_MAX:
        console.print(table(columns, rows))
    else:
        print("\n".join(_plain_lines(columns, rows)))


def _plain_lines(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Iterator[str]:
    """As :func:`table`, a line a row, and without its colours: in a pipe, and where drawing would take seconds."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[n]) for row in cells) for n in range(len(columns))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _bars(progress: VmProgress | None) -> Iterable[RenderableType]:
    if progress is None or progress.phase is None:
        return
    for disk in progress.disks:
        grid = Table.grid(padding=(0, 1))
        done, total = disk.done_bytes, max(disk.total_bytes, 1)
        label = f"  {progress.phase}  {disk.disk}"
        figures = f"{format_size(done)} of {format_size(disk.total_bytes)}, {format_size(disk.sent_bytes)} sent"
        grid.add_row(label, ProgressBar(total=total, completed=done, width=30), figures)
        yield grid
    if progress.detail:
        yield Text(f"  {progress.detail}")


def task_state(task: Task) -> str:
    """For people: the service calls a task that had nothing to do ``Other``, and says so beside it."""
    return task.stateDescription or task.state if task.state == "Other" else task.state


def _drawn(job: Job, progress: VmProgress | None) -> RenderableType:
    head = Text(f"{job.friendlyName} {job.targetObjectName}: ").append(job.state, _STYLES.get(job.state, ""))
    marks = {"Succeeded": "✓", "Failed": "✗", "InProgress": "…", "Other": "-"}
    tasks = [
        Text(f"  {marks.get(task.state, ' ')} {task.friendlyName}", style=_STYLES.get(task.state, "")) for task in job.tasks
    ]
    waits = [Text(f"    waiting: {_cell(task.waiting_for)}") for task in job.tasks if task.waiting_for is not None]
    return Group(head, *tasks, *waits, *_bars(progress))


async def _progress(vault: VaultApi, vm: str) -> VmProgress | None:
    try:
        return await vault.progress(vm=vm)
    except RigError:
        return None  # a picture, not a result: the job says what matters


@contextmanager
def bar(what: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal, nothing elsewhere."""
    console = err()
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total_bytes)

        def advance(done_bytes: int) -> None:
            progress.update(task, advance=done_bytes)

        yield advance


async def while_imported(vault: VaultApi, vm: str, disks: Sequence[DiskSpec], make: Callable[[], Awaitable[Vm]]) -> Vm:
    """Make a VM, with a progress bar of the images that its disks are filled from."""
    total_bytes = sum(disk.size_bytes for disk in disks if disk.image is not None)
    if not total_bytes or not err().is_terminal:
        return await make()
    with bar(f"{vm}: import", total_bytes) as advance:

        async def watch() -> None:
            shown_bytes = 0
            while True:
                await trio.sleep(POLL_S)
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


async def follow(vault: VaultApi, job: Job) -> Job:
    """Show a job until it has ended; its last state."""
    console = err()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            while True:
                progress = await _progress(vault, job.targetObjectName) if job.endTime is None else None
                live.update(_drawn(job, progress), refresh=True)
                if job.endTime is not None:
                    return job
                await trio.sleep(POLL_S)
                job = await vault.job(name=job.name)
    told: dict[str, str] = {}
    told_wait: str | None = None
    while True:
        for task in job.tasks:
            if task.waiting_for not in (None, told_wait):
                told_wait = task.waiting_for
                console.print(
                    f"{job.friendlyName} {job.targetObjectName}: {task.friendlyName}: waiting: {told_wait}", markup=False
                )
            if told.get(task.name) != task.state and task.state != "NotStarted":
                told[task.name] = task.state
                console.print(
                    f"{job.friendlyName} {job.targetObjectName}: {task.friendlyName}: {task_state(task)}", markup=False
                )
        if job.endTime is not None:
            console.print(f"{job.friendlyName} {job.targetObjectName}: {job.state}", markup=False)
            return job
        await trio.sleep(POLL_S)
        job = await vault.job(name=job.name)
