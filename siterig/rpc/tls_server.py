"""The server of calls between the sides: TCP on the loopback interface, TLS 1.3, and a certificate of every caller.

OpenSSL ends a handshake if the certificate is of another authority.  Everything else is decided at each call: a certificate
that expires or is revoked ends the rights of a connection that is open, and the caller gets the reason in words.

Fault contract: the port is in a file that is replaced atomically.  The next start takes the same port if it is free.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path

import trio
from hypercorn.config import Config
from starlette.types import ASGIApp, Receive, Scope, Send

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.trust.identity import TlsContext
from siterig.rpc.server import KEPT_S, application, refusal, run_application
from siterig.rpc.ways import HOST, read_port

HANDSHAKE_S = 20.0
_BACKLOG = 100

Guard = Callable[[str], RigError | None]
"""Returns the reason for which the caller of this connection may not call a service, by the name of the service."""


class _TlsConfig(Config):
    """Settings of hypercorn with a context of ours."""

    def __init__(self, context: TlsContext, listener: socket.socket) -> None:
        super().__init__()
        self._context = context
        self.bind = [f"fd://{listener.detach()}"]
        self.keep_alive_timeout = KEPT_S
        self.ssl_handshake_timeout = HANDSHAKE_S

    @property
    def ssl_enabled(self) -> bool:
        return True

    def create_ssl_context(self) -> ssl.SSLContext:
        return self._context


async def serve_tls(
    services: Mapping[str, tuple[type, object]],
    port_file: Path,
    context: TlsContext,
    guard: Guard,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer calls over TLS until cancelled.

    Args:
        services: Protocol and implementation by name.
        port_file: gets the port.
        context: the settings of TLS, of a server.
        guard: decides about each call.
        task_status: gets the start, when calls are answered.
    """
    listener = listen(port_file)
    safe_files.make_folder(port_file.parent, parents=True)
    write_atomically(port_file, f"{listener.getsockname()[1]}\n".encode())
    await run_application(_guarded(application(services), guard), _TlsConfig(context, listener), task_status=task_status)


def listen(port_file: Path) -> socket.socket:
    """Return a socket on loopback at the port of the last start; at any free one if another program has that."""
    try:
        known = read_port(port_file)
    except Exception:
        known = 0
    for port in (known, 0):
        listener = socket.socket(socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            listener.close()
            if port == 0:
                raise
            continue
        listener.listen(_BACKLOG)
        return listener
    raise AssertionError("a free port was not tried")


def _guarded(app: ASGIApp, guard: Guard) -> ASGIApp:
    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := guard(scope["path"].split("/")[1])) is not None:
            await refusal(error)(scope, receive, send)
        else:
            await app(scope, receive, send)

    return call
