"""The commands ``siterig app-script``: the script of a VM that prepares its applications for a point."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from siterig.blockfs.contracts.app_script import TIME_LIMIT_S, TIME_LIMIT_S_MAX, TIME_LIMIT_S_MIN, AppScript
from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, VmName, example, vault


def register(app: typer.Typer) -> None:
    """Add ``app-script``."""
    group = typer.Typer(no_args_is_help=True)
    group.command("set", epilog=example("siterig app-script set web01 ./quiesce.sh --time-limit 30"))(set_script)
    group.command("show", epilog=example("siterig app-script show web01"))(show)
    group.command("clear", epilog=example("siterig app-script clear web01"))(clear)
    app.add_typer(
        group,
        name="app-script",
        help="Script of a VM for application-consistent points.",
        epilog=example("siterig app-script show web01"),
    )


def set_script(
    folder: Dir,
    vm: VmName,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT", help="An executable file on the site's host.")],
    *,
    time_limit_s: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", help="Time after which a call is ended.")
    ] = TIME_LIMIT_S,
    as_json: Json = False,
) -> None:
    """Call a script with --pre before each application-consistent point of a VM is taken, and with --post after it."""

    async def work() -> None:
        if not TIME_LIMIT_S_MIN <= time_limit_s <= TIME_LIMIT_S_MAX:
            raise RigError(
                Code.BadRequest,
                f"--time-limit {time_limit_s:g}: allowed: {TIME_LIMIT_S_MIN:g} to {TIME_LIMIT_S_MAX:g} seconds",
            )
        api = vault(folder)
        path = str(script.expanduser().absolute())
        await api.set_app_script(vm=vm, script=AppScript(path=path, time_limit_s=time_limit_s))
        _print(vm, await api.app_script(vm=vm), as_json=as_json)

    exit_status.run(work)


def show(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Show the script of a VM for application-consistent points."""

    async def work() -> None:
        _print(vm, await vault(folder).app_script(vm=vm), as_json=as_json)

    exit_status.run(work)


def clear(folder: Dir, vm: VmName, as_json: Json = False) -> None:
    """Call no script any more; file systems are frozen as before."""

    async def work() -> None:
        api = vault(folder)
        await api.set_app_script(vm=vm, script=None)
        _print(vm, await api.app_script(vm=vm), as_json=as_json)

    exit_status.run(work)


def _print(vm: str, script: AppScript | None, *, as_json: bool) -> None:
    if as_json:
        output.print_json({"vm": vm, "app_script": script})
        return
    rows = [] if script is None else [(script.path, f"{script.time_limit_s:g} s")]
    output.print_table(("script", "time limit"), rows, empty=f"{vm} has no script")
