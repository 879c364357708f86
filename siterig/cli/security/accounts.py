"""The command ``siterig account``: the keys of the storage account."""

from __future__ import annotations

import typer

from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, example
from siterig.cli.light_commands import running


def register(app: typer.Typer) -> None:
    """Add ``account``."""
    account = typer.Typer(no_args_is_help=True)
    account.command("rotate-keys", epilog=example("siterig account rotate-keys"))(rotate_keys)
    app.add_typer(
        account,
        name="account",
        help="Rotate the keys of the storage account.",
        epilog=example("siterig account rotate-keys"),
    )


def rotate_keys(folder: Dir, as_json: Json = False) -> None:
    """Replace both keys of the storage account, one after the other, while replication continues."""

    async def work() -> None:
        from siterig.rpc import directory

        done = await directory.account_keys(running(folder)).rotate_account_keys()
        if as_json:
            output.print_json(done)
        else:
            output.line(f"the storage account {done.account} has two new keys, and refuses the former ones")

    exit_status.run(work)
