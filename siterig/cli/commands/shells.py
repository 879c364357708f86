"""Completion of command lines in shells."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from siterig.cli import completion, output
from siterig.cli.commands.options import Json, example


class Shell(StrEnum):
    """The supported shells."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("completion", epilog=example("siterig completion bash"))(print_script)


def print_script(
    shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")], as_json: Json = False
) -> None:
    """Print a script that completes siterig and ./rig in a shell; its first lines explain how to use it."""
    text = completion.script(shell.value)
    if as_json:
        output.print_json({"shell": shell.value, "script": text})
    else:
        output.print_lines(text.splitlines())
