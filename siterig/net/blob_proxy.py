"""A reverse proxy in front of a blob service, Azurite or a real account, that gives its requests the faults of rules.

It sends on what it gets: method, target, headers with the case of their names, and body, so that signatures still hold.  One
connection of a client has one connection to the service, which is kept alive as the client's is.  Bodies are streamed: the
memory of a connection does not grow with them.

Fault contract: without a matching rule a client sees nothing that the service itself would not have shown.  A service that
cannot be reached, or that ends a connection, ends the client's connection.  No request is repeated, except that an idle
connection that the service has closed is replaced before anything is sent on it.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from email.utils import format_datetime
from struct import pack
from urllib.parse import urlsplit
from uuid import UUID
from xml.sax.saxutils import escape

import h11
import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.net.blob_faults import (
    BlobAction,
    BlobFaults,
    BlobInjection,
    BodyDamage,
    DistortTransfer,
    LoseRequest,
    RefuseRequest,
    WithholdAnswer,
    storage_error,
)
from siterig.net.blob_requests import ACKNOWLEDGED, BlobRequest, parse_request

HOST = "127.0.0.1"
CHUNK_BYTES = 1 << 18
"""Bytes that one read takes at most."""
HEADER_BYTES_MAX = 1 << 17
PIECES_PER_S = 20
"""A rate is kept by pauses; this many pieces of a body are sent in a second at least."""
_CONNECTION_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)

log = structlog.get_logger(__name__)


class _EndedError(Exception):
    """The connection to the client ends here: by a fault, or because the service has ended its own."""


@dataclass(frozen=True, slots=True)
class BlobService:
    """The service behind the proxy; ``tls`` is None for plain HTTP."""

    host: str
    port: int
    account_path: str
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str, *, account_in_path: bool, tls: ssl.SSLContext | None = None) -> BlobService:
        """Return the service of a ``BlobEndpoint``.

        Args:
            url: ``http://HOST:PORT/ACCOUNT`` or ``https://ACCOUNT.blob.core.windows.net``.
            account_in_path: True if the first part of the path is the account, as with Azurite.
            tls: settings for ``https``; by default the certificates of the system are trusted.
        Raises:
            RigError: ``BadRequest``.
        """
        found = urlsplit(url)
        if found.scheme not in ("http", "https") or not found.hostname or found.query:
            raise RigError(Code.BadRequest, f"blob service {url!r}: allowed: http://HOST:PORT/ACCOUNT or https://HOST")
        path = found.path.rstrip("/")
        if account_in_path != bool(path):
            wants = "the account as its path" if account_in_path else "no path"
            raise RigError(Code.BadRequest, f"blob service {url!r} needs {wants}")
        is_tls = found.scheme == "https"
        context = (tls or ssl.create_default_context()) if is_tls else None
        return cls(found.hostname, found.port or (443 if is_tls else 80), path, context)

    async def connect(self) -> trio.abc.Stream:
        """Open a connection."""
        stream: trio.SocketStream = await trio.open_tcp_stream(self.host, self.port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream if self.tls is None else trio.SSLStream(stream, self.tls, server_hostname=self.host)


@dataclass(slots=True)
class _Peer:
    """One side of a connection: bytes, and the HTTP messages in them."""

    stream: trio.abc.Stream
    http: h11.Connection

    async def receive(self) -> h11.Event | type[h11.PAUSED]:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event  # type: ignore[return-value] # it is one of the others
            self.http.receive_data(bytes(await self.stream.receive_some(CHUNK_BYTES)))

    async def send(self, event: h11.Event) -> None:
        for piece in self.http.send_with_data_passthrough(event) or ():
            await self.stream.send_all(piece)

    def has_ended(self) -> bool:
        """Return True if the other side has closed or broken this idle connection, or has sent what nobody asked for."""
        stream = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        try:
            stream.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)  # type: ignore[attr-defined] # a SocketStream
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the rest of the body of the current message."""
        while True:
            event = await self.receive()
            if not isinstance(event, h11.Data):
                return
            yield bytes(event.data)
