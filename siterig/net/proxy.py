"""A proxy for one link, over TCP or Unix sockets, whose faults change while its connections are open.

Fault contract: without faults the proxy changes nothing but addresses: ends of streams and resets pass in both directions,
and one connection of a client is one connection to the server.  If the server refuses it, that of the client is reset.
Descriptors that are passed over a Unix socket do not pass the proxy.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.net.link_connection import LinkConnection
from siterig.net.link_faults import LinkControl

log = structlog.get_logger(__name__)

THREADS_MAX = 4096
SOCKET_MODE = 0o600

LinkAddress = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""
LinkServer = LinkAddress | Callable[[], Awaitable[trio.SocketStream]]
"""The address of the server behind a link, or a function that connects to it."""


async def serve_link_proxy(
    server: LinkServer,
    control: LinkControl,
    listen: LinkAddress = ("127.0.0.1", 0),
    *,
    clock: Clock = SYSTEM_CLOCK,
    connections: trio.Nursery | None = None,
    until: trio.Event | None = None,
    task_status: trio.TaskStatus[LinkAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the proxy of a link until cancelled; the value of the start is the address at which it listens.

    Args:
        server: the server behind the link.
        control: the faults.
        listen: the address for clients; port 0 takes any free one.  A Unix socket must not exist; it is removed at the end.
        clock: measures delays and rates.
        connections: carries connections that are open at the end; without it they end with the proxy.
        until: ends the proxy so that no client notices: its socket vanishes, and then clients that have connected are taken.
        task_status: of ``nursery.start``.
    Raises:
        RigError: ``PortTaken`` if another program listens at the address.
    """
    listener = _listener(listen)
    address = listen if isinstance(listen, Path) else (listen[0], int(listener.socket.getsockname()[1]))
    connect = server if callable(server) else _connecting(server)
    numbers = count(1)
    limiter = trio.CapacityLimiter(THREADS_MAX)

    async def serve(stream: trio.SocketStream) -> None:
        try:
            await LinkConnection(stream, connect, control, clock=clock, limiter=limiter, number=next(numbers)).serve()
        except* OSError as errors:  # no descriptor is left: the other connections live on
            log.warning("link_connection_failed", reason=str(errors.exceptions[0]))

    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(_serve_listener, serve, listener, connections)
            task_status.started(address)
            if until is not None:
                await until.wait()
                if isinstance(listen, Path):
                    listen.unlink(missing_ok=True)
                while _has_clients(listener):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
    finally:
        if isinstance(listen, Path):
            listen.unlink(missing_ok=True)


async def _serve_listener(
    serve: Callable[[trio.SocketStream], Awaitable[None]],
    listener: trio.SocketListener,
    connections: trio.Nursery | None,
    *,
    task_status: trio.TaskStatus[object],
) -> None:
    await trio.serve_listeners(serve, [listener], handler_nursery=connections, task_status=task_status)


def _has_clients(listener: trio.SocketListener) -> bool:
    """Return True if clients have connected that are not accepted yet."""
    waiting = select.poll()
    waiting.register(listener.socket.fileno(), select.POLLIN)
    return bool(waiting.poll(0))


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


def _connecting(server: LinkAddress) -> Callable[[], Awaitable[trio.SocketStream]]:
    async def connect() -> trio.SocketStream:
        if isinstance(server, Path):
            return await trio.open_unix_socket(server)
        stream: trio.SocketStream = await trio.open_tcp_stream(*server)
        return stream

    return connect


def _text(address: LinkAddress) -> str:
    return str(address) if isinstance(address, Path) else f"{address[0]}:{address[1]}"
