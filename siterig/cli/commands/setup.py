"""Programs that siterig needs besides its Python packages."""

from __future__ import annotations

import typer

from siterig.cli import exit_status, output
from siterig.cli.commands.options import Json, example


def register(app: typer.Typer) -> None:
    """Add these commands."""
    setup = typer.Typer(no_args_is_help=True)
    setup.command("azurite", epilog=example("siterig setup azurite"))(azurite)
    app.add_typer(setup, name="setup", help="Install Azurite for this user.", epilog=example("siterig setup azurite"))


def azurite(*, as_json: Json = False) -> None:
    """Install Azurite and the chart libraries of the report for this user, with npm."""
    from siterig.azure_emu.storage.azurite_setup import install_azurite

    async def work() -> None:
        done = await install_azurite(output.progress)
        if as_json:
            output.print_json(
                {"version": done.version, "folder": str(done.folder), "script": str(done.script), "installed": done.is_new}
            )
            return
        was = "is installed" if done.is_new else "was installed before"
        output.line(f"Azurite {done.version} {was} in {done.folder}")

    exit_status.run(work)
