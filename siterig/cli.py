"""The command line ``siterig``; docs/cli.md documents every command, the JSON and the exit statuses."""

from __future__ import annotations

import importlib.metadata
from typing import Annotated

import typer

from siterig.commands import bisect, disks, drill, log, mount, operations, points, records, rig, vms

app = typer.Typer(
    name="siterig",
    help="A test rig for site recovery: virtual disks, replication, failover and failback on one Linux machine.",
    epilog="Example: siterig drill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for subject in (rig, vms, points, bisect, disks, operations, records, log, mount, drill):
    subject.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"siterig {importlib.metadata.version('siterig')}")
        raise typer.Exit


@app.callback()
def _global(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""
