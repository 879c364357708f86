"""``siterig power-loss``: disks in one of the states that a loss of power allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Json, example
from siterig.core.power_contract import LossExtent, PowerControl, PowerLossReport
from siterig.images.mount_calls import of_mount

COLUMNS = ("disk", "unsynced writes", "lost", "torn", "bytes put back")
_ALL = "*"


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("power-loss", epilog=example("siterig power-loss m --tear --seed 7"))(power_loss)


def power_of(target: Path) -> tuple[PowerControl, str]:
    """Return the process that has the disks of a target, and the pattern of its VMs there."""
    return of_mount(target, PowerControl), _ALL


def power_loss(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of siterig mount --power-loss.")],
    *,
    tear: Annotated[bool, typer.Option("--tear", help="Tear some of the writes into sectors of 512 bytes, too.")] = False,
    all_: Annotated[
        bool, typer.Option("--all", help="Lose everything that was not flushed, in place of a random part of it.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=0, help="Seed of the random choices. Default: a random one, which is shown."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Lose the power of the disks of a mount at one position: unsynced writes are lost, all or some of them.

    It is refused while a file system is mounted from a disk, or a program has it open.
    """

    async def work() -> None:
        if tear and all_:
            raise RigError(Code.BadRequest, "--tear and --all: they exclude each other: writes are either torn or lost")
        extent: LossExtent = "torn" if tear else "all" if all_ else "random"
        control, vm = power_of(target)
        report = await control.lose_disk_power(vm=vm, extent=extent, seed=seed)
        if as_json:
            output.print_json(report)
        else:
            _print(report, is_random=not all_)

    exit_status.run(work)


def _print(report: PowerLossReport, *, is_random: bool) -> None:
    output.print_table(COLUMNS, [(row.disk, row.writes, row.lost, row.torn, row.bytes) for row in report.disks], empty="")
    for row in report.disks:
        if row.written_back:
            output.notice(
                f"disk {row.disk}: {row.written_back} older writes counted as durable: the memory for them was full"
            )
    if is_random:
        output.notice(f"seed {report.seed}")
