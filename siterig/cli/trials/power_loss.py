"""``siterig power-loss``: disks in one of the states that a loss of power allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import completion, exit_status, fault_director, output, power
from siterig.cli.commands.options import Dir, Json, example, seed_option
from siterig.cli.power import PowerTarget
from siterig.core.power_contract import LossExtent, PowerControl, PowerLossReport
from siterig.images.mount_calls import of_mount
from siterig.images.mount_sockets import is_mount

COLUMNS = ("disk", "unsynced writes", "lost", "torn", "bytes put back")
_ALL = "*"


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("power-loss", epilog=example("siterig power-loss m --tear --seed 7"))(power_loss)


def power_of(target: Path) -> tuple[PowerControl, str]:
    """Return the process that has the disks of a target, and the pattern of its VMs there."""
    return of_mount(target, PowerControl), _ALL


def power_loss(
    folder: Dir,
    target: Annotated[
        str,
        typer.Argument(
            metavar="DIR|VM",
            help="Folder of siterig mount --power-loss, or name of a VM of the rig.",
            autocompletion=completion.vms,
        ),
    ],
    *,
    tear: Annotated[bool, typer.Option("--tear", help="Tear some of the writes into sectors of 512 bytes, too.")] = False,
    all_: Annotated[
        bool, typer.Option("--all", help="Lose everything that was not flushed, in place of a random part of it.")
    ] = False,
    seed: Annotated[
        int | None,
        seed_option("Seed of the random choices. Default: a random one, which is shown."),
    ] = None,
    prepare: Annotated[
        bool, typer.Option("--prepare", help="VM: only let its disks keep unsynced writes from now on, for the loss.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Lose the power of the disks of a mount or VM at one position: unsynced writes are lost, all or some.

    In a mount it is refused while a file system is mounted from a disk, or a program has it open.  Guests of a VM lose it.
    """

    async def work() -> None:
        extent = power.extent_of(tear=tear, all_=all_)
        if "/" not in target and not is_mount(Path(target)) and not Path(target).is_dir():
            await _lose_vm(folder, target, extent, seed, prepares=prepare, as_json=as_json)
            return
        if prepare:
            raise RigError(Code.BadRequest, "--prepare: is for a VM; for a mount, make it with siterig mount --power-loss")
        control, vm = power_of(Path(target))
        report = await control.lose_disk_power(vm=vm, extent=extent, seed=seed)
        if as_json:
            output.print_json(report)
        else:
            _print(report, is_random=not all_)

    exit_status.run(work)


async def _lose_vm(folder: Path, vm: str, extent: LossExtent, seed: int | None, *, prepares: bool, as_json: bool) -> None:
    """Lose the power of a VM of a rig: its disk host is killed, too, so guests lose the disks, and its recovery runs."""
    try:
        director = await fault_director.started_director(folder)
    except RigError as error:
        if error.code != Code.NotUp:
            raise
        raise RigError(Code.NotUp, f"{error.message}; {vm!r} is no folder here, so it names a VM of the rig") from None
    lost_vm = PowerTarget.vm(vm)
    if prepares:
        power.note_seed(await power.prepare(director, lost_vm, extent, seed), extent)
        rule = next(rule for rule in (await director.list_faults()).rules if rule.name == lost_vm.rule_name)
        if as_json:
            output.print_json(rule)
        else:
            output.line(f"the disks of VM {vm} keep their unsynced writes: siterig power-loss {vm}")
        return
    lost, chosen = await power.lose(director, lost_vm, extent, seed)
    await director.remove_fault(name=lost_vm.rule_name)
    power.note_seed(chosen, extent)
    if as_json:
        output.print_json(lost)
    else:
        output.line(lost.done)


def _print(report: PowerLossReport, *, is_random: bool) -> None:
    output.print_table(COLUMNS, [(row.disk, row.writes, row.lost, row.torn, row.bytes) for row in report.disks], empty="")
    for row in report.disks:
        if row.written_back:
            output.notice(
                f"disk {row.disk}: {row.written_back} older writes counted as durable: the memory for them was full"
            )
    if is_random:
        output.notice(f"seed {report.seed}")
