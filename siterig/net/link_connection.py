"""One connection through the proxy of a link: its two directions, and the faults that its operations meet.

Bytes that no rule watches are moved by splice(2), in a thread for each direction; otherwise trio carries them.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from struct import pack

import structlog
import trio

from siterig.blockfs.core.clock import Clock
from siterig.net.link_faults import LinkControl, LinkFault, LinkSide, LinkStream
from siterig.net.splicing import SpliceEnd, Splicer, run_splicer

PIECE_BYTES = 1 << 16
PIECES_WAITING_MAX = 64
"""Pieces that may wait in one direction: 4 MiB, so 40 MiB/s at a delay of 100 ms."""
SEND_BUFFER_BYTES = 1 << 18
RECEIVE_BUFFER_BYTES = 1 << 20
"""The kernel would let these buffers grow to 4 and 32 MiB: the bytes leave the processor's cache, which halves the rate."""
_ABORT = pack("ii", 1, 0)
"""``struct linger``: a close resets the connection."""
_SOON_S = 1e-6
"""A time that is not worth a wait."""
_BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


log = structlog.get_logger(__name__)


class LinkCutError(Exception):
    """The connection ends now: by a fault, or because one side broke its own."""


def _tune(stream: trio.SocketStream) -> None:
    """Set the buffers of a TCP stream, and end pacing: a timer for each packet takes longer than the packet."""
    if stream.socket.family == socket.AF_INET:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        with suppress(OSError):  # the peer is gone already, or the administrator forbids reno
            if ip_address(stream.socket.getpeername()[0]).is_loopback:
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")  # bbr paces


def _reset(stream: trio.SocketStream) -> None:
    """Close a stream so that the other side gets ``ECONNRESET``; of a Unix socket this is the case if bytes are unread."""
    with suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
    stream.socket.close()


@dataclass(slots=True)
class _Cut:
    """Bytes that may still pass before the connection is closed."""

    fault: LinkFault
    left: int


class LinkConnection:
    """One connection of a client, and the one to the server that belongs to it."""

    def __init__(
        self,
        client: trio.SocketStream,
        connect: Callable[[], Awaitable[trio.SocketStream]],
        control: LinkControl,
        *,
        clock: Clock,
        limiter: trio.CapacityLimiter,
        number: int,
    ) -> None:
        self._client = client
        self._server: trio.SocketStream | None = None
        self._connect = connect
        self.control = control
        self.clock = clock
        self.limiter = limiter
        self._number = number
        self._is_reset = False
        self._timers: trio.Nursery
        self._holds: list[tuple[LinkFault, LinkStream | None]] = []
        self._cuts: dict[str, _Cut] = {}
        self._late: list[tuple[LinkFault, LinkStream]] = []
        self._half_open: tuple[LinkFault, LinkStream] | None = None
        self._half_opened = trio.Event()
        self._sending: tuple[LinkStream, int] | None = None

    async def serve(self) -> None:
        """Carry the connection to its end."""
        self.control.counters.connections += 1
        try:
            async with trio.open_nursery() as nursery:
                self._timers = nursery
                await self._serve()
                nursery.cancel_scope.cancel()
        except* LinkCutError:
            pass
        finally:
            if self._server is not None:
                self.control.counters.open -= 1
            for stream in (self._client, self._server):
                if stream is not None and self._is_reset:
                    _reset(stream)
                elif stream is not None:
                    stream.socket.close()

    async def _serve(self) -> None:
        faults = self.decide("connect", "upstream")
        await self.wait_delays(faults, self.clock.trio_time_s())
        ending = ending_of(faults)
        if ending is not None and ending.ending in ("reset", "refuse") and not (ending.is_late or ending.close_after_s):
            self.control.counters.refused += 1
            self.record(ending, "refused" if ending.ending == "refuse" else "reset before it reached the server")
            self._is_reset = True
            return
        try:
            self._server = await self._connect()
        except OSError as error:
            log.info("link_server_unreachable", reason=str(error))
            self._is_reset = True
            return
        for stream in (self._client, self._server):
            _tune(stream)
        self.control.counters.open += 1
        self.begin_cuts(faults)
        if ending is not None:
            self.apply(ending, "upstream", ending.stream)
        await self._carry(self._server)

    def decide(self, operation: str, stream: LinkStream) -> list[LinkFault]:
        """Return the faults of an operation, and record the delays among them."""
        faults = self.control.faults
        found = faults.decide(operation, stream) if faults.is_watching() else []  # type: ignore[arg-type]
        for fault in found:
            if fault.delay_s:
                self.record(fault, f"delayed by {round(fault.delay_s, 6):g} s")
            if fault.pacer is not None:
                self.record(fault, "at a limited rate")
        return found

    def record(self, fault: LinkFault, effect: str) -> None:
        """Record an effect on this connection."""
        fault.record(f"connection {self._number}: {effect}")

    def is_new_send(self, stream: LinkStream) -> bool:
        """Return True if bytes of this direction begin a send: the other side sent before, or the rules have changed."""
        sending = (stream, self.control.changes)
        is_new, self._sending = sending != self._sending, sending
        return is_new

    async def wait_delays(self, faults: Sequence[LinkFault], begin_s: float) -> None:
        """Wait until the delays of all rules that are not over have passed since ``begin_s``."""
        while True:
            changed = self.control.changed
            due_s = begin_s + sum(fault.delay_s for fault in faults if not fault.life.is_over)
            left_s = due_s - self.clock.trio_time_s()
            if left_s < _SOON_S:
                return
            with self.clock.move_on_after(left_s):
                await changed.wait()

    # --- ends of the connection -----------------------------------------------------------------------------------------

    def apply(self, fault: LinkFault, stream: LinkStream, held: LinkStream | None) -> None:
        """Begin the ending of a fault that an operation in this direction met.

        Args:
            fault: the fault.
            stream: the direction of the operation.
            held: the direction that a black hole holds; None for both.
        Raises:
            LinkCutError: the connection ends at once.
        """
        if fault.life.is_over:
            return
        if fault.ending == "half-open":
            self.record(fault, f"half-open: the {_receiver(stream)} sees its end")
            self.control.counters.half_opened += 1
            self._half_open = fault, stream
            self._half_opened.set()
        elif fault.ending == "black-hole":
            self.record(fault, f"nothing arrives {held or 'in both directions'}")
            self._holds.append((fault, held))
            if fault.close_after_s is not None:
                self._timers.start_soon(self._reset_later, fault)
        elif fault.close_after_s:
            self._timers.start_soon(self._reset_later, fault)
        else:
            self._reset_by(fault)

    def _reset_by(self, fault: LinkFault) -> None:
        self.record(fault, "reset")
        self.control.counters.resets += 1
        self._is_reset = True
        raise LinkCutError

    async def _reset_later(self, fault: LinkFault) -> None:
        with self.clock.move_on_after(fault.close_after_s or 0):
            while not fault.life.is_over:
                await self.control.changed.wait()
        if not fault.life.is_over:
            self._reset_by(fault)

    def apply_late(self, fault: LinkFault, stream: LinkStream) -> None:
        """Keep an ending until the other side answers."""
        self._late.append((fault, stream))

    def begin_answer(self, stream: LinkStream) -> None:
        """Begin the endings that were kept until this direction sends."""
        due = [(fault, met) for fault, met in self._late if met != stream]
        self._late = [(fault, met) for fault, met in self._late if met == stream]
        for fault, met in due:
            self.apply(fault, met, stream)

    def break_off(self) -> LinkCutError:
        """Return the error that ends the connection because one side broke its own."""
        self._is_reset = True
        return LinkCutError()

    # --- what faults keep up --------------------------------------------------------------------------------------------

    @property
    def is_plain(self) -> bool:
        """True if bytes pass unseen."""
        return not (
            self.control.faults.is_watching()
            or any(not fault.life.is_over for fault, _ in self._holds)
            or any(not cut.fault.life.is_over for cut in self._cuts.values())
        )

    def is_held(self, stream: LinkStream) -> bool:
        """Return True if a black hole holds a direction."""
        return any(not fault.life.is_over and held in (None, stream) for fault, held in self._holds)

    async def wait_passable(self, stream: LinkStream) -> None:
        """Wait until no black hole holds a direction, and the connection is not half-open."""
        if self._half_opened.is_set():
            await trio.sleep_forever()  # the caller is cancelled
        while self.is_held(stream):
            await self.control.changed.wait()

    def begin_cuts(self, faults: Sequence[LinkFault]) -> None:
        """Count bytes from here on for the faults that cut the connection."""
        for fault in faults:
            cut = self._cuts.get(fault.rule)
            if fault.cut_after_bytes is not None and (cut is None or cut.fault.life.is_over):
                self._cuts[fault.rule] = _Cut(fault, fault.cut_after_bytes)

    def bytes_left(self, stream: LinkStream) -> int | None:
        """Return the number of bytes that pass before the connection is cut; None if it is not."""
        return min((cut.left for cut in self._cuts.values() if cut.fault.is_for(stream)), default=None)

    def count_down(self, stream: LinkStream, byte_count: int) -> None:
        """Count bytes that have passed; raises ``LinkCutError`` at the last one before a cut."""
        for rule, cut in list(self._cuts.items()):
            if not cut.fault.is_for(stream):
                continue
            cut.left -= byte_count
            if cut.left > 0:
                continue
            del self._cuts[rule]
            if cut.fault.confirm():
                self.record(cut.fault, f"cut after {cut.fault.cut_after_bytes} bytes")
                self.control.counters.cuts += 1
                raise LinkCutError

    # --- both directions ------------------------------------------------------------------------------------------------

    async def _carry(self, server: trio.SocketStream) -> None:
        async def watch(flows: trio.CancelScope) -> None:
            await self._half_opened.wait()
            flows.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, nursery.cancel_scope)
            async with trio.open_nursery() as flows:
                flows.start_soon(_Flow(self, self._client, server, "upstream").run)
                flows.start_soon(_Flow(self, server, self._client, "downstream").run)
            nursery.cancel_scope.cancel()
        if self._half_open is not None:
            await self._stay_half_open(server, *self._half_open)

    async def _stay_half_open(self, server: trio.SocketStream, fault: LinkFault, stream: LinkStream) -> None:
        gone, stays = (server, self._client) if _receiver(stream) == "server" else (self._client, server)
        gone.socket.close()

        async def drop_bytes(scope: trio.CancelScope) -> None:
            with suppress(*_BROKEN):
                while await stays.receive_some(PIECE_BYTES):
                    pass
            scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drop_bytes, nursery.cancel_scope)
            while not fault.life.is_over:
                await self.control.changed.wait()
            self._is_reset = True  # as a host answers for connections that it does not know
            nursery.cancel_scope.cancel()


def ending_of(faults: Sequence[LinkFault]) -> LinkFault | None:
    """Return the first fault that ends the connection."""
    return next((fault for fault in faults if fault.ending is not None), None)


def _receiver(stream: LinkStream) -> LinkSide:
    return "server" if stream == "upstream" else "client"


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes on their way, or with no data the end of the stream; ``begins`` if it is the first of its operation."""

    arrived_s: float
    data: bytes
    faults: Sequence[LinkFault]
    begins: bool


class _Flow:
    """One direction of a connection."""

    def __init__(
        self, link: LinkConnection, source: trio.SocketStream, target: trio.SocketStream, stream: LinkStream
    ) -> None:
        self._link = link
        self._source = source
        self._target = target
        self._stream: LinkStream = stream
        self._rest = b""
        self._faults: list[LinkFault] = []
        self._waiting_bytes = 0

    async def run(self) -> None:
        """Carry the bytes to the end of the stream."""
        try:
            while not await (self._splice() if self._link.is_plain and not self._rest else self._shape()):
                pass
        finally:
            self._add_waiting(-self._waiting_bytes)

    def _count(self, byte_count: int) -> None:
        counters = self._link.control.counters
        if self._stream == "upstream":
            counters.upstream_bytes += byte_count
        else:
            counters.downstream_bytes += byte_count

    async def _end(self) -> None:
        with suppress(*_BROKEN):
            await self._target.send_eof()

    # --- unseen ---------------------------------------------------------------------------------------------------------

    async def _splice(self) -> bool:
        """Move bytes in a thread until a rule watches them; return True at the end of the stream."""
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

    # --- under rules ----------------------------------------------------------------------------------------------------

    async def _shape(self) -> bool:
        """Carry bytes under rules until there are none; return True at the end of the stream."""
        pieces, waiting = trio.open_memory_channel[_Piece](PIECES_WAITING_MAX)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._deliver, waiting)
            async with pieces:
                if self._rest:
                    await pieces.send(self._piece(self._rest))
                    self._rest = b""
                while not self._link.is_plain:
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
        begins = not data or self._link.is_new_send(self._stream)
        if begins:
            self._faults = self._link.decide("send" if data else "close", self._stream)
        return _Piece(self._link.clock.trio_time_s(), data, self._faults, begins)

    async def _receive_unless_changed(self) -> bytes | None:
        """Return the next bytes; None if the rules change before they come."""
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
            await self._link.wait_delays(piece.faults, piece.arrived_s)
            late = self._begin(piece) if piece.begins else None
            await self._link.wait_passable(self._stream)
            if piece.data:
                await self._send(piece)
            else:
                await self._end()
                if late is not None:
                    self._link.apply(late, self._stream, self._stream)

    def _begin(self, piece: _Piece) -> LinkFault | None:
        """Begin an operation; return the ending that comes after a close."""
        self._link.begin_answer(self._stream)
        self._link.begin_cuts(piece.faults)
        ending = ending_of(piece.faults)
        if ending is None:
            return None
        if not ending.is_late:
            self._link.apply(ending, self._stream, self._stream)
        elif piece.data:
            self._link.apply_late(ending, self._stream)
        else:
            return ending
        return None

    async def _send(self, piece: _Piece) -> None:
        """Send a piece as the rates, cuts and black holes allow."""
        rest = piece.data
        while rest:
            await self._link.wait_passable(self._stream)
            pacers = [fault.pacer for fault in piece.faults if fault.pacer is not None and not fault.life.is_over]
            data = rest
            for pacer in pacers:
                data = next(pacer.pieces(data))
            data = data[: self._link.bytes_left(self._stream)]
            try:
                await self._target.send_all(data)
            except _BROKEN:
                raise self._link.break_off() from None
            self._count(len(data))
            self._add_waiting(-len(data))
            self._link.count_down(self._stream, len(data))
            for pacer in pacers:
                await pacer.wait(len(data))
            rest = rest[len(data) :]
