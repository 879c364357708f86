"""The certificates of the links between the sides: list, rotate, revoke; registration of the host."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, example
from siterig.cli.light_commands import running

if TYPE_CHECKING:
    from siterig.azure_emu.contracts.certificates import CertificateInfo, CertificateRole

HOST = "site"
OWN: dict[str, tuple[CertificateRole, str]] = {"vault": ("vault", "vault"), "storage": ("storage", "cache")}
"""The holders that are no hosts, by the names that commands take."""


def _holders(incomplete: str) -> list[str]:
    return [name for name in (*OWN, HOST) if name.startswith(incomplete)]


Holder = Annotated[
    str,
    typer.Argument(
        metavar="HOLDER", help=f"vault, storage, or the name of a host, for example {HOST}.", autocompletion=_holders
    ),
]
Host = Annotated[str, typer.Argument(metavar="HOST", help=f"Name of the host, for example {HOST}.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    certificate = typer.Typer(no_args_is_help=True)
    certificate.command("list", epilog=example("siterig certificate list --all"))(list_certificates)
    certificate.command("rotate", epilog=example("siterig certificate rotate site"))(rotate)
    certificate.command("revoke", epilog=example("siterig certificate revoke site --reason 'host was stolen'"))(revoke)
    app.add_typer(
        certificate,
        name="certificate",
        help="List, rotate and revoke the certificates of the links between the sides.",
        epilog=example("siterig certificate list"),
    )
    vault = typer.Typer(no_args_is_help=True)
    vault.command("credentials", epilog=example("siterig vault credentials site.VaultCredentials"))(credentials)
    app.add_typer(
        vault,
        name="vault",
        help="Write a vault credentials file, which registers hosts.",
        epilog=example("siterig vault credentials site.VaultCredentials"),
    )


def list_certificates(
    folder: Dir,
    *,
    all_: Annotated[bool, typer.Option("--all", help="Former certificates, too, not only the newest ones.")] = False,
    as_json: Json = False,
) -> None:
    """List the certificates of the vault, the storage account, the hosts and the credentials files."""

    async def work() -> None:
        from siterig.rpc import directory

        found = await directory.certificates(running(folder)).list_certificates()
        _print([info for info in found if all_ or info.is_current], as_json=as_json)

    exit_status.run(work)


def rotate(folder: Dir, holder: Holder, as_json: Json = False) -> None:
    """Give a holder a new certificate; the former one stays valid, so no call fails."""

    async def work() -> None:
        from siterig.rpc import directory

        role, name = OWN.get(holder, ("host", holder))
        info = await directory.certificates(running(folder)).rotate_certificate(role=role, name=name)
        if as_json:
            output.print_json(info)
        else:
            output.line(f"{holder} has the certificate {info.serial}, which expires at {info.not_after}")

    exit_status.run(work)


def revoke(
    folder: Dir,
    host: Host,
    *,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="The reason, which the host gets to read.")],
    of_credentials: Annotated[
        bool, typer.Option("--credentials", help="Revoke the vault credentials files of this site, not the host.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Revoke all certificates of a host: the vault refuses its next call."""

    async def work() -> None:
        from siterig.rpc import directory

        certificates = directory.certificates(running(folder))
        role: CertificateRole = "credentials" if of_credentials else "host"
        _print(await certificates.revoke_certificates(role=role, name=host, reason=reason), as_json=as_json)

    exit_status.run(work)


def credentials(
    folder: Dir,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file, which must not exist; its mode is 0600.")],
    *,
    site: Annotated[str, typer.Option("--site", metavar="SITE", help="The site whose hosts it registers.")] = HOST,
    as_json: Json = False,
) -> None:
    """Write a vault credentials file: for five days it registers hosts of a site."""

    async def work() -> None:
        from siterig.blockfs.files import safe_files
        from siterig.blockfs.files.os_errors import reason
        from siterig.rpc import directory

        certificates = directory.certificates(running(folder))
        if os.path.lexists(file):
            raise RigError(Code.FileExists, f"{file} exists already: name another file")
        text = await certificates.issue_credentials(site=site)
        try:
            with os.fdopen(safe_files.create_file(file.absolute()), "w") as opened:
                opened.write(text)
        except OSError as error:
            raise RigError(Code.FolderUnusable, f"cannot write {file}: {reason(error)}") from error
        fields = json.loads(text)
        if as_json:
            output.print_json({"file": str(file), "site": fields["site"], "expires": fields["expires"]})
        else:
            output.line(f"{file} registers hosts of the site {fields['site']} until {fields['expires']}")

    exit_status.run(work)


def _print(certificates: list[CertificateInfo], *, as_json: bool) -> None:
    if as_json:
        output.print_json(certificates)
        return
    rows = [(_holder(info), info.state, info.not_after, info.serial, info.reason or "-") for info in certificates]
    output.print_table(("holder", "state", "expires", "serial", "reason"), rows, empty="no certificates")


def _holder(info: CertificateInfo) -> str:
    return {"vault": "vault", "storage": "storage"}.get(info.role) or f"{info.role} {info.name}"
