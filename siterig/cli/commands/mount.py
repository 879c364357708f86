"""One image as a disk, by itself: no rig is needed."""

from __future__ import annotations

import contextlib
import logging
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from siterig.blockfs.core.errors import Code, ExitStatus, RigError
from siterig.blockfs.images import vhd
from siterig.cli import exit_status, output
from siterig.cli.commands.options import (
    QUEUE,
    THREADS,
    FuseQueue,
    FuseThreads,
    JsonLines,
    PortableFuse,
    example,
    fuse_options_of,
    seed_option,
)
from siterig.cli.log_notes import log_as_notes
from siterig.cli.shown_faults import ShownFaults
from siterig.core.parsing import check_file_name, format_size
from siterig.images.image_mount import Mounted, MountListener, MountRequest, expose
from siterig.scenarios.faults.rules import FaultRules


class FormatOption(StrEnum):
    """The formats, as written on the command line."""

    RAW = "raw"
    VHD = "vhd"


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command(epilog=example("siterig mount disk.img --mnt m --log"))(mount)


def mount(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="A raw image, or a fixed VHD.")],
    *,
    where: Annotated[Path, typer.Option("--mnt", metavar="DIR", help="Folder to mount on: an empty one, or a new one.")],
    log: Annotated[
        bool, typer.Option("--log", help="Record every write in a change log, NAME.NNNNNN.hrl next to the image.")
    ] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse every write.")] = False,
    format_: Annotated[
        FormatOption | None,
        typer.Option("--format", help="Format of the image. Default: detected from name and contents."),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Name of the disk. Default: the name of the image without its suffix."),
    ] = None,
    faults: Annotated[
        Path | None,
        typer.Option("--faults", metavar="FILE", help="TOML file of fault rules, armed before the disk is there."),
    ] = None,
    seed: Annotated[
        int | None,
        seed_option("Seed of random choices of faults. Default: that of the file, or a random one."),
    ] = None,
    power_loss: Annotated[
        bool, typer.Option("--power-loss", help="Keep the old bytes of unsynced writes, for siterig power-loss DIR.")
    ] = False,
    portable_fuse: PortableFuse = False,
    fuse_threads: FuseThreads = THREADS,
    fuse_queue: FuseQueue = QUEUE,
    as_json: JsonLines = False,
) -> None:
    """Expose an image as a disk, DIR/NAME.img, until it is unmounted.

    Ctrl-C, umount DIR or fusermount3 -u DIR unmounts it. A fault rule that did not fire as often as it expects makes exit
    status 1.
    """

    async def work() -> bool:
        if log and read_only:
            raise RigError(Code.BadRequest, "--log and --read-only: they exclude each other: a read-only image has no log")
        if name is not None:
            check_file_name("disk", name)
        log_as_notes(logging.WARNING)
        request = MountRequest(
            image=image,
            where=where,
            name=name,
            tracked=log,
            read_only=read_only,
            format=None if format_ is None else format_.value,
            fuse_options=fuse_options_of(fuse_threads, fuse_queue, portable=portable_fuse),
            faults=None if faults is None else _rules(faults),
            seed=seed,
            keeps_unsynced=power_loss,
        )
        shown = ShownFaults(as_json=as_json)

        def ready(mounted: Mounted) -> None:
            if as_json:
                output.print_json_line({"mounted": _mounted_json(mounted)})
            else:
                _print_mounted(mounted)

        listener = MountListener(ready=ready, note=output.notice, injected=shown.injected, ended=shown.ended)
        try:
            mounted = await expose(request, listener)
        finally:
            shown.close()
        with contextlib.suppress(BrokenPipeError):  # a script may have read the first line only
            if as_json:
                output.print_json_line({"unmounted": _unmounted_json(mounted)})
            else:
                _print_unmounted(mounted)
        return all(verdict.ok for verdict in mounted.verdicts)

    if not exit_status.run(work):
        raise typer.Exit(ExitStatus.FAILED)


def _rules(file: Path) -> FaultRules:
    from siterig.scenarios.faults.rule_files import read_rules

    return read_rules(file)


def _vhd(mounted: Mounted) -> Path | None:
    return mounted.disk.with_suffix(".vhd") if vhd.can_be_vhd(mounted.image.size_bytes) else None


def _print_mounted(mounted: Mounted) -> None:
    image, state, where = mounted.image, mounted.alone.disk.state, mounted.disk.parent
    kind = "fixed VHD" if image.format == "vhd" else "raw"
    can = ", read-only" if image.read_only else ""
    output.line(f"mounted {image.path} ({kind}, {format_size(image.size_bytes)}{can}) as {mounted.disk}")
    if (as_vhd := _vhd(mounted)) is not None:
        output.line(f"  as a fixed VHD, read-only: {as_vhd}")
    if state.tracked:
        output.line(f"  every write is logged, generation {state.generation}: {mounted.alone.segments()[-1]}, ...")
    if (armed := mounted.faults.armed) or mounted.faults.seed_is_given:
        output.line(f"  {len(armed)} {'fault' if len(armed) == 1 else 'faults'}, seed {mounted.faults.seed}")
    output.notice(f"Ctrl-C or umount {where} ends it")


def _bytes(segments: list[Path]) -> int:
    total = 0
    for path in segments:
        with contextlib.suppress(FileNotFoundError):  # deleted by somebody meanwhile
            total += path.stat().st_size
    return total


def _print_unmounted(mounted: Mounted) -> None:
    output.line(f"unmounted {mounted.disk.parent}")
    state, segments = mounted.alone.disk.state, mounted.alone.segments()
    if segments:
        size = format_size(_bytes(segments))
        row = str(segments[0]) if len(segments) == 1 else f"{segments[0]} to {segments[-1].name}, {len(segments)} segments"
        output.line(f"  the log of generation {state.generation}: {row}, {size}")


def _mounted_json(mounted: Mounted) -> dict[str, object]:
    image, as_vhd = mounted.image, _vhd(mounted)
    return {
        "image": str(image.path),
        "format": image.format,
        "size_bytes": image.size_bytes,
        "read_only": image.read_only,
        "disk": str(mounted.disk),
        "vhd": None if as_vhd is None else str(as_vhd),
        "log": _log_json(mounted),
        "faults": {"seed": mounted.faults.seed, "armed": mounted.faults.armed},
    }


def _unmounted_json(mounted: Mounted) -> dict[str, object]:
    return {
        "image": str(mounted.image.path),
        "log": _log_json(mounted),
        "faults": {"seed": mounted.faults.seed, "verdicts": mounted.verdicts},
    }


def _log_json(mounted: Mounted) -> dict[str, object] | None:
    state = mounted.alone.disk.state
    if not state.tracked:
        return None
    segments = mounted.alone.segments()
    return {
        "disk_id": state.disk_id,
        "generation": state.generation,
        "segments": len(segments),
        "first": str(segments[0]) if segments else None,
        "last": str(segments[-1]) if segments else None,
        "bytes": _bytes(segments),
    }
