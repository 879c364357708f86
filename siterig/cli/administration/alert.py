"""The commands ``siterig alert``: mail about alerts, and the RPO threshold."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from siterig.blockfs.core.errors import Code, RigError
from siterig.cli import exit_status, output
from siterig.cli.commands.options import Dir, Json, example
from siterig.cli.light_commands import running

if TYPE_CHECKING:
    from siterig.azure_emu.vault.model.alert_api import AlertApi, AlertSettings, AlertState, MailServer

_PORTS = {"starttls": 587, "tls": 465, "none": 25}
"""The usual port of each kind of security."""
_NONE = "none"
_OPTIONS = {
    "customEmailAddresses": "--to",
    "owners": "--owner",
    "sendToOwners": "--send-to-owners",
    "locale": "--locale",
    "sender": "--from",
    "folder": "--folder",
    "server.host": "--server",
    "server.port": "--server",
    "server.security": "--security",
    "server.user": "--user",
    "server.ca_file": "--ca-file",
    "password_file": "--password-file",
    "rpo_threshold_s": "--rpo-threshold",
}
"""The options by the keys of the settings that they set."""


def _securities() -> list[str]:
    return list(_PORTS)


def register(app: typer.Typer) -> None:
    """Add ``alert``."""
    alert = typer.Typer(no_args_is_help=True)
    alert.command("show", epilog=example("siterig alert show"))(show)
    alert.command(
        "set",
        epilog=example(
            "siterig alert set --to dr@example.com --server mail.example.com --user rig --password-file ./password"
        ),
    )(set_alerts)
    app.add_typer(
        alert,
        name="alert",
        help="Mail about alerts, and the RPO threshold.",
        epilog=example("siterig alert show"),
    )


def show(folder: Dir, as_json: Json = False) -> None:
    """Show the receivers of mail about alerts, the way it is delivered, the mails that wait, and the RPO threshold."""

    async def work() -> None:
        _print(await _alerts(folder).alerts(), as_json=as_json)

    exit_status.run(work)


def set_alerts(
    folder: Dir,
    *,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="ADDRESS", help="Receiver; repeat it for several; none: nobody.", show_default=False),
    ] = None,
    owner: Annotated[
        list[str] | None,
        typer.Option("--owner", metavar="ADDRESS", help="Owner of the subscription, like --to.", show_default=False),
    ] = None,
    to_owners: Annotated[
        bool | None,
        typer.Option("--send-to-owners/--no-send-to-owners", help="Send mail to the owners as well.", show_default=False),
    ] = None,
    locale: Annotated[
        str | None, typer.Option("--locale", metavar="TAG", help="Language of the receivers; mails are in English.")
    ] = None,
    sender: Annotated[str | None, typer.Option("--from", metavar="ADDRESS", help="Sender of the mails.")] = None,
    mail_folder: Annotated[
        Path | None,
        typer.Option(
            "--folder",
            metavar="FOLDER",
            help="Write each mail to a file in this folder; no server is used.",
            file_okay=False,
        ),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option("--server", metavar="HOST[:PORT]", help="Send mail by this SMTP server; no folder is used."),
    ] = None,
    security: Annotated[
        str | None,
        typer.Option(
            "--security",
            metavar="starttls|tls|none",
            help="Encryption of the connection: starttls unless given.",
            autocompletion=_securities,
        ),
    ] = None,
    user: Annotated[str | None, typer.Option("--user", metavar="NAME", help="User of the server.")] = None,
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file",
            metavar="FILE",
            help="File of mode 0600 with the user's password, which is copied.",
            dir_okay=False,
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file", metavar="FILE", help="PEM file of the authorities of the server's certificate.", dir_okay=False
        ),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="Send no mail; mails that wait are deleted.")] = False,
    rpo_threshold_min: Annotated[
        float | None,
        typer.Option("--rpo-threshold", metavar="MINUTES", help="RPO beyond which a VM has a warning and an event."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Change the receivers of mail about alerts, its delivery, and the RPO threshold; all other settings stay as they are.

    Mail is sent when the health of a VM becomes critical, the heartbeat of a server is lost, a failover fails, or an RPO is
    beyond the threshold.
    """

    async def work() -> None:
        given = [to, owner, to_owners, locale, sender, mail_folder, server, security, user, password_file, ca_file]
        if not off and rpo_threshold_min is None and all(each is None for each in given):
            raise RigError(Code.BadRequest, "no option; allowed: those that siterig alert set --help lists")
        if sum((off, mail_folder is not None, server is not None)) > 1:
            raise RigError(Code.BadRequest, "--folder, --server and --off exclude each other: give one of them")
        api = _alerts(folder)
        former = (await api.alerts()).settings
        changed: dict[str, object] = {}
        if to is not None:
            changed["customEmailAddresses"] = _addresses(to)
        if owner is not None:
            changed["owners"] = _addresses(owner)
        if to_owners is not None:
            changed["sendToOwners"] = to_owners
        if locale is not None:
            changed["locale"] = locale
        if sender is not None:
            changed["sender"] = None if sender == _NONE else sender
        if off or mail_folder is not None or server is not None:
            changed["folder"] = None if mail_folder is None else str(mail_folder.expanduser().absolute())
            changed["server"] = None
        found = former.server if server is None and not off and mail_folder is None else None
        if server is not None or (found is not None and any(each is not None for each in (security, user, ca_file))):
            changed["server"] = _server(found, server, security, user, ca_file)
        elif found is None and any(each is not None for each in (security, user, password_file, ca_file)):
            raise RigError(
                Code.BadRequest, "--security, --user, --password-file and --ca-file need a server; give --server, too"
            )
        if rpo_threshold_min is not None:
            changed["rpo_threshold_s"] = _seconds(rpo_threshold_min)
        path = None if password_file is None else str(password_file.expanduser().absolute())
        try:
            state = await api.configure_alerts(settings=former.model_copy(update=changed), password_file=path)
        except RigError as error:
            raise _with_option(error) from error
        _print(state, as_json=as_json)

    exit_status.run(work)


def _alerts(folder: Path) -> AlertApi:
    from siterig.rpc import directory

    return directory.alerts(running(folder))


def _with_option(error: RigError) -> RigError:
    """Return an error about the settings with the option that sets the value instead of its key."""
    key, space, rest = error.message.partition(" ")
    option = _OPTIONS.get(key) if error.code == Code.InvalidAlertSettings else None
    return error if option is None else RigError(error.code, f"{option}{space}{rest}", recoverable=error.recoverable)


def _seconds(minutes: float) -> float:
    if not math.isfinite(minutes):
        raise RigError(Code.BadRequest, f"--rpo-threshold: {minutes} is not a number of minutes")
    return minutes * 60


def _addresses(words: list[str]) -> list[str]:
    return [] if words == [_NONE] else words


def _server(
    former: MailServer | None, server: str | None, security: str | None, user: str | None, ca_file: Path | None
) -> MailServer:
    """Return the server of the options; a server that is not named is the former one."""
    from siterig.azure_emu.vault.model.alert_api import MailServer

    if security is not None and security not in _PORTS:
        raise RigError(Code.BadRequest, f"--security: {security!r} is not allowed; allowed: {', '.join(_PORTS)}")
    values: dict[str, object] = {} if former is None else former.model_dump()
    if security is not None or former is None:
        values["security"] = security or "starttls"
    if server is not None:
        host, port = _host_and_port(server)
        values |= {"host": host, "port": _PORTS[str(values["security"])] if port is None else port}
    if user is not None:
        values["user"] = user
    if ca_file is not None:
        values["ca_file"] = str(ca_file.expanduser().absolute())
    return MailServer.model_validate(values)


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Return the parts of HOST, HOST:PORT, an IPv6 address, or [ADDRESS]:PORT."""
    host, colon, port = text.rpartition(":")
    if text.startswith("[") and text.endswith("]"):
        return text[1:-1], None
    if not colon or (":" in host and not host.startswith("[")):
        return text, None
    if not (port.isascii() and port.isdigit()):
        raise RigError(
            Code.BadRequest, f"--server: {text!r} is not understood; allowed: HOST or HOST:PORT, for example mail:587"
        )
    return host.removeprefix("[").removesuffix("]"), int(port)


def _print(state: AlertState, *, as_json: bool) -> None:
    if as_json:
        output.print_json(state)
        return
    settings = state.settings
    rows = [
        ("receivers", ", ".join(settings.receivers) or "none"),
        ("delivery", _delivery(settings)),
        ("sender", settings.sender or "siterig@localhost"),
        ("locale", settings.locale),
        ("RPO threshold", f"{settings.rpo_threshold_s / 60:g} min, and at least two intervals"),
        ("waiting", str(state.waiting)),
        ("delivered", state.delivered or "nothing yet"),
    ]
    if state.problem is not None:
        rows.append(("problem", f"since {state.problem_since}: {state.problem}"))
    if state.dropped:
        rows.append(("dropped", f"{state.dropped} alerts: the queue was full"))
    lines = [line for name, text in rows for line in output.detail(name, text)]
    output.print_lines(lines)


def _delivery(settings: AlertSettings) -> str:
    if settings.folder is not None:
        return f"folder {settings.folder}"
    if settings.server is None:
        return "none"
    server = settings.server
    user = "" if server.user is None else f", user {server.user}"
    return f"server {server.host}:{server.port}, security {server.security}{user}"
