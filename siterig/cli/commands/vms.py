"""Source VMs, their protection and their recovery points."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from siterig.azure_emu.vault.model.choices import HOURS_DEFAULT, Side
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.sizes import SECTOR_SIZES, check_sectors, known_size
from siterig.blockfs.images.image_formats import FORMATS, ImageFormat
from siterig.cli import completion, exit_status, light_commands, output
from siterig.cli.commands.options import Dir, Json, VmName, example, vault
from siterig.core.parsing import (
    check_schedule,
    format_size,
    interval_notice,
    is_import,
    parse_disk,
    parse_import,
    parse_of_disks,
)

if TYPE_CHECKING:
    from siterig.blockfs.contracts.control import TagKind
    from siterig.blockfs.contracts.disk_spec import DiskSpec

DEFAULT_INTERVAL_S = 300.0

FINALIZE_SCENARIO = "FinalizeProtection"


def register(app: typer.Typer) -> None:
    """Add these commands."""
    vm = typer.Typer(no_args_is_help=True)
    vm.command("create", epilog=example("siterig vm create web01 --disk os:1GiB:ext4 --disk data:1GiB:xfs"))(create)
    vm.command("list", epilog=example("siterig vm list --json"))(list_vms)
    vm.command("rename", epilog=example("siterig vm rename web01 web02"))(rename)
    vm.command("update", epilog=example("siterig vm update web01 --recovery-name web01-dr"))(update)
    vm.command("delete", epilog=example("siterig vm delete web01"))(delete)
    app.add_typer(vm, name="vm", help="Create, list, rename, update and delete VMs.", epilog=example("siterig vm list"))
    app.command(epilog=example("siterig protect web01 --interval 300"))(protect)
    app.command(epilog=example("siterig unprotect web01"))(unprotect)
    app.command(epilog=example("siterig points web01"))(points)
    app.command("take-point", epilog=example("siterig take-point web01 --app-consistent"))(take_point)


def create(
    folder: Dir,
    vm: VmName,
    disk: Annotated[
        list[str],
        typer.Option(
            "--disk",
            metavar="NAME:SIZE[:FS]|NAME=IMAGE[:SIZE]",
            help="A disk. FS is ext4, xfs or btrfs; without it the disk is blank. Or a disk with the contents of an image "
            "file or block device; larger than that with SIZE.",
        ),
    ],
    *,
    format_: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            metavar="[NAME=]FORMAT",
            help=f"Format of all images, or of the image of disk NAME: {', '.join(FORMATS)}. Default: detected.",
            autocompletion=completion.of_disk(FORMATS),
        ),
    ] = None,
    sector_size: Annotated[
        list[str] | None,
        typer.Option(
            "--sector-size",
            metavar="[NAME=]512|4096",
            help="Logical sector size of all disks, or of disk NAME. Default: that of the image, or 512.",
            autocompletion=completion.of_disk([str(size) for size in SECTOR_SIZES]),
        ),
    ] = None,
    backing: Annotated[
        bool,
        typer.Option(
            "--backing",
            help="Do not copy the images: each disk is thin over its image (raw, or a fixed VHD), which is used in place, "
            "never written to, and must stay as it is.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Create a source VM with its disks, which are files in the mount of the site."""
    from siterig.cli.follow import with_import_progress

    async def work() -> None:
        specs = await disk_specs(disk, format_ or [], sector_size or [], backing=backing)
        api = vault(folder)
        vm_made = await with_import_progress(api, vm, specs, lambda: api.create_vm(vm=vm, disks=specs))
        if as_json:
            output.print_json(vm_made)
        else:
            rows = [(d.name, format_size(d.size_bytes), d.path) for d in vm_made.disks]
            output.print_table(("disk", "size", "file"), rows, empty=f"{vm} has no disks")

    exit_status.run(work)


async def disk_specs(disks: list[str], formats: list[str], sector_sizes: list[str], *, backing: bool) -> list[DiskSpec]:
    """Parse the disks to create, in their order, and inspect their images."""
    specs = await _disks(disks, formats, backing=backing)
    wanted = parse_of_disks(
        "--sector-size", sector_sizes, [str(size) for size in SECTOR_SIZES], [spec.name for spec in specs]
    )
    specs = [
        spec.model_copy(update={"sector_bytes": int(wanted[spec.name])}) if spec.name in wanted else spec for spec in specs
    ]
    for spec in specs:
        check_sectors(f"disk {spec.name}", spec.size_bytes, spec.sector_bytes)
    return specs


async def _disks(disks: list[str], formats: list[str], *, backing: bool) -> list[DiskSpec]:
    names = [text.partition("=")[0] for text in disks if is_import(text)]
    if formats and not names:
        raise RigError(Code.BadRequest, "--format: no disk is imported from an image; write --disk NAME=IMAGE")
    format_of = cast("dict[str, ImageFormat]", parse_of_disks("--format", formats, FORMATS, names))
    if backing and not names:
        raise RigError(Code.BadRequest, "--backing: no disk is imported from an image; write --disk NAME=IMAGE")
    make = _thin if backing else _imported
    return [await make(text, format_of) if is_import(text) else parse_disk(text) for text in disks]


async def _thin(text: str, format_of: dict[str, ImageFormat]) -> DiskSpec:
    from siterig.blockfs.contracts.control import BackingImage
    from siterig.blockfs.contracts.disk_spec import DiskSpec
    from siterig.blockfs.images.image_file import open_image

    name, path, size_bytes = parse_import(text)
    wanted = format_of.get(name)
    if wanted not in (None, "raw", "vhd"):
        raise RigError(Code.ImageUnusable, f"{path}: --backing needs a raw image or a fixed VHD, not format {wanted}")
    found = await open_image(Path(path), format_=wanted, read_only=True, note=output.notice)
    found.close()
    if found.is_device:
        raise RigError(
            Code.ImageUnusable,
            f"{path}: is a block device; --backing needs a file, because changes of a device are not noticed",
        )
    backing = BackingImage(path=str(found.path), format=found.format)
    return DiskSpec(name=name, size_bytes=size_bytes or found.size_bytes, backing=backing)


async def _imported(text: str, format_of: dict[str, ImageFormat]) -> DiskSpec:
    from siterig.blockfs.contracts.disk_spec import DiskSpec
    from siterig.blockfs.images import importer

    name, path, size_bytes = parse_import(text)
    source = await importer.look_at(Path(path), format_of.get(name), note=output.notice)
    if size_bytes is not None and size_bytes < source.size_bytes:
        raise RigError(
            Code.DiskTooSmall, f"disk {name}: its size is {size_bytes} bytes; the disk in {path} has {source.size_bytes}"
        )
    if source.remark is not None:
        output.notice(source.remark)
    return DiskSpec(
        name=name,
        size_bytes=size_bytes or source.size_bytes,
        image=str(source.path),
        image_format=source.format,
        sector_bytes=known_size(source.sector_bytes),
    )


def list_vms(folder: Dir, as_json: Json = False) -> None:
    """List the VMs of both sides with the files of their disks."""

    light_commands.list_vms(folder, as_json=as_json)


def protect(
    folder: Dir,
    vm: VmName,
    *,
    interval_s: Annotated[
        float,
        typer.Option(
            "--interval",
            metavar="SECONDS",
            help="Replication interval: 30, 300 or 900 s as in the service; other values exist in this rig only.",
        ),
    ] = DEFAULT_INTERVAL_S,
    app_every_s: Annotated[
        float | None,
        typer.Option(
            "--app-consistent-every", metavar="SECONDS", help="Interval of scheduled application-consistent points."
        ),
    ] = None,
    history_hours: Annotated[
        int,
        typer.Option(
            "--retention",
            metavar="HOURS",
            help="Time for which recovery points are kept: 1 to 24 h; up to 360 h in this rig only.",
        ),
    ] = HOURS_DEFAULT,
    start_at: Annotated[
        str | None,
        typer.Option(
            "--start-at", metavar="HH:MM|TIME", help="Begin the initial replication then: HH:MM (UTC), or RFC 3339."
        ),
    ] = None,
    seed_from: Annotated[
        list[str] | None,
        typer.Option(
            "--seed-from",
            metavar="[NAME=]IMAGE",
            help="An image of disk NAME, or of the only disk, that its managed disk begins with; only differences are sent.",
        ),
    ] = None,
    seed_format: Annotated[
        list[str] | None,
        typer.Option("--seed-format", metavar="[NAME=]FORMAT", help="Format of the images, if it cannot be detected."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="DISK",
            help="A disk that is not replicated: no recovery point has it, and failover VMs lack it.",
            autocompletion=completion.disks_of_vm,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Enable replication of a VM, and wait until it is protected: initial replication, then the first recovery point."""
    from siterig.azure_emu.vault.inventory import disk_limits
    from siterig.azure_emu.vault.points import retention
    from siterig.cli.commands.operations import job_status
    from siterig.cli.commands.seeds import parse_seeds
    from siterig.cli.follow import follow

    async def work() -> int:
        check_schedule(app_every_s)
        seeds = parse_seeds(seed_from or [], seed_format or [])
        for text in filter(None, (interval_notice(interval_s), retention.remark(history_hours))):
            output.notice(text)
        api = vault(folder)
        for disks in (v.disks for v in await api.list_vms() if (v.name, v.side) == (vm, "site")):
            for remark in disk_limits.remarks(vm, [disk for disk in disks if disk.name not in (exclude or ())]):
                output.notice(remark)
        job = await api.enable_protection(
            vm=vm,
            interval_s=interval_s,
            app_consistent_every_s=app_every_s,
            history_hours=history_hours,
            start_at=start_at,
            seeds=seeds,
            exclude=exclude,
        )
        if start_at is not None:
            output.notice(f"the initial replication waits for {start_at}; after Ctrl-C the job {job.name} continues")
        job = await follow(api, job)
        finalize = None
        if job.state == "Succeeded":  # the vault begins the second job with the end of the first
            jobs = [j for j in await api.jobs() if j.scenarioName == FINALIZE_SCENARIO and j.targetObjectName == vm]
            finalize = await follow(api, jobs[0])
        if as_json:
            output.print_json({"job": job, "finalize_job": finalize})
        return job_status(finalize or job, advice=True)

    raise typer.Exit(exit_status.run(work))


def rename(
    folder: Dir,
    vm: VmName,
    name: Annotated[str, typer.Argument(metavar="NEW", help="The new name.")],
    as_json: Json = False,
) -> None:
    """Rename a VM on both sides, with its protection, points and history; nothing may use its disks."""

    from siterig.cli.commands.operations import run_job

    async def work() -> int:
        api = vault(folder)
        return await run_job(api, await api.rename_vm(vm=vm, name=name), as_json=as_json)

    raise typer.Exit(exit_status.run(work))


def update(
    folder: Dir,
    vm: VmName,
    *,
    recovery_name: Annotated[
        str | None,
        typer.Option(
            "--recovery-name", metavar="NAME", help='Name of the VM that a failover makes; "" for that of the source VM.'
        ),
    ] = None,
    test_name: Annotated[
        str | None,
        typer.Option(
            "--test-name", metavar="NAME", help='Name of the VM of a test failover; "" for the recovery name and -test.'
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Choose the names of the VMs that failovers of a protected VM make; names without an option stay as they are."""

    from siterig.cli.commands.operations import run_job

    async def work() -> int:
        if recovery_name is None and test_name is None:
            raise RigError(Code.BadRequest, "no option; allowed: --recovery-name, --test-name")
        api = vault(folder)
        job = await api.update_vm_properties(vm=vm, recovery_vm_name=recovery_name, test_vm_name=test_name)
        return await run_job(api, job, as_json=as_json)

    raise typer.Exit(exit_status.run(work))


def delete(
    folder: Dir,
    vm: VmName,
    side: Annotated[
        Side | None, typer.Option("--side", help="Side of the VM, if both sides have a VM of this name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Delete a VM that is not protected, with its disks and logs; nothing may use its disks."""

    from siterig.cli.commands.operations import run_job

    async def work() -> int:
        api = vault(folder)
        return await run_job(api, await api.delete_vm(vm=vm, side=side), as_json=as_json)

    raise typer.Exit(exit_status.run(work))


def unprotect(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Disable replication of a VM: its recovery points and managed disks are deleted, its own disks stay."""

    from siterig.cli.commands.operations import run_job

    async def work() -> int:
        api = vault(folder)
        return await run_job(api, await api.disable_protection(vm=vm), as_json=as_json)

    raise typer.Exit(exit_status.run(work))


def points(
    folder: Dir,
    vm: VmName,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Show only the newest N.")] = None,
    as_json: Json = False,
) -> None:
    """List the recovery points of a VM, newest first."""

    async def work() -> None:
        found = await vault(folder).points(vm=vm, limit=limit)
        if as_json:
            output.print_json(found)
        else:
            columns = ["id", "type", "time", "position", "name"]
            rows: list[list[object]] = [[p.id, p.type, p.time, p.position, p.name] for p in found]
            if any(p.pinned for p in found):
                columns.append("pinned")
                rows = [[*row, "yes" if p.pinned else ""] for row, p in zip(rows, found, strict=True)]
            if any(p.lacking_disks for p in found):
                columns.append("lacks disks")
                rows = [[*row, ", ".join(p.lacking_disks)] for row, p in zip(rows, found, strict=True)]
            if any(p.downgraded_because for p in found):
                columns.append("not application-consistent because")
                rows = [[*row, p.downgraded_because or ""] for row, p in zip(rows, found, strict=True)]
            output.print_table(columns, rows, empty=f"{vm} has no recovery points yet")

    exit_status.run(work)


def take_point(
    folder: Dir,
    vm: VmName,
    app_consistent: Annotated[
        bool, typer.Option("--app-consistent", help="Freeze the mounted file systems while the point is taken.")
    ] = False,
    name: Annotated[str, typer.Option("--name", help="Name of the recovery point.")] = "manual",
    as_json: Json = False,
) -> None:
    """Take a recovery point now, outside the schedule; crash-consistent by default."""

    async def work() -> None:
        kind: TagKind = "ApplicationConsistent" if app_consistent else "CrashConsistent"
        point = await vault(folder).create_point(vm=vm, kind=kind, name=name)
        if as_json:
            output.print_json(point)
        else:
            output.line(f"{point.type} point {point.id} at position {point.position}")
        if point.downgraded_because is not None:
            output.notice(f"the point is not application-consistent: {point.downgraded_because}")

    exit_status.run(work)
