"""The alert settings in the vault's database, and the check of new ones."""

from __future__ import annotations

import re
import socket
from email.errors import MessageError
from email.headerregistry import Address
from pathlib import Path

from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.schema import AlertSettingsRow
from siterig.azure_emu.vault.model.alert_api import AlertSettings, MailServer
from siterig.blockfs.core.errors import Code, RigError

ADDRESSES_MAX = 20
ADDRESS_CHARS_MAX = 254
"""RFC 5321, 4.5.3.1.3: a path has at most 256 characters, with its brackets."""
RPO_THRESHOLD_S_MIN, RPO_THRESHOLD_S_MAX = 60.0, 86400.0
_LOCALE = re.compile(r"[A-Za-z]{2,3}(-[A-Za-z0-9]{2,8})*")
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}")
_USER_CHARS_MAX = 255
_SENDER = "siterig@localhost"


def row_of(session: Session) -> AlertSettingsRow:
    """Return the row of the settings; a vault without one gets the defaults."""
    row = session.get(AlertSettingsRow, AlertSettingsRow.ONLY)
    if row is None:
        row = AlertSettingsRow(id=AlertSettingsRow.ONLY, settings=AlertSettings().model_dump(), last_event_id=0, dropped=0)
        session.add(row)
        session.flush()
    return row


def load(session: Session) -> AlertSettings:
    """Return the settings; changes nothing."""
    row = session.get(AlertSettingsRow, AlertSettingsRow.ONLY)
    return AlertSettings() if row is None else AlertSettings.model_validate(row.settings)


def sender_of(settings: AlertSettings) -> str:
    """Return the address that mail is sent from."""
    return settings.sender or _SENDER


def own_name() -> str:
    """Return the name of this host for the server: its own, or its address on loopback; no name server is asked."""
    name = socket.gethostname()
    return name if "." in name and _HOST.fullmatch(name) else "[127.0.0.1]"


def check(settings: AlertSettings) -> None:
    """Check new settings.

    Raises:
        RigError: ``InvalidAlertSettings`` names the key, its value and the allowed values.
    """
    for key in ("customEmailAddresses", "owners"):
        addresses: list[str] = getattr(settings, key)
        if len(addresses) > ADDRESSES_MAX:
            raise invalid(key, f"{len(addresses)} addresses", f"at most {ADDRESSES_MAX}")
        for address in addresses:
            _check_address(key, address)
    if settings.sender is not None:
        _check_address("sender", settings.sender)
    if not _LOCALE.fullmatch(settings.locale):
        raise invalid("locale", repr(settings.locale), "a language tag, for example en-US")
    if not RPO_THRESHOLD_S_MIN <= settings.rpo_threshold_s <= RPO_THRESHOLD_S_MAX:
        limits = f"{RPO_THRESHOLD_S_MIN:g} s to {RPO_THRESHOLD_S_MAX:g} s, which are 1 minute to 24 hours"
        raise invalid("rpo_threshold_s", f"{settings.rpo_threshold_s:g} s", limits)
    if settings.folder is not None and settings.server is not None:
        raise invalid("folder", repr(settings.folder), "a folder or a server, not both")
    if settings.sendToOwners and not settings.owners:
        raise invalid("sendToOwners", "true", "true only with addresses of owners")
    if settings.folder is not None:
        _check_folder(settings.folder)
    if settings.server is not None:
        _check_server(settings.server)


def _check_address(key: str, address: str) -> None:
    allowed = f"NAME@HOST in ASCII, at most {ADDRESS_CHARS_MAX} characters"
    if len(address) > ADDRESS_CHARS_MAX or not address.isascii() or not address.isprintable() or " " in address:
        raise invalid(key, repr(address), allowed)
    try:
        parsed = Address(addr_spec=address)
    except (MessageError, ValueError, IndexError) as error:
        raise invalid(key, repr(address), allowed) from error
    if not parsed.username or not _HOST.fullmatch(parsed.domain) or parsed.addr_spec != address:
        raise invalid(key, repr(address), allowed)


def _check_folder(folder: str) -> None:
    path = Path(folder)
    if not folder.isprintable() or not path.is_absolute():
        raise invalid("folder", repr(folder), "the absolute path of a folder")
    if not path.is_dir():
        raise invalid("folder", repr(folder), "a folder that exists")


def _check_server(server: MailServer) -> None:
    if not _HOST.fullmatch(server.host):
        raise invalid("server.host", repr(server.host), "a host name or an address")
    if not 1 <= server.port <= 65535:
        raise invalid("server.port", str(server.port), "1 to 65535")
    user = server.user
    if user is not None and (not user or len(user) > _USER_CHARS_MAX or not user.isascii() or not user.isprintable()):
        raise invalid("server.user", repr(user), f"1 to {_USER_CHARS_MAX} printable ASCII characters")
    if server.security == "none" and user is not None:
        raise invalid("server.security", "none", "starttls or tls for a server with a user: the password would be readable")
    if server.ca_file is not None:
        if server.security == "none":
            raise invalid("server.ca_file", repr(server.ca_file), "a file only with starttls or tls")
        if not Path(server.ca_file).is_absolute() or not Path(server.ca_file).is_file():
            raise invalid("server.ca_file", repr(server.ca_file), "the absolute path of a PEM file")


def invalid(key: str, value: str, allowed: str) -> RigError:
    """Return the error about one value of the settings."""
    return RigError(Code.InvalidAlertSettings, f"{key} is {value}; allowed: {allowed}")
