"""The commands ``siterig error``: the reasons for which protected VMs are not healthy."""

from __future__ import annotations

from typing import Annotated

import typer

from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import Dir, Json, VmName, example, vault


def register(app: typer.Typer) -> None:
    """Add ``error``."""
    error = typer.Typer(no_args_is_help=True)
    error.command("list", epilog=example("siterig error list"))(list_errors)
    error.command("acknowledge", epilog=example("siterig error acknowledge web01 LogUnsent"))(acknowledge)
    app.add_typer(
        error,
        name="error",
        help="List and acknowledge the reasons for which VMs are not healthy.",
        epilog=example("siterig error list"),
    )


def list_errors(folder: Dir, as_json: Json = False) -> None:
    """List the health errors of all protected VMs, acknowledged ones as well."""

    async def work() -> None:
        items = await vault(folder).items()
        found = [
            {"vm": item.name, "acknowledged": hidden, **error.model_dump()}
            for item in items
            for hidden, errors in ((False, item.healthErrors), (True, item.acknowledged_errors))
            for error in errors
        ]
        if as_json:
            output.print_json(found)
            return
        rows = [
            (
                each["vm"],
                "Warning" if each["recoverable"] else "Critical",
                "yes" if each["acknowledged"] else "no",
                each["errorCode"],
                each["summaryMessage"],
            )
            for each in found
        ]
        output.print_table(("VM", "severity", "acknowledged", "code", "what"), rows, empty="no health errors")

    exit_status.run(work)


def acknowledge(
    folder: Dir,
    vm: VmName,
    code: Annotated[
        str,
        typer.Argument(metavar="CODE", help="Code or errorId of the health error.", autocompletion=completion.health_errors),
    ],
    as_json: Json = False,
) -> None:
    """Acknowledge a health error: it is hidden, and does not count for the health, until it ends and occurs again."""

    async def work() -> None:
        errors = await vault(folder).resolve_health_errors(vm=vm, code=code)
        if as_json:
            output.print_json(errors)
        else:
            for error in errors:
                output.line(f"acknowledged: {error.summaryMessage} ({error.errorCode})")

    exit_status.run(work)
