"""The command line ``siterig``; docs/cli.md documents every command, the JSON and the exit statuses."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Sequence
from typing import Annotated

import typer

SUBJECTS = {
    "rig": ("doctor", "up", "down", "status"),
    "vms": ("vm", "protect", "unprotect", "points", "take-point"),
    "points": ("point",),
    "bisect": ("bisect",),
    "disks": ("disk",),
    "operations": ("failover", "cleanup", "commit", "failback", "reprotect", "resync"),
    "records": ("jobs", "events"),
    "roles": ("role", "site"),
    "log": ("log",),
    "mount": ("mount",),
    "drill": ("drill",),
}
"""The modules of ``siterig.commands``, and the first words of their commands, as help shows them."""


def program(words: Sequence[str] = ()) -> typer.Typer:
    """The commands that ``words`` need: to load all of them takes longer than most of them do."""
    app = typer.Typer(
        name="siterig",
        help="A test rig for site recovery: virtual disks, change logs, replication, failover and failback on one Linux "
        "machine.",
        epilog="Example: siterig drill",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for subject in [name for name, first in SUBJECTS.items() if words and words[0] in first] or SUBJECTS:
        importlib.import_module(f"siterig.commands.{subject}").register(app)
    app.callback()(_global)
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"siterig {importlib.metadata.version('siterig')}")
        raise typer.Exit


def _global(
    *,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""
