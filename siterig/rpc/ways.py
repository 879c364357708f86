"""The ways of calls to a role: a Unix socket within a host, TCP with TLS between the sides.

A client looks for the socket of its link before each call: while it is there, a proxy with faults stands in the link
(decision 0028), and the call goes through it on a connection of its own, so that each call meets the rules of connections.

Fault contract: sockets, ports and certificates change at any time.  Each call uses those that are there when it begins.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import httpcore
import httpx
import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.trust.identity import Identity, Stamp, TlsContext
from siterig.rpc.contract import CALL_HEADER

ANSWER_BYTES_MAX = 256 << 20
"""The size of a list of a million recovery points; no role has a longer answer."""
HOST = "127.0.0.1"
IDLE_S = 600.0
"""A connection with TLS that no call has used for so long is closed; the server would keep it for longer."""
IDLE_CONNECTIONS_MAX = 4
_NOBODY = (errno.ENOENT, errno.ECONNREFUSED)
"""The errors of a connect to a socket without a listener."""


class Way(Protocol):
    """The way of calls from one client to one role."""

    role: str
    """The role that answers."""
    sockets: Path
    """The folder of the rig's sockets, for a guide."""
    link: Path | None
    """The socket of the proxy in the link."""
    tls_link: str | None
    """The name of a link with TLS."""

    @property
    def place(self) -> str:
        """The address of the role, for messages."""
        ...

    async def exchange(self, path: str, body: bytes, call: str | None = None) -> httpx.Response:
        """Send a request and return the answer, which is read completely.

        Args:
            path: SERVICE/METHOD with a slash before it.
            body: the arguments.
            call: the name of the call, by which the client can ask for it.

        Raises:
            TransportError: the library reports no answer; a ``ConnectError`` means that nothing was sent.
            RigError: ``BadAnswer``, or the reason for which the way cannot be used.
        """
        ...


class SocketWay(Way):
    """A Unix socket.  A role keeps its connections, because a new one costs both sides as much as the call itself."""

    def __init__(self, socket: Path, link: Path | None = None, *, keeps: bool = False) -> None:
        """Choose a role.

        Args:
            socket: the socket of the role.
            link: the socket of the proxy in the link, which need not exist.
            keeps: keep connections for later calls, in a process that lives as long as its calls.
        """
        self.role, self.sockets, self.link, self.tls_link = socket.stem, socket.parent, link, None
        self._socket = socket
        self._transport = _socket_transport(socket, keeps=keeps)
        self._linked: httpx.AsyncHTTPTransport | None = None

    @property
    def place(self) -> str:
        return str(self._socket)

    async def exchange(self, path: str, body: bytes, call: str | None = None) -> httpx.Response:
        if self.link is not None and os.path.lexists(self.link):  # a fault rule is armed on the link
            if self._linked is None:
                self._linked = _socket_transport(self.link, keeps=False)
            try:
                return await _exchange(self._linked, self.role, f"http://rig{path}", body, call)
            except httpx.ConnectError:  # the last rule was just removed, or the director of the faults was killed
                pass
        return await _exchange(self._transport, self.role, f"http://rig{path}", body, call)

    async def aclose(self) -> None:
        """Close the kept connections."""
        await self._transport.aclose()


class TlsWay(Way):
    """TCP with TLS 1.3 on the loopback interface; connections are kept for later calls, because a handshake takes long."""

    def __init__(
        self,
        role: str,
        port_file: Path,
        link: Path,
        sockets: Path,
        *,
        context: Callable[[], TlsContext],
        service_role: str,
        register: Path | None = None,
    ) -> None:
        """Choose a role.

        Args:
            role: the role that answers.
            port_file: the file with the port at which it listens.
            link: the socket of the proxy in the link; it need not exist.
            sockets: the folder of the rig's sockets.
            context: makes the settings of TLS, or raises the reason for which this side has no certificate.
            service_role: the role of the certificate of the other side, for the name that TLS sends.
            register: a file that decides about certificates of the other side; a change of it ends kept connections.
        """
        self.role, self.sockets, self.link, self.tls_link = role, sockets, link, link.stem
        self._port_file, self._make_context, self._name = port_file, context, f"{service_role}.siterig.internal"
        self._identity: Identity | None = None
        self._register = None if register is None else Identity(register)
        self._stamps: tuple[Stamp | None, ...] = ()
        self._direct: _TlsTransport | None = None
        self._linked: _TlsTransport | None = None
        self._calls: Counter[int] = Counter()

    @property
    def place(self) -> str:
        try:
            return f"{HOST}:{read_port(self._port_file)}"
        except httpx.ConnectError:
            return f"{HOST} (it has not listened yet)"

    async def exchange(self, path: str, body: bytes, call: str | None = None) -> httpx.Response:
        await self._follow_identity()
        if self.link is not None and os.path.lexists(self.link):
            assert self._linked is not None  # noqa: S101 (made above)
            try:
                return await self._use(self._linked, f"https://{self._name}{path}", body, call)
            except httpx.ConnectError as error:
                if not _is_nobody_there(error):  # a fault of the link: a direct connection would go past it
                    raise
        assert self._direct is not None  # noqa: S101 (made above)
        return await self._use(self._direct, f"https://{HOST}:{read_port(self._port_file)}{path}", body, call)

    async def aclose(self) -> None:
        """Close the kept connections; calls that are under way end with an error."""
        transports, self._direct, self._linked = (self._direct, self._linked), None, None
        for transport in transports:
            if transport is not None:
                await transport.aclose()

    async def _follow_identity(self) -> None:
        """Connect with the certificates that are right now; connections with others end with their last call."""
        if self._direct is not None and self._read_stamps() == self._stamps:
            return
        former = (self._direct, self._linked)
        context = self._make_context()
        self._identity = context.identity
        self._stamps = self._read_stamps()
        assert self.link is not None  # noqa: S101 (the constructor demands one)
        self._direct, self._linked = _TlsTransport(context), _TlsTransport(context, self.link)
        for transport in former:
            await self._close_unused(transport)

    def _read_stamps(self) -> tuple[Stamp | None, ...]:
        return tuple(file.stamp for file in (self._identity, self._register) if file is not None)

    async def _use(self, transport: _TlsTransport, url: str, body: bytes, call: str | None) -> httpx.Response:
        self._calls[id(transport)] += 1
        try:
            return await _exchange(transport, self.role, url, body, call, extensions={"sni_hostname": self._name})
        finally:
            self._calls[id(transport)] -= 1
            if transport not in (self._direct, self._linked):
                with trio.CancelScope(shield=True):
                    await self._close_unused(transport)

    async def _close_unused(self, transport: _TlsTransport | None) -> None:
        if transport is not None and not self._calls[id(transport)]:
            del self._calls[id(transport)]
            await transport.aclose()


class _TlsTransport(httpx.AsyncHTTPTransport):
    """Connections with TLS: kept ones to an address, or one for each call to the socket of a link."""

    def __init__(self, context: TlsContext, link: Path | None = None) -> None:
        super().__init__(verify=context)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=None,
            max_keepalive_connections=IDLE_CONNECTIONS_MAX if link is None else 0,
            keepalive_expiry=IDLE_S,
            uds=None if link is None else str(link),
            network_backend=_Network(),
        )


class _Network(httpcore.AsyncNetworkBackend):
    """The network of httpcore for trio; it closes a connection whose handshake is cancelled, which httpcore does not."""

    def __init__(self) -> None:
        self._trio = httpcore.TrioBackend()

    async def connect_tcp(self, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._trio.connect_tcp(*arguments, **options))

    async def connect_unix_socket(self, *arguments: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(await self._trio.connect_unix_socket(*arguments, **options))


class _Stream(httpcore.AsyncNetworkStream):
    """A connection before its handshake."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with trio.CancelScope(shield=True):
                await self._stream.aclose()
            raise


def read_port(port_file: Path) -> int:
    """Return the port that a role has written into its file.

    Raises:
        ConnectError: there is no such file, or none with a port: nobody listens.
    """
    try:
        text = port_file.read_text()
    except FileNotFoundError:
        raise httpx.ConnectError(f"{port_file.name} does not exist yet") from None
    if not (text.strip().isascii() and text.strip().isdigit() and 0 < int(text) < 1 << 16):
        raise RigError(Code.BadPort, f"{port_file} holds {text[:20]!r}; allowed: a port from 1 to 65535; remove the file")
    return int(text)


def _is_nobody_there(error: httpx.ConnectError) -> bool:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError):
            return found.errno in _NOBODY
        found = found.__cause__ or found.__context__
    return False


def _socket_transport(socket: Path, *, keeps: bool) -> httpx.AsyncHTTPTransport:
    """Return a transport over a socket.

    A kept connection is closed when its server ends, and the library looks for that before it uses one.
    """
    kept_max = IDLE_CONNECTIONS_MAX if keeps else 0
    limits = httpx.Limits(max_keepalive_connections=kept_max, max_connections=None, keepalive_expiry=IDLE_S)
    return httpx.AsyncHTTPTransport(uds=str(socket), verify=False, limits=limits)


async def _exchange(
    transport: httpx.AsyncHTTPTransport,
    role: str,
    url: str,
    body: bytes,
    call: str | None,
    *,
    extensions: dict[str, str] | None = None,
) -> httpx.Response:
    """Send a request; without a client of the library, whose cookies, redirects and defaults cost as much as the call."""
    headers = {} if call is None else {CALL_HEADER: call}
    request = httpx.Request("POST", url, content=body, headers=headers, extensions=dict(extensions or {}))
    answer = await transport.handle_async_request(request)
    try:
        size_bytes = int(answer.headers.get("content-length", 0))  # every answer of the server has it
        if size_bytes > ANSWER_BYTES_MAX:
            raise RigError(
                Code.BadAnswer, f"the {role} answers with {size_bytes} bytes; at most {ANSWER_BYTES_MAX} are read"
            )
        await answer.aread()
    finally:
        with trio.CancelScope(shield=True):
            await answer.aclose()
    return answer
