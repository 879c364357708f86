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
    """A Unix socket.  Connecting takes microseconds, so each call has a connection of its own."""

    def __init__(self, socket: Path, link: Path | None = None) -> None:
        """Choose a role by its socket, and the socket of the proxy in the link, which need not exist."""
        self.role, self.sockets, self.link, self.tls_link = socket.stem, socket.parent, link, None
        self._socket = socket
        self._client = _socket_client(socket)
        self._linked: httpx.AsyncClient | None = None

    @property
    def place(self) -> str:
        return str(self._socket)

    async def exchange(self, path: str, body: bytes, call: str | None = None) -> httpx.Response:
        if self.link is not None and os.path.lexists(self.link):  # a fault rule is armed on the link
            if self._linked is None:
                self._linked = _socket_client(self.link)
            try:
                return await _exchange(self._linked, self.role, f"http://rig{path}", body, call)
            except httpx.ConnectError:  # the last rule was just removed, or the director of the faults was killed
                pass
        return await _exchange(self._client, self.role, f"http://rig{path}", body, call)


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
        self._client: httpx.AsyncClient | None = None
        self._linked: httpx.AsyncClient | None = None
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
        assert self._client is not None  # noqa: S101 (made above)
        return await self._use(self._client, f"https://{HOST}:{read_port(self._port_file)}{path}", body, call)

    async def aclose(self) -> None:
        """Close the kept connections; calls that are under way end with an error."""
        clients, self._client, self._linked = (self._client, self._linked), None, None
        for client in clients:
            if client is not None:
                await client.aclose()

    async def _follow_identity(self) -> None:
        """Make clients for the certificates that are right now; those for others end with their last call."""
        if self._client is not None and self._read_stamps() == self._stamps:
            return
        former = (self._client, self._linked)
        context = self._make_context()
        self._identity = context.identity
        self._stamps = self._read_stamps()
        assert self.link is not None  # noqa: S101 (the constructor demands one)
        self._client = _client(_TlsTransport(context))
        self._linked = _client(_TlsTransport(context, self.link))
        for client in former:
            await self._close_unused(client)

    def _read_stamps(self) -> tuple[Stamp | None, ...]:
        return tuple(file.stamp for file in (self._identity, self._register) if file is not None)

    async def _use(self, client: httpx.AsyncClient, url: str, body: bytes, call: str | None) -> httpx.Response:
        self._calls[id(client)] += 1
        try:
            return await _exchange(client, self.role, url, body, call, extensions={"sni_hostname": self._name})
        finally:
            self._calls[id(client)] -= 1
            if client not in (self._client, self._linked):
                with trio.CancelScope(shield=True):
                    await self._close_unused(client)

    async def _close_unused(self, client: httpx.AsyncClient | None) -> None:
        if client is not None and not self._calls[id(client)]:
            del self._calls[id(client)]
            await client.aclose()


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


def _socket_client(socket: Path) -> httpx.AsyncClient:
    """Return a client for a socket.

    It makes a fresh connection for each call: connecting to a Unix socket costs microseconds, and one that is kept could be
    closed by the server in the moment it is used again.
    """
    limits = httpx.Limits(max_keepalive_connections=0, max_connections=None)
    return _client(httpx.AsyncHTTPTransport(uds=str(socket), verify=False, limits=limits))


def _client(transport: httpx.AsyncHTTPTransport) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)  # noqa: S113 (methods have deadlines)


async def _exchange(
    client: httpx.AsyncClient,
    role: str,
    url: str,
    body: bytes,
    call: str | None,
    *,
    extensions: dict[str, str] | None = None,
) -> httpx.Response:
    headers = {} if call is None else {CALL_HEADER: call}
    async with client.stream("POST", url, content=body, headers=headers, extensions=extensions) as answer:
        size_bytes = int(answer.headers.get("content-length", 0))  # every answer of the server has it
        if size_bytes > ANSWER_BYTES_MAX:
            raise RigError(
                Code.BadAnswer, f"the {role} answers with {size_bytes} bytes; at most {ANSWER_BYTES_MAX} are read"
            )
        await answer.aread()
        return answer
