"""Old disks at the site that a failback replaced and kept, for they had been written to after the failover."""

from __future__ import annotations

from typing import Annotated

import typer

from siterig.blockfs.contracts.control import KeptImage
from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import Dir, Json, VmName, example
from siterig.cli.light_commands import running
from siterig.core.parsing import format_size
from siterig.rpc import directory


def register(disk: typer.Typer) -> None:
    """Add ``disk kept``."""
    kept = typer.Typer(no_args_is_help=True)
    kept.command("list", epilog=example("siterig disk kept list web01"))(list_kept)
    kept.command("delete", epilog=example("siterig disk kept delete web01 os-20261129T141500Z.img"))(delete_kept)
    disk.add_typer(
        kept,
        name="kept",
        help="List and delete old disks that a failback replaced and kept.",
        epilog=example("siterig disk kept list"),
    )


def list_kept(
    folder: Dir,
    vm: Annotated[
        str | None, typer.Argument(metavar="[VM]", help="Show only the images of this VM.", autocompletion=completion.vms)
    ] = None,
    as_json: Json = False,
) -> None:
    """List old disks that a failback replaced and kept as raw image files at the site."""

    async def work() -> None:
        disks = await directory.site(running(folder)).list_disks(vm=vm)
        images = [(disk.vm, image) for disk in disks for image in disk.kept]
        if as_json:
            output.print_json([{"vm": of, **image.model_dump(mode="json")} for of, image in images])
        else:
            output.print_table(
                ("VM", "disk", "size", "used", "file"), [_row(of, image) for of, image in images], empty="none"
            )

    exit_status.run(work)


def _row(vm: str, image: KeptImage) -> tuple[object, ...]:
    return (vm, image.disk, format_size(image.size_bytes), format_size(image.allocated_bytes), image.path)


def delete_kept(
    folder: Dir,
    vm: VmName,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="File name of the image, without a folder.", autocompletion=completion.kept)
    ],
    as_json: Json = False,
) -> None:
    """Delete an old disk that a failback kept; changes made to it after the failover are then lost."""

    async def work() -> None:
        await directory.site(running(folder)).delete_kept(vm=vm, file=file)
        if as_json:
            output.print_json({"vm": vm, "deleted": file})

    exit_status.run(work)
