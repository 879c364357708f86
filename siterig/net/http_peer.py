"""One side of a proxied HTTP/1.1 connection: the stream, and the messages in it, parsed by h11."""

from __future__ import annotations

import select
import socket
from struct import pack
from typing import cast

import h11
import trio

from siterig.net.splicing import SpliceEnd, Splicer, run_splicer

CHUNK_BYTES = 1 << 18
"""The largest number of bytes that one read takes; with what h11 holds, the memory of a connection."""
HEADER_BYTES_MAX = 1 << 17
CONNECTION_ERRORS = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.ProtocolError)
"""Errors by which a connection ends, whatever the reason."""

_ABORT = pack("ii", 1, 0)
"""``struct linger``: a close discards what is not sent, and resets the connection."""


class _Length:
    """Stands for bytes that are sent without h11."""

    def __init__(self, byte_count: int) -> None:
        self._byte_count = byte_count

    def __len__(self) -> int:
        return self._byte_count


class HttpPeer:
    """A client of this process, or a server to which it has connected."""

    def __init__(self, stream: trio.abc.Stream, role: type[h11.CLIENT] | type[h11.SERVER]) -> None:
        """Begin a connection; ``role`` is that of this process."""
        self._stream = stream
        self._role = role
        self._unread: bytes | None = None
        self.http = h11.Connection(role, max_incomplete_event_size=HEADER_BYTES_MAX)

    async def receive(self) -> h11.Event | type[h11.PAUSED]:
        """Return the next event of the other side."""
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(bytes(await self._stream.receive_some(CHUNK_BYTES)))
        return cast("h11.Event | type[h11.PAUSED]", event)

    async def receive_data(self) -> bytes | None:
        """Return the next bytes of the body of the current message; None at its end."""
        await self._allow_body()
        event = await self.receive()
        return bytes(event.data) if isinstance(event, h11.Data) else None

    async def splice_body(self, to: HttpPeer, body_bytes: int, limiter: trio.CapacityLimiter) -> bool:
        """Move the body of the current message, which has this length, to another peer without parsing it.

        It takes a quarter of the time.  This side's parser never sees the body, so the next message gets a new one.

        Returns:
            False if the connection to the other peer is broken; the rest of the body is read and dropped then.

        Raises:
            RemoteProtocolError: this peer has ended the connection in the middle of the body.
        """
        await self._allow_body()
        buffered, _ = self.http.trailing_data
        first, self._unread = buffered[:body_bytes], buffered[body_bytes:]
        to.http.send_with_data_passthrough(
            h11.Data(data=cast("bytes", _Length(body_bytes)))
        )  # as h11 documents for sendfile
        try:
            await to._stream.send_all(first)
        except CONNECTION_ERRORS:
            await self._drop(body_bytes - len(first))
            return False
        left = body_bytes - len(first)
        splicer = Splicer(self._socket_stream().socket.fileno(), to._socket_stream().socket.fileno(), left)
        try:
            end = await run_splicer(splicer, limiter)
        finally:
            splicer.close()
        if end is SpliceEnd.TARGET_BROKEN:
            await self._drop(left - splicer.taken_bytes)
            return False
        if end is not SpliceEnd.COMPLETE:
            raise h11.RemoteProtocolError(f"the body ends after {body_bytes - left + splicer.moved_bytes} bytes")
        return True

    @property
    def is_plain(self) -> bool:
        """True without TLS."""
        return isinstance(self._stream, trio.SocketStream)

    async def _drop(self, byte_count: int) -> None:
        while byte_count > 0:
            data = await self._stream.receive_some(min(byte_count, CHUNK_BYTES))
            if not data:
                raise h11.RemoteProtocolError("the body ends early")
            byte_count -= len(data)

    async def _allow_body(self) -> None:
        if self.http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))

    async def send(self, event: h11.Event) -> None:
        """Send one event."""
        if isinstance(event, h11.Data):  # without a copy of the data
            for piece in self.http.send_with_data_passthrough(event) or ():
                await self._stream.send_all(piece)
        elif data := self.http.send(event):  # all lines of a head in one packet
            await self._stream.send_all(data)

    async def wait_closed(self) -> None:
        """Wait until the other side closes or breaks the connection; what it sends meanwhile is ignored."""
        try:
            while await self._stream.receive_some(CHUNK_BYTES):
                pass
        except CONNECTION_ERRORS:
            return

    def next_cycle(self) -> bool:
        """Begin the next request and answer; return False if the connection cannot have one."""
        if self._unread is not None:
            if self.http.our_state is not h11.DONE:
                return False
            self.http = h11.Connection(self._role, max_incomplete_event_size=HEADER_BYTES_MAX)
            if self._unread:
                self.http.receive_data(self._unread)
            self._unread = None
            return True
        if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
            return False
        self.http.start_next_cycle()
        return True

    @property
    def has_ended(self) -> bool:
        """True if the other side has closed this idle connection, or has sent something that nothing asked for."""
        readable = select.poll()
        readable.register(self._socket_stream().socket.fileno(), select.POLLIN)
        return bool(readable.poll(0))

    def close(self) -> None:
        """Close the connection at once."""
        self._socket_stream().socket.close()

    def reset(self) -> None:
        """Close the connection so that the other side gets ``ECONNRESET``."""
        self._socket_stream().setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self.close()

    def _socket_stream(self) -> trio.SocketStream:
        stream = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if not isinstance(stream, trio.SocketStream):
            raise TypeError(f"a proxied connection is a socket, not {type(stream).__name__}")
        return stream
