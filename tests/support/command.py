"""The ``siterig`` command, run in the process of the test."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from siterig.cli.app import program


def siterig(*arguments: str) -> Any:
    return CliRunner().invoke(program(arguments), list(arguments))
