"""The command ``siterig account``: the secret of the storage account, and the rotation of its keys."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siterig.cli import exit_status, output
from siterig.cli.commands.options import AccountAuthority, Dir, Json, example
from siterig.cli.light_commands import running
from siterig.core.paths import Layout, check_format

if TYPE_CHECKING:
    from siterig.azure_emu.user_account.secret import AccountSecret


def register(app: typer.Typer) -> None:
    """Add ``account``."""
    account = typer.Typer(no_args_is_help=True)
    account.command("set", epilog=example("siterig account set env:SITERIG_ACCOUNT"))(set_secret)
    account.command("show", epilog=example("siterig account show"))(show)
    account.command("rotate-keys", epilog=example("siterig account rotate-keys"))(rotate_keys)
    app.add_typer(
        account,
        name="account",
        help="Show the storage account of the rig, and replace its secret or its keys.",
        epilog=example("siterig account show"),
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


def set_secret(
    folder: Dir,
    source: Annotated[
        str, typer.Argument(metavar="FILE|env:NAME", help="File of mode 0600, or environment variable, with the new secret.")
    ],
    authority: AccountAuthority = None,
    as_json: Json = False,
) -> None:
    """Replace the secret of the rig's storage account, after a check, while replication continues."""

    async def work() -> None:
        from siterig.accounts.replacement import replace_secret
        from siterig.azure_emu.user_account.secret import parse_secret
        from siterig.azure_emu.user_account.source import read_authority, read_source
        from siterig.supervisor.launch import is_up

        layout = _with_user_account(folder)
        secret = parse_secret(read_source(source))
        user, unrecorded = await replace_secret(layout, secret, None if authority is None else read_authority(authority))
        if unrecorded is not None and is_up(layout):
            output.progress(f"the event was not recorded: {unrecorded.message}")
        if as_json:
            output.print_json({"account": user.secret.account, "kind": user.secret.kind, "expires": expiry_of(user.secret)})
        else:
            output.line(f"the rig uses {user.secret.words} of the storage account {user.secret.account} from now on")

    exit_status.run(work)


def show(folder: Dir, as_json: Json = False) -> None:
    """Show the storage account of the user that the rig uses, without its secret."""

    async def work() -> None:
        from siterig.azure_emu.user_account.stored_account import load

        user = load(_with_user_account(folder).keys)
        secret = user.secret
        document = {
            "account": secret.account,
            "kind": secret.kind,
            "endpoint": secret.endpoint,
            "container": secret.container,
            "prefix": user.prefix,
            "expires": expiry_of(secret),
        }
        if as_json:
            output.print_json(document)
        else:
            output.print_table(("field", "value"), [(name, value or "-") for name, value in document.items()], empty="")

    exit_status.run(work)


def expiry_of(secret: AccountSecret) -> str | None:
    """Return the time at which a SAS expires, RFC 3339 UTC; None for other secrets."""
    from siterig.blockfs.core.clock import rfc3339

    return None if secret.expiry_ns is None else rfc3339(secret.expiry_ns)


def _with_user_account(folder: Path) -> Layout:
    from siterig.accounts.replacement import require_user_account

    layout = Layout.of(folder)
    check_format(layout)
    require_user_account(layout)
    return layout
