"""The commands ``siterig key``: the vault's key, whose versions encrypt the keys of all data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siterig.blockfs.core.errors import RigError
from siterig.cli import completion, exit_status, output
from siterig.cli.commands.options import Dir, Json, example, vault

if TYPE_CHECKING:
    from siterig.azure_emu.vault.model.api import VaultApi
    from siterig.azure_emu.vault.model.key_api import VaultKey

Version = Annotated[
    int, typer.Argument(metavar="VERSION", min=1, help="Version of the key.", autocompletion=completion.key_versions)
]


def register(app: typer.Typer) -> None:
    """Add ``key``."""
    key = typer.Typer(no_args_is_help=True)
    key.command("list", epilog=example("siterig key list"))(list_keys)
    key.command("rotate", epilog=example("siterig key rotate"))(rotate)
    key.command("revoke", epilog=example("siterig key revoke 1"))(revoke)
    key.command("restore", epilog=example("siterig key restore 1"))(restore)
    app.add_typer(
        key,
        name="key",
        help="The vault's key, which encrypts the keys of all data: list, rotate, revoke, restore.",
        epilog=example("siterig key rotate"),
    )


def list_keys(folder: Dir, as_json: Json = False) -> None:
    """List the versions of the vault's key, oldest first; the newest encrypts new data keys.

    Without --json, disks of the recovery side that an older siterig has left without encryption are named, too.
    """
    _show(folder, lambda api: api.vault_keys(), as_json=as_json)
    if not as_json:
        exit_status.run(lambda: _show_unencrypted(vault(folder)))


async def _show_unencrypted(api: VaultApi) -> None:
    try:
        disks = await api.unencrypted_disks()
    except RigError as error:
        output.notice(f"disks without encryption are not known now: {error.message}")
    else:
        for disk in disks:
            output.notice(f"not encrypted: {disk.kind}, {disk.disk} of VM {disk.vm}, made by an older siterig")


def rotate(folder: Dir, as_json: Json = False) -> None:
    """Make a new version of the vault's key, and encrypt all data keys with it; no data are written again."""
    _show(folder, lambda api: api.rotate_key(), as_json=as_json)


def revoke(folder: Dir, version: Version, as_json: Json = False) -> None:
    """Refuse all use of a version of the vault's key: its data can be neither read nor written until it is restored."""
    _show(folder, lambda api: api.revoke_key(version=version), as_json=as_json)


def restore(folder: Dir, version: Version, as_json: Json = False) -> None:
    """Enable a revoked version of the vault's key again."""
    _show(folder, lambda api: api.restore_key(version=version), as_json=as_json)


def _show(folder: Path, call: Callable[[VaultApi], Awaitable[list[VaultKey]]], *, as_json: bool) -> None:
    async def work() -> None:
        versions = await call(vault(folder))
        if as_json:
            output.print_json(versions)
            return
        rows = [
            (each.version, each.state, "yes" if each.current else "no", each.data_keys, each.created, each.changed)
            for each in versions
        ]
        output.print_table(("version", "state", "current", "data keys", "created", "changed"), rows, empty="none")

    exit_status.run(work)
