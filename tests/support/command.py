"""The ``siterig`` command, run in the process of the test."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from siterig.cli.app import program


def siterig(*arguments: str) -> Any:
    """Run the command with these arguments, and return typer's result."""
    return CliRunner().invoke(program(arguments), list(arguments))
