"""The virtual disks of both sides: what there is, what they do, and growing them."""

from __future__ import annotations

import contextlib
import os
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
import typer

from siterig.azure_emu.vault.model.choices import Side
from siterig.blockfs.contracts.control import DiskHostControl, DiskInfo, HydrationInfo
from siterig.blockfs.contracts.counters import DiskCounters, RequestCounters
from siterig.blockfs.core.clock import SYSTEM_CLOCK, rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import completion, exit_status, output
from siterig.cli.commands import kept
from siterig.cli.commands.options import Dir, Json, example, vault
from siterig.cli.commands.scrub import scrub
from siterig.cli.light_commands import running
from siterig.cli.tables import Line
from siterig.core.parsing import format_size, format_time, parse_disk_name, parse_size
from siterig.rpc import directory

WATCH_S = 1.0
SEEN_S_MAX = 5.0
"""How long to wait at most until the mount shows the new size, which it does at once."""
DiskName = Annotated[
    str, typer.Argument(metavar="VM/NAME", help="The disk, for example web01/os.", autocompletion=completion.disks)
]
SiteVm = Annotated[str, typer.Argument(metavar="VM", help="The VM at the site.", autocompletion=completion.vms)]
OfSide = Annotated[Side | None, typer.Option("--side", help="Side of the disk, if both sides have a disk of this name.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    disk = typer.Typer(no_args_is_help=True)
    disk.command("list", epilog=example("siterig disk list --json"))(list_disks)
    disk.command("stats", epilog=example("siterig disk stats web01/os --watch"))(stats)
    disk.command("scrub", epilog=example("siterig disk scrub web01"))(scrub)
    disk.command("resize", epilog=example("siterig disk resize web01/os 2GiB"))(resize)
    disk.command("attach", epilog=example("siterig disk attach web01 data:1GiB:ext4"))(attach)
    disk.command("protect", epilog=example("siterig disk protect web01/data"))(protect)
    disk.command("unprotect", epilog=example("siterig disk unprotect web01/swap"))(unprotect)
    kept.register(disk)
    app.add_typer(
        disk,
        name="disk",
        help="List, check, grow and attach virtual disks; begin and end their replication.",
        epilog=example("siterig disk list"),
    )


def _hosts(folder: Path) -> dict[Side, DiskHostControl]:
    layout = running(folder)
    return {"site": directory.site(layout), "azure": directory.azure(layout)}


def _json(side: Side, disk: DiskInfo) -> dict[str, object]:
    return {"side": side, **disk.model_dump(mode="json")}


# --- attach, protect, unprotect -----------------------------------------------------------------------------------


def attach(
    folder: Dir,
    vm: SiteVm,
    disk: Annotated[str, typer.Argument(metavar="DISK", help="NAME:SIZE, NAME:SIZE:FILESYSTEM or NAME=IMAGE.")],
    as_json: Json = False,
) -> None:
    """Attach a new disk to a VM at the site, also while the VM is protected and writes."""
    from siterig.cli.commands.vms import disk_specs
    from siterig.cli.follow import with_import_progress

    async def work() -> None:
        specs = await disk_specs([disk], [], [], backing=False)
        api = vault(folder)
        made = await with_import_progress(api, vm, specs, lambda: api.attach_disk(vm=vm, disk=specs[0]))
        if as_json:
            output.print_json(made)
        else:
            rows = [(each.name, format_size(each.size_bytes), each.path) for each in made.disks]
            output.print_table(("disk", "size", "file"), rows, empty=f"{vm} has no disks")

    exit_status.run(work)


def protect(folder: Dir, disk: DiskName, as_json: Json = False) -> None:
    """Replicate a disk of a protected VM that is not replicated: later points have it, older points lack it."""
    from siterig.cli.commands.operations import run_job

    async def work() -> int:
        vm, name = parse_disk_name(disk)
        api = vault(folder)
        return await run_job(api, await api.add_disks(vm=vm, disks=[name]), as_json=as_json)

    raise typer.Exit(exit_status.run(work))


def unprotect(folder: Dir, disk: DiskName, as_json: Json = False) -> None:
    """End the replication of a disk of a protected VM: later points lack it, older points keep it."""
    from siterig.cli.commands.operations import run_job

    async def work() -> int:
        vm, name = parse_disk_name(disk)
        api = vault(folder)
        return await run_job(api, await api.remove_disks(vm=vm, disks=[name]), as_json=as_json)

    raise typer.Exit(exit_status.run(work))


# --- list ---------------------------------------------------------------------------------------------------------


def list_disks(folder: Dir, as_json: Json = False) -> None:
    """List the disks of both sides, the size of their change logs, and the disks that need a resync.

    If a side does not answer, the disks of the other side are printed before the error.
    """

    async def work() -> None:
        disks: list[tuple[Side, DiskInfo]] = []
        failure: RigError | None = None
        for side, host in _hosts(folder).items():
            try:
                disks += [(side, disk) for disk in await host.list_disks()]
            except RigError as error:
                failure = failure or error
        if as_json:
            output.print_json([_json(side, disk) for side, disk in disks])
        elif disks or failure is None:
            columns = (
                "disk",
                "side",
                "size",
                "tracked",
                "generation",
                "unsent log",
                "dirty",
                "snapshot",
                "needs resync",
                "hydration",
                "fenced",
            )
            output.print_table(columns, [_row(side, disk) for side, disk in disks], empty="no disks: siterig vm create")
        if failure is not None:
            raise failure

    exit_status.run(work)


def _row(side: Side, disk: DiskInfo) -> tuple[object, ...]:
    snapshot = _share(disk.snapshot_bytes, disk.snapshot_bytes_max) if disk.snapshot else "-"
    return (
        f"{disk.vm}/{disk.name}",
        side,
        format_size(disk.size_bytes),
        "yes" if disk.tracked else "no",
        disk.generation,
        _share(disk.unsent_log_bytes, disk.log_bytes_max) if disk.tracked else "-",
        format_size(disk.dirty_bytes) if disk.dirty_bytes else "-",
        snapshot,
        disk.needs_resync or "-",
        hydration_text(disk.promotion),
        "yes" if disk.fenced else "no",
    )


def hydration_text(hydration: HydrationInfo | None) -> str:
    """Return the column ``hydration`` of a disk: its progress and the code of the error that stops it."""
    if hydration is None:
        return "-"
    done = f"{hydration.done_bytes * 100 // hydration.total_bytes} %"
    return done if hydration.error_code is None else f"{done}, stopped: {hydration.error_code}"


def _share(used_bytes: int, bytes_max: int | None) -> str:
    used = format_size(used_bytes)
    return used if bytes_max is None else f"{used} of {format_size(bytes_max)}"


# --- one disk -----------------------------------------------------------------------------------------------------


async def _find(folder: Path, text: str, on_side: Side | None) -> tuple[Side, DiskHostControl, DiskInfo]:
    """Return the named disk; a side that does not answer is an error only if it could have the disk."""
    vm, name = parse_disk_name(text)
    found: list[tuple[Side, DiskHostControl, DiskInfo]] = []
    there: list[str] = []
    failure: RigError | None = None
    for side, host in _hosts(folder).items():
        if on_side in (None, side):
            try:
                disks = await host.list_disks()
            except RigError as error:
                failure = failure or error
                continue
            there += [f"{disk.vm}/{disk.name}" for disk in disks]
            found += [(side, host, disk) for disk in disks if (disk.vm, disk.name) == (vm, name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RigError(
            Code.BadRequest, f"disk {text}: both sides have a disk of this name; select one with --side site or --side azure"
        )
    if failure is not None:
        raise failure
    where = "" if on_side is None else f" at side {on_side}"
    raise RigError(Code.DiskNotFound, f"there is no disk {text}{where}; there are: {', '.join(there) or 'none'}")


def resize(
    folder: Dir,
    disk: DiskName,
    size: Annotated[str, typer.Argument(metavar="SIZE", help="The new size, for example 2GiB. A disk can only grow.")],
    side: OfSide = None,
    as_json: Json = False,
) -> None:
    """Grow a disk while it is in use; then grow its file system with its own tools (losetup -c, resize2fs, ...)."""

    async def work() -> None:
        size_bytes = parse_size(size)
        where, host, info = await _find(folder, disk, side)
        info = await host.resize_disk(vm=info.vm, disk=info.name, size_bytes=size_bytes)
        await _until_seen(info)
        if as_json:
            output.print_json(_json(where, info))
        else:
            output.line(f"disk {info.vm}/{info.name} ({where}) has {format_size(info.size_bytes)}: {info.path}")

    exit_status.run(work)


async def _until_seen(disk: DiskInfo) -> None:
    """Wait until the file in the mount has the new size: the kernel learns it from another request.

    The wait also asks for the size, because a loop device of a kernel before 6.17 sees only a size that was asked for.
    """
    with contextlib.suppress(OSError), trio.move_on_after(SEEN_S_MAX):
        seen = partial(trio.to_thread.run_sync, os.stat, disk.path, abandon_on_cancel=True)
        while (await seen()).st_size < disk.size_bytes:
            await SYSTEM_CLOCK.sleep(0.01)


# --- stats --------------------------------------------------------------------------------------------------------


def stats(
    folder: Dir,
    disk: DiskName,
    *,
    side: OfSide = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Print the counters every second, with rates, until Ctrl-C.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show the counters of a disk since it was opened: requests and their durations, change log, snapshot."""

    async def work() -> None:
        if as_json and watch:
            raise RigError(Code.BadRequest, "--json and --watch: they exclude each other: JSON is printed once")
        where, host, info = await _find(folder, disk, side)
        counters, asked_s = await host.counters(vm=info.vm, disk=info.name), SYSTEM_CLOCK.trio_time_s()
        if as_json:
            output.print_json({"side": where, **counters.model_dump(mode="json")})
        elif not watch:
            output.print_lines(counter_lines(where, counters))
        else:
            with output.Drawing(sys.stdout) as drawing:
                drawing.draw(counter_lines(where, counters))
                while True:
                    await SYSTEM_CLOCK.sleep(WATCH_S)
                    before, since_s = counters, asked_s
                    counters, asked_s = await host.counters(vm=info.vm, disk=info.name), SYSTEM_CLOCK.trio_time_s()
                    drawing.draw(counter_lines(where, counters, before=before, passed_s=asked_s - since_s))

    exit_status.run(work)


def counter_lines(
    side: Side, disk: DiskCounters, *, before: DiskCounters | None = None, passed_s: float = 1.0
) -> list[Line]:
    """Return the lines of the counters; with ``before``, the counters of ``passed_s`` seconds ago, also of the rates."""
    if before is not None and before.since_ns != disk.since_ns:
        before = None  # its server was started again, and its counters began at 0
    logged = f"generation {disk.generation}" if disk.tracked else f"not tracked ({disk.needs_resync or 'not requested'})"
    columns = ["requests", "ops", "bytes", "errors", "p50", "p99", "longest"]
    rows = [[kind, *_figures(request)] for kind, request in disk.requests.items()]
    if before is not None:
        columns += ["ops/s", "bytes/s"]
        for row, (kind, request) in zip(rows, disk.requests.items(), strict=True):
            row.extend(rates_between(request, before.requests[kind], passed_s))
    return [
        f"disk {disk.vm}/{disk.name} ({side}): {format_size(disk.size_bytes)}, {logged}",
        f"counted since {rfc3339(disk.since_ns)}",
        "",
        *output.table(columns, rows),
        "",
        *output.table(("figure", "value"), _state(disk)),
    ]


def rates_between(now: RequestCounters, before: RequestCounters, passed_s: float) -> tuple[str, str]:
    """Return the requests and the bytes per second between two readings, ``passed_s`` seconds apart."""
    return f"{(now.ops - before.ops) / passed_s:.0f}", format_size((now.bytes - before.bytes) / passed_s)


def _figures(request: RequestCounters) -> tuple[object, ...]:
    times = (format_time(us) for us in (request.p50_us, request.p99_us, request.longest_us))
    return (request.ops, format_size(request.bytes), request.errors, *times)


def _state(disk: DiskCounters) -> list[tuple[str, str]]:
    log, snapshot_max = disk.log, disk.snapshot_bytes_max
    return [
        ("log written", f"{format_size(log.written_bytes)} in {log.written_records} records"),
        ("log kept", _share(log.kept_bytes, log.kept_bytes_max) if disk.tracked else "-"),
        (
            "longest stall",
            f"{format_time(log.longest_switch_us)} by a switch of segments ({log.segments_switched} so far), "
            f"{format_time(log.longest_append_us)} by a tag",
        ),
        ("dirty", format_size(disk.dirty_bytes) if disk.dirty_bytes else "-"),
        ("snapshot", "-" if snapshot_max is None else _share(disk.snapshot_bytes, snapshot_max)),
    ]
