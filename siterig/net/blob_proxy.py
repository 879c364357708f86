"""A reverse proxy in front of a blob service, Azurite or a real account, which applies faults to its requests.

It forwards what it gets: method, target, headers with the case of their names, and body, so that signatures stay valid.  One
connection of a client has one connection to the service, which is kept alive as long as the client's is.  Bodies are
streamed: the memory of a connection does not grow with them.

Fault contract: without a rule a client sees nothing that the service itself would not have shown.  A service that cannot be
reached, or that ends a connection, ends the client's connection.  No request is repeated; but an idle connection that the
service has closed is replaced before anything is sent on it.
"""

from __future__ import annotations

import errno
import hashlib
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import format_datetime
from functools import partial
from http import HTTPStatus
from itertools import count
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
    HoldTransfer,
    LoseRequest,
    RefuseRequest,
    WithholdAnswer,
)
from siterig.net.blob_requests import ACKNOWLEDGED, BlobRequest, parse_request
from siterig.net.body_filter import BodyFilter
from siterig.net.http_peer import CONNECTION_ERRORS, HttpPeer
from siterig.net.pacing import Pacer

HOST = "127.0.0.1"
HTTPS_PORT = 443
SPLICED_BYTES_MIN = 1 << 17
"""A longer body without damage is moved by splice(2)."""
THREADS_MAX = 4096
Headers = list[tuple[bytes, bytes]]

log = structlog.get_logger(__name__)


class _ConnectionOverError(Exception):
    """The client's connection ends now: by a fault, or because the service has ended its own."""


@dataclass(frozen=True, slots=True)
class BlobService:
    """The service behind the proxy; ``tls`` is None for plain HTTP."""

    host: str
    port: int
    account_path: str
    tls: ssl.SSLContext | None = None

    @classmethod
    def parse(cls, url: str, *, tls: ssl.SSLContext | None = None) -> BlobService:
        """Return the service of a ``BlobEndpoint``.

        Args:
            url: ``http://HOST:PORT/ACCOUNT`` of an emulator, or ``https://ACCOUNT.blob.core.windows.net``.
            tls: settings for ``https``; by default the certificates of the system are trusted.
        Raises:
            RigError: ``BadRequest``.
        """
        try:
            found = urlsplit(url)
            port = found.port
        except ValueError:
            raise _bad_url(url) from None
        path = found.path.rstrip("/")
        if found.scheme not in ("http", "https") or not found.hostname or found.query or path.count("/") > 1:
            raise _bad_url(url)
        is_tls = found.scheme == "https"
        context = (tls or ssl.create_default_context()) if is_tls else None
        return cls(found.hostname, port or (HTTPS_PORT if is_tls else 80), path, context)

    async def connect(self) -> HttpPeer:
        """Open a connection.

        Raises:
            OSError: the service cannot be reached, or its certificate is not trusted.
        """
        stream = await trio.open_tcp_stream(self.host, self.port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.tls is None:
            return HttpPeer(stream, h11.CLIENT)
        secure = trio.SSLStream(stream, self.tls, server_hostname=self.host, https_compatible=True)
        try:
            await secure.do_handshake()
        except trio.BrokenResourceError as error:
            stream.socket.close()
            raise OSError(f"no TLS: {error.__cause__ or error}") from error
        except BaseException:
            stream.socket.close()
            raise
        return HttpPeer(secure, h11.CLIENT)

    def forwarded(self, headers: Headers) -> Headers:
        """Return the headers of a request as the service must get them.

        They stay as they are, ``Host`` included.  Only a service behind TLS, which has its account in its host name, gets
        that name; no signature covers ``Host``.
        """
        if self.tls is None:
            return headers
        host = f"[{self.host}]" if ":" in self.host else self.host
        text = (host if self.port == HTTPS_PORT else f"{host}:{self.port}").encode()
        return [(name, text if name.lower() == b"host" else value) for name, value in headers]


def _bad_url(url: str) -> RigError:
    return RigError(Code.BadRequest, f"blob service {url!r}: allowed: http://HOST:PORT/ACCOUNT or https://HOST")


async def serve_blob_proxy(
    service: BlobService,
    faults: BlobFaults,
    *,
    port: int = 0,
    clock: Clock = SYSTEM_CLOCK,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the proxy on the loopback interface until cancelled; the value of the start is its port.

    Args:
        service: the service behind it.
        faults: decides about each request.
        port: the port; 0 takes any free one.
        clock: measures delays and rates.
        task_status: of ``nursery.start``.
    Raises:
        RigError: ``PortTaken``.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=HOST)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise RigError(Code.PortTaken, f"port {port} on {HOST} is taken by another program (ss -ltnp shows it)") from error
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, BlobProxy(service, faults, clock=clock).serve, listeners)
        task_status.started(listeners[0].socket.getsockname()[1])


class BlobProxy:
    """The proxy, without a listener: it serves the connections that it is given."""

    def __init__(
        self,
        service: BlobService,
        faults: BlobFaults,
        *,
        tls: ssl.SSLContext | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """Begin; requests of all connections are numbered together.

        Args:
            service: the service behind it.
            faults: decides about each request.
            tls: settings of a server, if clients speak HTTPS: the proxy has to see their requests.
            clock: measures delays and rates.
        """
        self._service, self._faults, self._tls, self._clock = service, faults, tls, clock
        self._numbers = count(1)
        self._limiter = trio.CapacityLimiter(THREADS_MAX)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve the connection of one client, over TCP or a Unix socket, to its end."""
        if stream.socket.family != socket.AF_UNIX:
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client: trio.abc.Stream = stream
        if self._tls is not None:
            client = secure = trio.SSLStream(stream, self._tls, server_side=True, https_compatible=True)
            try:
                await secure.do_handshake()
            except trio.BrokenResourceError:  # the client has ended the connection, or does not trust the certificate
                stream.socket.close()
                return
            except BaseException:
                stream.socket.close()
                raise
        await _BlobConnection(
            client,
            self._service,
            self._faults,
            clock=self._clock,
            limiter=self._limiter,
            next_number=partial(next, self._numbers),
        ).serve()


class _BlobConnection:
    """The connection of one client, and the one to the service that belongs to it."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        service: BlobService,
        faults: BlobFaults,
        *,
        clock: Clock,
        limiter: trio.CapacityLimiter,
        next_number: Callable[[], int],
    ) -> None:
        self._client = HttpPeer(stream, h11.SERVER)
        self._service = service
        self._upstream: HttpPeer | None = None
        self._faults = faults
        self._clock = clock
        self._limiter = limiter
        self._next_number = next_number

    async def serve(self) -> None:
        """Serve all requests of the client."""
        try:
            while await self._serve_one():
                pass
        except* (_ConnectionOverError, *CONNECTION_ERRORS):
            await self._explain_bad_request()
        finally:
            self._close_upstream()
            self._client.close()

    async def _serve_one(self) -> bool:
        """Serve one request; return False at the end of the connection."""
        message = await self._client.receive()
        if not isinstance(message, h11.Request):
            return False
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in message.headers}
        method, target = message.method.decode("latin-1"), message.target.decode("latin-1")
        request = parse_request(self._next_number(), method, target, headers, self._service.account_path)
        action = self._faults.decide(request)
        if action is not None and action.delay_s > 0:
            self._note(request, action, f"delayed by {action.delay_s:g} s")
            await self._clock.sleep(action.delay_s)
        if action is not None and action.before is not None:
            action = await action.before()
        match action:
            case RefuseRequest():
                await self._refuse(message, request, action, headers)
            case LoseRequest():
                await self._lose(request, action, headers)
            case WithholdAnswer():
                await self._withhold(message, request, action)
            case HoldTransfer():
                await self._hold_and_forward(message, request, action)
            case DistortTransfer():
                await self._forward(message, request, action)
            case _:
                await self._forward(message, request, DistortTransfer())
        return self._client.next_cycle()

    def _note(
        self, request: BlobRequest, action: BlobAction, effect: str, *, rule: str = "", is_nothing: bool = False
    ) -> None:
        log.info(
            "blob_fault",
            rule=rule or action.rule,
            request=request.number,
            operation=request.operation,
            path=request.path,
            effect=f"nothing: {effect}" if is_nothing else effect,
        )
        self._faults.injected(BlobInjection(request, action, effect, rule or action.rule, is_nothing))

    # --- answers of the proxy itself --------------------------------------------------------------------------------

    async def _refuse(
        self, message: h11.Request, request: BlobRequest, action: RefuseRequest, headers: dict[str, str]
    ) -> None:
        if action.is_carried_out:
            status = await self._carry_out(message, request)
            effect = f"answered {action.status} {action.code} in place of {status}"
        else:
            await self._discard_request()
            effect = f"answered {action.status} {action.code}, nothing was forwarded"
        more: Headers = [(b"x-ms-error-code", action.code.encode())]
        if action.retry_after_s is not None:
            more.append((b"Retry-After", str(action.retry_after_s).encode()))
            effect += f", Retry-After {action.retry_after_s}"
        self._note(request, action, effect)
        text = f"{action.message or action.code}\nRequestId:{_request_id(request)}\nTime:{self._clock.utc().isoformat()}"
        body = (
            '\ufeff<?xml version="1.0" encoding="utf-8"?>'
            f"<Error><Code>{escape(action.code)}</Code><Message>{escape(text)}</Message></Error>"
        ).encode()
        more.append((b"Content-Type", b"application/xml"))
        has_body = request.method != "HEAD" and action.status != HTTPStatus.NOT_MODIFIED
        await self._answer(request, action.status, headers, more, body if has_body else b"")

    async def _lose(self, request: BlobRequest, action: LoseRequest, headers: dict[str, str]) -> None:
        status = ACKNOWLEDGED.get(request.operation)
        if status is None:
            raise RigError(Code.BadRequest, f"rule {action.rule!r}: {request.operation} cannot be acknowledged and lost")
        digest = hashlib.md5(usedforsecurity=False)
        lost_bytes = 0
        while (data := await self._client.receive_data()) is not None:
            digest.update(data)
            lost_bytes += len(data)
        self._note(request, action, f"answered {status}, and {lost_bytes} bytes were not stored")
        now = format_datetime(self._clock.utc(), usegmt=True).encode()
        more: Headers = [(b"ETag", f'"0x{request.number:015X}"'.encode()), (b"Last-Modified", now)]
        if request.body_bytes != 0:
            more += [(b"Content-MD5", b64encode(digest.digest())), (b"x-ms-request-server-encrypted", b"true")]
        await self._answer(request, status, headers, more, b"")

    async def _answer(self, request: BlobRequest, status: int, headers: dict[str, str], more: Headers, body: bytes) -> None:
        """Send an answer as the service builds it."""
        all_headers: Headers = [
            *more,
            (b"x-ms-request-id", _request_id(request).encode()),
            (b"x-ms-version", headers.get("x-ms-version", "").encode()),
            (b"Date", format_datetime(self._clock.utc(), usegmt=True).encode()),
        ]
        if request.client_request_id:
            all_headers.append((b"x-ms-client-request-id", request.client_request_id.encode("latin-1")))
        if status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
            all_headers.append((b"Content-Length", str(len(body)).encode()))
        await self._client.send(h11.Response(status_code=status, headers=all_headers, reason=_reason(status)))
        if body:
            await self._client.send(h11.Data(data=body))
        await self._client.send(h11.EndOfMessage())

    async def _discard_request(self) -> None:
        while await self._client.receive_data() is not None:
            pass

    async def _explain_bad_request(self) -> None:
        """Answer what is not HTTP, if the client can still get an answer."""
        http = self._client.http
        if http.their_state is not h11.ERROR or http.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        with suppress(*CONNECTION_ERRORS):
            await self._client.send(
                h11.Response(status_code=400, headers=[(b"Content-Length", b"0"), (b"Connection", b"close")])
            )
            await self._client.send(h11.EndOfMessage())

    # --- the way to the service ---------------------------------------------------------------------------------------

    async def _withhold(self, message: h11.Request, request: BlobRequest, action: WithholdAnswer) -> None:
        if action.is_carried_out:
            effect = f"the service answered {await self._carry_out(message, request)}, which the client does not get"
        else:
            if not action.is_reset:
                await self._discard_request()
            effect = "not forwarded, not answered"
        self._note(request, action, f"{effect}; the connection is reset" if action.is_reset else effect)
        if action.is_reset:
            self._client.reset()
        else:
            await self._client.wait_closed()
        raise _ConnectionOverError

    async def _carry_out(self, message: h11.Request, request: BlobRequest) -> int:
        """Let the service carry out a request, drop its answer, and return the status of the answer."""
        upstream = await self._send_head(message)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._upload, upstream, request.body_bytes, _Transfer())
            response = await self._receive_head(upstream)
            while await upstream.receive_data() is not None:
                pass
        if not upstream.next_cycle():
            self._close_upstream()
        return response.status_code

    async def _hold_and_forward(self, message: h11.Request, request: BlobRequest, action: HoldTransfer) -> None:
        if action.is_carried_out:
            await self._forward(message, request, DistortTransfer(), hold=action)
        else:
            await self._hold(request, action)
            await self._forward(message, request, DistortTransfer())

    async def _hold(self, request: BlobRequest, action: HoldTransfer) -> None:
        """Wait until the request, or its answer, may pass; reset the connection if that takes too long."""
        self._note(request, action, "its answer is held" if action.is_carried_out else "the request is held")
        limit = self._clock.move_on_after(action.close_after_s) if action.close_after_s is not None else trio.CancelScope()
        with limit as scope:
            await action.released()
        if scope.cancelled_caught:
            self._note(request, action, "the connection is reset")
            self._client.reset()
            raise _ConnectionOverError

    async def _forward(
        self, message: h11.Request, request: BlobRequest, action: DistortTransfer, *, hold: HoldTransfer | None = None
    ) -> None:
        if action.rate_bytes_s is not None:
            self._note(request, action, f"both bodies have at most {action.rate_bytes_s:g} bytes a second")
        for rule, pacer in action.pacers:
            self._note(request, action, f"bodies have at most {pacer.bytes_s:g} bytes a second", rule=rule)
        filters = self._filters(request, action, action.request, request.body_bytes, "the body of the request")
        upstream = await self._send_head(message)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._upload, upstream, request.body_bytes, _Transfer(filters, self._pacers(action)))
            response = await self._receive_head(upstream)
            if hold is not None:
                await self._hold(request, hold)
            await self._download(upstream, response, request, action)
        if not upstream.next_cycle():
            self._close_upstream()

    def _filters(
        self,
        request: BlobRequest,
        action: BlobAction,
        damages: Sequence[BodyDamage],
        body_bytes: int | None,
        name: str,
    ) -> list[BodyFilter]:
        return [
            BodyFilter(damage, body_bytes, name, note, partial(note, is_nothing=True))
            for damage in damages
            for note in [partial(self._note, request, action, rule=damage.rule)]
        ]

    def _pacers(self, action: DistortTransfer) -> list[Pacer]:
        own = [] if action.rate_bytes_s is None else [Pacer(action.rate_bytes_s, self._clock)]
        return [*own, *(pacer for _, pacer in action.pacers)]

    async def _send_head(self, message: h11.Request) -> HttpPeer:
        """Send the head of a request to the service; return the connection."""
        if self._upstream is not None and self._upstream.has_ended:
            self._close_upstream()
        if self._upstream is None:
            try:
                self._upstream = await self._service.connect()
            except OSError as error:
                log.warning("blob_service_unreachable", host=self._service.host, port=self._service.port, reason=str(error))
                self._client.reset()
                raise _ConnectionOverError from error
        headers = self._service.forwarded(message.headers.raw_items())
        await self._upstream.send(h11.Request(method=message.method, target=message.target, headers=headers))
        return self._upstream

    async def _upload(self, upstream: HttpPeer, body_bytes: int | None, transfer: _Transfer) -> None:
        """Send the body of the request on; a service that answers early and closes its side does not get the rest."""
        if body_bytes is not None and body_bytes >= SPLICED_BYTES_MIN and transfer.is_plain and self._is_spliced(upstream):
            is_open = await self._client.splice_body(upstream, body_bytes, self._limiter)
        else:
            is_open = await self._send_body(upstream, transfer)
        if is_open:
            with suppress(*CONNECTION_ERRORS):
                await upstream.send(h11.EndOfMessage())

    def _is_spliced(self, upstream: HttpPeer) -> bool:
        return self._client.is_plain and upstream.is_plain

    async def _send_body(self, upstream: HttpPeer, transfer: _Transfer) -> bool:
        is_open = True
        while (data := await self._client.receive_data()) is not None:
            if not is_open:
                continue
            try:
                is_cut = await transfer.send(upstream, data)
            except CONNECTION_ERRORS:
                is_open = False
                continue
            if is_cut:
                raise _ConnectionOverError
        return is_open

    async def _receive_body(self, upstream: HttpPeer, transfer: _Transfer) -> bool:
        """Send the body of the answer to the client; return True if it was cut."""
        while (data := await upstream.receive_data()) is not None:
            if await transfer.send(self._client, data):
                return True
        return False

    @staticmethod
    async def _receive_head(upstream: HttpPeer) -> h11.Response:
        message = await upstream.receive()
        while isinstance(message, h11.InformationalResponse):  # 100 (Continue): the proxy has asked the client for the body
            message = await upstream.receive()
        if not isinstance(message, h11.Response):
            raise _ConnectionOverError
        return message

    async def _download(
        self, upstream: HttpPeer, response: h11.Response, request: BlobRequest, action: DistortTransfer
    ) -> None:
        headers = response.headers.raw_items()
        length = _answer_bytes(request, response)
        filters = self._filters(request, action, action.answer, length, "the body of the answer")
        hidden = next((found for found in filters if found.is_hidden), None)
        if hidden is not None and length is not None:
            kept = str(hidden.bytes_kept).encode()
            headers = [(name, kept if name.lower() == b"content-length" else value) for name, value in headers]
        transfer = _Transfer(filters, self._pacers(action))
        await self._client.send(h11.Response(status_code=response.status_code, headers=headers, reason=response.reason))
        if length is not None and length >= SPLICED_BYTES_MIN and transfer.is_plain and self._is_spliced(upstream):
            is_over = not await upstream.splice_body(self._client, length, self._limiter)
        else:
            is_over = await self._receive_body(upstream, transfer) and hidden is None
        if is_over:
            raise _ConnectionOverError
        await self._client.send(h11.EndOfMessage())

    def _close_upstream(self) -> None:
        if self._upstream is not None:
            upstream, self._upstream = self._upstream, None
            upstream.close()


@dataclass(slots=True)
class _Transfer:
    """One body on its way, with its damages and its rates."""

    filters: Sequence[BodyFilter] = ()
    pacers: Sequence[Pacer] = ()

    @property
    def is_plain(self) -> bool:
        """True if nothing is done to the body."""
        return not self.filters and not self.pacers

    async def send(self, to: HttpPeer, data: bytes) -> bool:
        """Send one piece; return True if the body ends after it."""
        is_cut = False
        for damage in self.filters:
            data, ends = damage.apply(data)
            is_cut = is_cut or ends
        while data:
            piece = data
            for pacer in self.pacers:
                piece = next(pacer.pieces(piece))
            await to.send(h11.Data(data=piece))
            for pacer in self.pacers:
                await pacer.wait(len(piece))
            data = data[len(piece) :]
        return is_cut


def _answer_bytes(request: BlobRequest, response: h11.Response) -> int | None:
    """Return the length of the body of an answer; None if its head does not have it."""
    if request.method == "HEAD" or response.status_code in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED):
        return 0
    headers = dict(response.headers)
    return int(headers[b"content-length"]) if b"content-length" in headers and b"transfer-encoding" not in headers else None


def _request_id(request: BlobRequest) -> str:
    return str(UUID(int=request.number))


def _reason(status: int) -> bytes:
    known = {each.value: each.phrase for each in HTTPStatus}
    return known.get(status, "").encode()
