"""Recovery points as files: mounted read-only next to the disks of recovered VMs, and exported as images."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import trio
import typer

from siterig.azure_emu.vault.model.api import VaultApi
from siterig.azure_emu.vault.model.resources import MountedDisk, MountedPoint, RecoveryPoint
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess
from siterig.blockfs.core.sizes import SECTOR_BYTES
from siterig.blockfs.images import vhd
from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import POINTS, Dir, Json, VmName, example, vault
from siterig.cli.light_commands import running
from siterig.cli.reading_again import read_served
from siterig.core.parsing import format_size, parse_point
from siterig.images import image_export
from siterig.rpc import directory

CLEAN_UP_S = 15.0

Chosen = Annotated[
    str | None,
    typer.Option(
        "--point", metavar="POINT", help=f"{POINTS}.", show_default="latest-processed", autocompletion=completion.points
    ),
]
Position = Annotated[
    int | None,
    typer.Option("--position", metavar="N", help="Any position, also between points: the state after all writes up to it."),
]
Time = Annotated[
    str | None,
    typer.Option(
        "--time", metavar="RFC3339", help="Any time: the state after all writes up to it, for example 2026-11-21T22:13:17Z."
    ),
]
Selected = Annotated[
    str,
    typer.Argument(
        metavar="POINT",
        help="The id or name of a recovery point, latest-processed or latest-app.",
        autocompletion=completion.points,
    ),
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    point = typer.Typer(no_args_is_help=True)
    point.command("list", epilog=example("siterig point list web01 --mounted"))(list_points)
    point.command("mount", epilog=example("siterig point mount web01 --time 2026-11-21T22:13:17Z"))(mount)
    point.command("unmount", epilog=example("siterig point unmount web01 @4711"))(unmount)
    point.command("export", epilog=example("siterig point export web01 --disk os --format qcow2 --to os.qcow2"))(export)
    point.command("pin", epilog=example("siterig point pin web01 before-upgrade"))(pin)
    point.command("unpin", epilog=example("siterig point unpin web01 before-upgrade"))(unpin)
    point.command("delete", epilog=example("siterig point delete web01 before-upgrade"))(delete)
    app.add_typer(
        point,
        name="point",
        help="Mount and export earlier states of the disks of a VM; pin and delete recovery points.",
        epilog=example("siterig point mount web01"),
    )


# --- list ---------------------------------------------------------------------------------------------------------


def list_points(
    folder: Dir,
    vm: VmName,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Show at most N points.")] = None,
    only_mounted: Annotated[bool, typer.Option("--mounted", help="Show only mounted points.")] = False,
    as_json: Json = False,
) -> None:
    """List the recovery points and the mounted points of a VM, newest first."""

    async def work() -> None:
        api = vault(folder)
        mounted = await api.mounted_points(vm=vm)
        points = [] if only_mounted else await api.points(vm=vm, limit=limit)
        if as_json:
            output.print_json({"points": points, "mounted": mounted})
            return
        rows = _rows(points, mounted)
        columns = ("position", "id", "type", "time", "name", "mounted")
        output.print_table(columns, rows, empty=f"{vm} has no {'mounted' if only_mounted else 'recovery'} points")
        for state in mounted:
            for remark in filter(None, (state.broken, state.damage)):
                output.notice(f"recovery/{vm}/{state.name}: {remark}")

    exit_status.run(work)


def _rows(points: list[RecoveryPoint], mounted: list[MountedPoint]) -> list[tuple[object, ...]]:
    """Return the rows, newest first; a mount between points, and a second mount of a point, has its own row."""
    rows: list[tuple[int, list[object]]] = [(p.position, [p.position, p.id, p.type, p.time, p.name, ""]) for p in points]
    of_point = {row[1]: row for _, row in rows}
    for state in mounted:
        point, where = state.recovery_point, f"recovery/{state.vm}/{state.name}"
        shown = where if state.broken is None else f"{where} (broken)"
        row = of_point.get(point.id) if point is not None else None
        if row is not None and not row[5]:
            row[5] = shown
        elif point is not None and row is None:
            kind, time = point.type, point.time
            rows.append((state.position, [state.position, point.id, kind, time, point.name, shown]))
        else:
            rows.append((state.position, [state.position, "", "", state.time or "", "", shown]))
    return [tuple(row) for _, row in sorted(rows, key=lambda row: -row[0])]


# --- pin and delete -----------------------------------------------------------------------------------------------


def pin(folder: Dir, vm: VmName, point: Selected, as_json: Json = False) -> None:
    """Pin a recovery point: retention keeps it, and every later state, until it is unpinned."""
    _change(folder, lambda api: api.pin_point(vm=vm, point=parse_point(point), pinned=True), "is pinned", as_json=as_json)


def unpin(folder: Dir, vm: VmName, point: Selected, as_json: Json = False) -> None:
    """Unpin a recovery point: retention decides again how long it is kept."""
    _change(
        folder, lambda api: api.pin_point(vm=vm, point=parse_point(point), pinned=False), "is not pinned", as_json=as_json
    )


def delete(folder: Dir, vm: VmName, point: Selected, as_json: Json = False) -> None:
    """Delete a recovery point that is not the newest one, not pinned and not in use."""
    _change(folder, lambda api: api.delete_point(vm=vm, point=parse_point(point)), "was deleted", as_json=as_json)


def _change(folder: Path, call: Callable[[VaultApi], Awaitable[RecoveryPoint]], done: str, *, as_json: bool) -> None:
    async def work() -> None:
        point = await call(vault(folder))
        if as_json:
            output.print_json(point)
        else:
            output.line(f"{point.type} point {point.id} ({point.name}) at position {point.position} {done}")

    exit_status.run(work)


# --- mount and unmount --------------------------------------------------------------------------------------------


def mount(
    folder: Dir,
    vm: VmName,
    *,
    point: Chosen = None,
    position: Position = None,
    time: Time = None,
    as_json: Json = False,
) -> None:
    """Mount the disks of a VM at an earlier state as read-only files, until siterig point unmount."""

    async def work() -> None:
        made = await vault(folder).mount_point(
            vm=vm, point=None if point is None else parse_point(point), position=position, time=time
        )
        if as_json:
            output.print_json(made)
        else:
            rows = [(made.name, made.position, d.name, format_size(d.size_bytes), d.path) for d in made.disks]
            output.print_table(("mounted", "position", "disk", "size", "file"), rows, empty=f"{vm} has no disks")
        _tell_defects(made)

    exit_status.run(work)


def _tell_defects(mounted_point: MountedPoint) -> None:
    if mounted_point.damage is not None:
        output.notice(mounted_point.damage)
    if mounted_point.lacking_disks:
        lacking = ", ".join(mounted_point.lacking_disks)
        output.notice(f"VM {mounted_point.vm!r} has disks that were not replicated, so this state lacks them: {lacking}")


def unmount(
    folder: Dir,
    vm: VmName,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="Name of the folder of the mounted point: id of a point, @POSITION, or a time.",
            autocompletion=completion.mounted,
        ),
    ],
    as_json: Json = False,
) -> None:
    """Unmount a mounted point."""

    async def work() -> None:
        await vault(folder).unmount_point(vm=vm, name=name)
        if as_json:
            output.print_json({"vm": vm, "name": name})

    exit_status.run(work)


# --- export -------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _mounted(
    api: VaultApi, vm: str, *, point: str | None, position: int | None, time: str | None
) -> AsyncIterator[MountedPoint]:
    """Mount a state for the duration of the block under a new name; the vault unmounts it when this process ends."""
    name = f"export-{uuid.uuid4().hex[:12]}"
    made = await api.mount_point(
        vm=vm,
        point=None if point is None else parse_point(point),
        position=position,
        time=time,
        name=name,
        process=HostProcess.own(),
    )
    try:
        yield made
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(CLEAN_UP_S):
            await api.unmount_point(vm=vm, name=name)


def _disk(mounted_point: MountedPoint, name: str | None) -> MountedDisk:
    there = ", ".join(disk.name for disk in mounted_point.disks)
    if name is None:
        if len(mounted_point.disks) == 1:
            return mounted_point.disks[0]
        raise RigError(Code.BadRequest, f"VM {mounted_point.vm!r} has disks {there}: select one with --disk")
    for disk in mounted_point.disks:
        if disk.name == name:
            return disk
    if name in mounted_point.lacking_disks:
        message = f"disk {name!r} of VM {mounted_point.vm!r} was not replicated, so this state lacks it; it has: {there}"
        raise RigError(Code.DiskNotFound, message)
    raise RigError(Code.DiskNotFound, f"VM {mounted_point.vm!r} has no disk {name!r}; it has: {there}")


def export(
    folder: Dir,
    vm: VmName,
    *,
    to: Annotated[
        Path, typer.Option("--to", metavar="FILE", help="The image to create, complete or not at all; or a block device.")
    ],
    disk: Annotated[
        str | None,
        typer.Option(
            "--disk",
            metavar="NAME",
            help="Name of the disk; optional if the VM has one disk.",
            autocompletion=completion.disks_of_vm,
        ),
    ] = None,
    format_: Annotated[
        image_export.ExportFormat, typer.Option("--format", help="Format of the image; vhd means a fixed VHD.")
    ] = "raw",
    point: Chosen = None,
    position: Position = None,
    time: Time = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing FILE, or overwrite a block device.")] = False,
    as_json: Json = False,
) -> None:
    """Write an earlier state of a disk of a VM to an image file."""

    async def work() -> None:
        image_export.check(to, format_, force=force)
        async with _mounted(vault(folder), vm, point=point, position=position, time=time) as mounted_point:
            _tell_defects(mounted_point)
            source = _disk(mounted_point, disk)
            path = source.vhd if format_ == "vhd" else source.path
            if path is None:
                raise RigError(
                    Code.InvalidDiskSize,
                    f"{vm}/{source.name} has {source.size_bytes} bytes: {vhd.WHY_NOT}; export it as vhdx",
                )
            if source.sector_bytes != SECTOR_BYTES and format_ != "vhdx":
                output.notice(
                    f"disk {vm}/{source.name} declares sectors of {source.sector_bytes} bytes, which format {format_} "
                    f"cannot express: give --sector-size {source.sector_bytes} when it is imported, or export it as vhdx"
                )
            disk_bytes, sector_bytes, image = source.size_bytes, source.sector_bytes, Path(path)
            shown = f"{vm}/{source.name} at {mounted_point.position}"

            async def write() -> None:
                with output.bar(shown, disk_bytes) as advance:
                    await image_export.export(image, to, format_, force=force, advance=advance, sector_bytes=sector_bytes)

            await read_served(directory.supervisor(running(folder)), "azure", image, write, output.notice)
        size_bytes = source.size_bytes if to.is_block_device() else to.stat().st_size
        if as_json:
            fields = {
                "vm": vm,
                "disk": source.name,
                "position": mounted_point.position,
                "recovery_point": mounted_point.recovery_point,
            }
            output.print_json({**fields, "file": str(to), "format": format_, "file_bytes": size_bytes})
        else:
            output.line(
                f"{to}: {vm}/{source.name} at position {mounted_point.position}, {format_}, {format_size(size_bytes)}"
            )

    exit_status.run(work)
