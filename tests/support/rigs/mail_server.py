"""An SMTP server for tests: aiosmtpd in a thread, with TLS, users, and refusals that a test chooses."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword

from siterig.azure_emu.authority.authority import Authority
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.trust.identity import store


@dataclass
class MailServerState:
    """The mails of a server, and its answers.

    Attributes:
        mails: the receivers and the bytes of each mail.
        refused: the answer for some receivers.
        data_answers: the answers to the next mails; then each is taken.
        on_mail: called with each mail that is taken, before the answer.
    """

    mails: list[tuple[list[str], bytes]] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    data_answers: list[str] = field(default_factory=list)
    on_mail: Callable[[bytes], None] | None = None
    port: int = 0
    ca_file: Path | None = None

    async def handle_RCPT(  # noqa: N802 (the library's name)
        self, _server: Any, _session: Any, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        """Answer for one receiver."""
        if address in self.refused:
            return self.refused[address]
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 OK"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Envelope) -> str:  # noqa: N802
        """Take a mail, or refuse it."""
        if self.data_answers:
            return self.data_answers.pop(0)
        assert isinstance(envelope.content, bytes)
        self.mails.append((list(envelope.rcpt_tos), envelope.content))
        if self.on_mail is not None:
            self.on_mail(envelope.content)
        return "250 OK"


class _AnyPort(Controller):
    """A controller of a server on a port that the kernel chooses, or on a given one."""

    def _trigger_server(self) -> None:
        server: Any = self.server
        self.port = server.sockets[0].getsockname()[1]
        super()._trigger_server()  # type: ignore[no-untyped-call]


@contextmanager
def mail_server(
    folder: Path, *, port: int = 0, starttls: bool = False, tls: bool = False, user: tuple[str, str] | None = None
) -> Iterator[MailServerState]:
    """Run a server on loopback, by default on a free port; with TLS its authority is in ``ca_file``."""
    state = MailServerState()
    context = None
    if starttls or tls:
        authority = Authority(folder / "authority-of-mail", SYSTEM_CLOCK)
        identity = folder / "mail-server.pem"
        store(identity, authority.issue_identity("storage", "mail"))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(identity)
        state.ca_file = folder / "ca.pem"
        state.ca_file.write_text(authority.certificate)

    def authenticate(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        given = (data.login.decode(), data.password.decode()) if isinstance(data, LoginPassword) else None
        return AuthResult(success=user is not None and given == user, handled=False)

    options: dict[str, Any] = {"ssl_context": context} if tls else {}
    if starttls:
        options |= {"tls_context": context, "require_starttls": True}
    if user is not None:
        options |= {"authenticator": authenticate, "auth_required": True, "auth_require_tls": starttls}
    controller = _AnyPort(state, hostname="127.0.0.1", port=port, **options)
    controller.start()
    try:
        state.port = controller.port
        yield state
    finally:
        controller.stop()
