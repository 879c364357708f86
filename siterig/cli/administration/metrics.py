"""``siterig metrics``: the metrics of the vault, or the address at which Prometheus reads them."""

from __future__ import annotations

from typing import Annotated

import typer

from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, example
from siterig.cli.light_commands import running


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=example("siterig metrics --address"))(metrics)


def metrics(
    folder: Dir,
    address: Annotated[bool, typer.Option("--address", help="Print the address and the file of the token instead.")] = False,
    as_json: Json = False,
) -> None:
    """Print the metrics of the vault in the text format of Prometheus."""

    async def work() -> None:
        from siterig.core import metrics_address
        from siterig.rpc import directory

        layout = running(folder)
        where, token_file = metrics_address.address(layout), layout.metrics_token
        text = None if address else await directory.observation(layout).metrics()
        if as_json:
            output.print_json({"address": where, "token_file": str(token_file), "text": text})
        elif text is None:
            output.print_lines([*output.detail("address", where or "-"), *output.detail("token file", str(token_file))])
        else:
            output.print_lines(text.splitlines())

    exit_status.run(work)
