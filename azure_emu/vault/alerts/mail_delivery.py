"""The delivery of one mail: a file in a folder, or a conversation with an SMTP server.

The functions block, and run in a thread; each operation of a server has ``OPERATION_S``.  Fault contract: a file is written
atomically under a name that follows from the mail, so a repetition replaces the same file.  No error has the password.
"""

from __future__ import annotations

import base64
import re
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from siterig.azure_emu.vault.alerts.alert_settings import own_name
from siterig.azure_emu.vault.model.alert_api import MailServer
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import printable
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.os_errors import reason

OPERATION_S = 20.0
_IN_SSL = re.compile(r"_ssl\.c:\d+: | \(_ssl\.c:\d+\)")
"""The places in the source of Python that its errors of TLS name."""
_REPLY_CHARS_MAX = 300
_PERMANENT = 500
"""The lowest reply code of a server for a refusal that a repetition does not change (RFC 5321, 4.2.1)."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """The end of a delivery: the receivers to try again, and those that the server refuses for good, with its reason."""

    again: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    why: str = ""


def unsent(text: str) -> RigError:
    """Return the error of a delivery that is tried again."""
    return RigError(Code.MailUnsent, text, recoverable=True)


def write_file(folder: Path, name: str, mail: bytes) -> Delivered:
    """Write a mail to ``NAME.eml``.

    Raises:
        RigError: ``MailUnsent``, ``ForeignFile``.
    """
    try:
        write_atomically(folder / f"{name}.eml", mail)
    except OSError as error:
        raise unsent(f"mail cannot be written to folder {folder}: {reason(error, folder)}") from error
    return Delivered()


def send(server: MailServer, password: str | None, sender: str, receivers: Sequence[str], mail: bytes) -> Delivered:
    """Send a mail to these receivers.

    Raises:
        RigError: ``MailUnsent`` if the server cannot be used at all.
    """
    where = f"mail server {server.host}:{server.port}"
    try:
        with _connected(server) as connection:
            if server.user is not None and password is not None:
                connection.login(server.user, password)
            return _outcome(connection.sendmail(sender, list(receivers), mail))
    except smtplib.SMTPRecipientsRefused as error:
        return _outcome(error.recipients)
    except smtplib.SMTPDataError as error:
        return _outcome(dict.fromkeys(receivers, (error.smtp_code, _bytes(error.smtp_error))))
    except smtplib.SMTPAuthenticationError as error:
        text = _without(_reply(error.smtp_code, error.smtp_error), password)
        raise unsent(f"{where} refuses user {server.user!r}: {text}") from None
    except smtplib.SMTPSenderRefused as error:
        raise unsent(f"{where} refuses the sender {sender}: {_reply(error.smtp_code, error.smtp_error)}") from None
    except smtplib.SMTPResponseException as error:
        raise unsent(f"{where}: {_reply(error.smtp_code, error.smtp_error)}") from None
    except (smtplib.SMTPException, OSError, ValueError) as error:
        why = _IN_SSL.sub("", reason(error) if isinstance(error, OSError) else str(error))
        raise unsent(f"{where}: {_without(printable(why), password) or type(error).__name__}") from None


def _connected(server: MailServer) -> smtplib.SMTP:
    """Return a connection, encrypted as the settings want; the certificate and the name of the server are checked."""
    if server.security == "none":
        return smtplib.SMTP(server.host, server.port, local_hostname=own_name(), timeout=OPERATION_S)
    context = ssl.create_default_context(cafile=server.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if server.security == "tls":
        return smtplib.SMTP_SSL(server.host, server.port, local_hostname=own_name(), timeout=OPERATION_S, context=context)
    connection = smtplib.SMTP(server.host, server.port, local_hostname=own_name(), timeout=OPERATION_S)
    try:
        connection.starttls(context=context)
    except BaseException:
        connection.close()
        raise
    return connection


def _outcome(replies: Mapping[str, tuple[int, bytes]]) -> Delivered:
    refused = {to: _reply(code, text) for to, (code, text) in replies.items() if code >= _PERMANENT}
    again = {to: _reply(code, text) for to, (code, text) in replies.items() if code < _PERMANENT}
    return Delivered(list(again), refused, next(iter(again.values()), ""))


def _reply(code: int, text: bytes | str) -> str:
    return f"{code} {printable(_bytes(text).decode(errors='replace'))[:_REPLY_CHARS_MAX]}"


def _bytes(text: bytes | str) -> bytes:
    return text if isinstance(text, bytes) else text.encode(errors="replace")


def _without(text: str, password: str | None) -> str:
    """Return the text of a server without the password, in the forms in which it was sent."""
    if password is None:
        return text
    for form in (password, base64.b64encode(password.encode()).decode()):
        text = text.replace(form, "***")
    return text
