"""A proxy for one link, over TCP or Unix sockets, whose conditions change while its connections are open.

Fault contract: without conditions the proxy changes nothing but addresses: ends of streams and resets pass in both
directions, and one connection of a client is one connection to the server.  If the server refuses it, that of the client is
reset.  Descriptors that are passed over a Unix socket do not pass the proxy.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from random import Random
from struct import pack

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.net.pacing import Pacer
from siterig.net.shaping import FlowConditions, LinkControl, Side
from siterig.net.splicing import SpliceEnd, Splicer, run_splicer

PIECE_BYTES = 1 << 16
PIECES_WAITING_MAX = 64
"""Pieces that may wait for their latency in one direction: 4 MiB, so 40 MiB/s at a latency of 100 ms."""
THREADS_MAX = 4096
SOCKET_MODE = 0o600
_ABORT = pack("ii", 1, 0)
"""``struct linger``: a close resets the connection."""
_SOON_S = 1e-6
"""A time that is not worth a wait."""
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)

LinkAddress = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""

log = structlog.get_logger(__name__)


class _LinkCutError(Exception):
    """The connection ends now: by a fault, or because one side broke its own."""


async def serve_link_proxy(
    server: LinkAddress,
    control: LinkControl,
    listen: LinkAddress = ("127.0.0.1", 0),
    *,
    clock: Clock = SYSTEM_CLOCK,
    task_status: trio.TaskStatus[LinkAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the proxy of a link until cancelled; the value of the start is the address at which it listens.

    Args:
        server: the server behind the link.
        control: the conditions.
        listen: the address for clients; port 0 takes any free one.  A Unix socket must not exist; it is removed at the end.
        clock: measures latencies and rates.
        task_status: of ``nursery.start``.
    Raises:
        RigError: ``PortTaken`` if another program listens at the address.
    """
    listener = _listener(listen)
    address = listen if isinstance(listen, Path) else (listen[0], int(listener.socket.getsockname()[1]))
    numbers = count(1)
    limiter = trio.CapacityLimiter(THREADS_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        await _Link(stream, server, control, clock=clock, limiter=limiter, number=next(numbers)).serve()

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, serve, [listener])
            task_status.started(address)
    finally:
        if isinstance(listen, Path):
            listen.unlink(missing_ok=True)


def _listener(listen: LinkAddress) -> trio.SocketListener:
    plain = socket.socket(socket.AF_UNIX if isinstance(listen, Path) else socket.AF_INET)
    try:
        if isinstance(listen, Path):
            plain.bind(str(listen))
            listen.chmod(SOCKET_MODE)  # before it listens: nobody can have connected
        else:
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            plain.bind(listen)
        plain.listen(1024)
    except OSError as error:
        plain.close()
        raise RigError(Code.PortTaken, f"a link cannot listen at {_text(listen)}: {error.strerror or error}") from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(plain))


async def _connect(server: LinkAddress) -> trio.SocketStream:
    if isinstance(server, Path):
        return await trio.open_unix_socket(server)
    stream: trio.SocketStream = await trio.open_tcp_stream(*server)
    return stream


def _text(address: LinkAddress) -> str:
    return str(address) if isinstance(address, Path) else f"{address[0]}:{address[1]}"


def _reset(stream: trio.SocketStream) -> None:
    """Close a stream so that the other side gets ``ECONNRESET``; of a Unix socket this is the case if bytes are unread."""
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    stream.socket.close()


class _Link:
    """One connection through the proxy."""

    def __init__(
        self,
        client: trio.SocketStream,
        server: LinkAddress,
        control: LinkControl,
        *,
        clock: Clock,
        limiter: trio.CapacityLimiter,
        number: int,
    ) -> None:
        self._client = client
        self._server = server
        self.control = control
        self.clock = clock
        self.limiter = limiter
        self.number = number
        self._scope = trio.CancelScope()
        self._is_reset = False

    async def serve(self) -> None:
        """Carry the connection to its end."""
        counters = self.control.counters
        counters.connections += 1
        if self.control.conditions.is_refused:
            counters.refused += 1
            self.control.note(f"connection {self.number} is refused")
            _reset(self._client)
            return
        try:
            upstream = await _connect(self._server)
        except OSError as error:
            log.info("link_server_unreachable", server=_text(self._server), reason=str(error))
            _reset(self._client)
            return
        counters.open += 1
        self.control.add_connection(self.number, self._reset)
        try:
            await self._carry(upstream)
        finally:
            self.control.remove_connection(self.number)
            counters.open -= 1
            for stream in (self._client, upstream):
                if self._is_reset:
                    _reset(stream)
                stream.socket.close()

    def _reset(self) -> None:
        self._is_reset = True
        self._scope.cancel()

    async def _carry(self, upstream: trio.SocketStream) -> None:
        with self._scope:
            half_open = await self._run_flows(upstream)
            if half_open is not None:
                self.control.counters.half_opened += 1
                self.control.note(f"connection {self.number} is half-open: the {half_open} sees its end")
                (self._client if half_open == "client" else upstream).socket.close()
                while self.control.conditions.half_open is not None:
                    await self.control.changed.wait()
                self._is_reset = True  # as a host answers for connections that it does not know

    async def _run_flows(self, upstream: trio.SocketStream) -> Side | None:
        """Carry both directions to their ends; return early if the connection becomes half-open."""
        half_open: Side | None = None

        async def watch(flows: trio.CancelScope) -> None:
            nonlocal half_open
            while (half_open := self.control.conditions.half_open) is None:
                await self.control.changed.wait()
            flows.cancel()

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, nursery.cancel_scope)
                async with trio.open_nursery() as flows:
                    flows.start_soon(_Flow(self, self._client, upstream, is_upstream=True).run)
                    flows.start_soon(_Flow(self, upstream, self._client, is_upstream=False).run)
                nursery.cancel_scope.cancel()
        except* _LinkCutError:
            pass
        return half_open

    def break_off(self, effect: str | None = None) -> _LinkCutError:
        """Return the error that ends the connection: by a cut with that effect, or else because one side broke it."""
        if effect is None:
            self._is_reset = True
        else:
            self._is_reset = self.control.conditions.cut_resets
            self.control.counters.cuts += 1
            self.control.note(f"connection {self.number}: {effect}")
        return _LinkCutError()


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes on their way, or with no data the end of the stream; ``luck`` is from -1 to 1."""

    arrived_s: float
    luck: float
    data: bytes


class _Flow:
    """One direction of a connection."""

    def __init__(self, link: _Link, source: trio.SocketStream, target: trio.SocketStream, *, is_upstream: bool) -> None:
        self._link = link
        self._source = source
        self._target = target
        self._is_upstream = is_upstream
        self._random = Random(f"{link.control.seed}:{link.number}:{is_upstream}")  # noqa: S311 (repeatable on purpose)
        self._rest = b""
        self._waiting_bytes = 0
        self._delivered_bytes = 0
        self._cut: FlowConditions | None = None
        self._cut_from_bytes = 0
        self._pacer: Pacer | None = None
        self._rate_bytes_s: float | None = None

    @property
    def _conditions(self) -> FlowConditions:
        conditions = self._link.control.conditions
        return conditions.upstream if self._is_upstream else conditions.downstream

    async def run(self) -> None:
        """Carry the bytes to the end of the stream."""
        try:
            while not await (self._splice() if self._conditions.is_plain and not self._rest else self._shape()):
                pass
        finally:
            self._add_waiting(-self._waiting_bytes)

    def _count(self, byte_count: int) -> None:
        self._delivered_bytes += byte_count
        counters = self._link.control.counters
        if self._is_upstream:
            counters.upstream_bytes += byte_count
        else:
            counters.downstream_bytes += byte_count

    async def _end(self) -> None:
        with suppress(*_BROKEN):
            await self._target.send_eof()

    # --- without conditions ---------------------------------------------------------------------------------------------

    async def _splice(self) -> bool:
        """Move bytes in a thread until a change of the conditions; return True at the end of the stream."""
        control = self._link.control
        splicer = Splicer(self._source.socket.fileno(), self._target.socket.fileno())
        control.add_thread(splicer.wake)
        try:
            end = await run_splicer(splicer, self._link.limiter)
        finally:
            self._count(splicer.moved_bytes)
            self._rest = splicer.rest
            control.remove_thread(splicer.wake)
            splicer.close()
        if end is SpliceEnd.END_OF_STREAM:
            await self._end()
        elif end is not SpliceEnd.WOKEN:
            raise self._link.break_off()
        return end is SpliceEnd.END_OF_STREAM

    # --- under conditions -----------------------------------------------------------------------------------------------

    async def _shape(self) -> bool:
        """Carry bytes under the conditions until there are none; return True at the end of the stream."""
        pieces, waiting = trio.open_memory_channel[_Piece](PIECES_WAITING_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, waiting)
            async with pieces:
                if self._rest:
                    await pieces.send(self._piece(self._rest))
                    self._rest = b""
                while not self._conditions.is_plain:
                    if (data := await self._receive_unless_changed()) is None:
                        continue
                    await pieces.send(self._piece(data))
                    if not data:
                        return True
        return False

    def _add_waiting(self, byte_count: int) -> None:
        self._waiting_bytes += byte_count
        self._link.control.counters.waiting_bytes += byte_count

    def _piece(self, data: bytes) -> _Piece:
        self._add_waiting(len(data))
        return _Piece(self._link.clock.trio_time_s(), self._random.uniform(-1, 1), data)

    async def _receive_unless_changed(self) -> bytes | None:
        """Return the next bytes; None if the conditions change before they come."""
        data: bytes | None = None
        changed = self._link.control.changed

        async def stop(scope: trio.CancelScope) -> None:
            await changed.wait()
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop, nursery.cancel_scope)
            try:
                data = bytes(await self._source.receive_some(PIECE_BYTES))
            except _BROKEN:
                raise self._link.break_off() from None
            nursery.cancel_scope.cancel()
        return data

    async def _deliver(self, waiting: trio.MemoryReceiveChannel[_Piece]) -> None:
        async for piece in waiting:
            await self._wait_due(piece)
            if not piece.data:
                await self._end()
            rest = piece.data
            while rest:
                await self._wait_not_held()
                rest = rest[await self._send_some(rest) :]

    async def _wait_due(self, piece: _Piece) -> None:
        clock, control = self._link.clock, self._link.control
        while True:
            changed, now = control.changed, self._conditions
            due_s = piece.arrived_s + max(0.0, now.latency_s + now.jitter_s * piece.luck)
            if not piece.data:
                due_s += now.close_delay_s
            left_s = due_s - clock.trio_time_s()
            if left_s < _SOON_S and not now.is_held:
                return
            with trio.CancelScope() if now.is_held else clock.move_on_after(left_s):
                await changed.wait()

    async def _wait_not_held(self) -> None:
        while self._conditions.is_held:
            await self._link.control.changed.wait()

    async def _send_some(self, data: bytes) -> int:
        """Send as much of the data as the conditions allow at once; return its length."""
        now = self._conditions
        if now.rate_bytes_s != self._rate_bytes_s:
            self._rate_bytes_s = now.rate_bytes_s
            self._pacer = None if now.rate_bytes_s is None else Pacer(now.rate_bytes_s, self._link.clock)
        if self._pacer is not None:
            data = next(self._pacer.pieces(data))
        left = self._bytes_until_cut(now)
        if left is not None:
            data = data[:left]
        try:
            await self._target.send_all(data)
        except _BROKEN:
            raise self._link.break_off() from None
        self._count(len(data))
        self._add_waiting(-len(data))
        if left is not None and left <= len(data):
            direction = "upstream" if self._is_upstream else "downstream"
            raise self._link.break_off(f"cut after {now.cut_after_bytes} bytes {direction}")
        if self._pacer is not None:
            await self._pacer.wait(len(data))
        return len(data)

    def _bytes_until_cut(self, now: FlowConditions) -> int | None:
        if now.cut_after_bytes is None:
            return None
        if now is not self._cut:
            self._cut, self._cut_from_bytes = now, self._delivered_bytes
        return max(0, self._cut_from_bytes + now.cut_after_bytes - self._delivered_bytes)
