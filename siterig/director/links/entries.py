"""The sockets by which proxies stand in the links of a rig: each exists while a rule of its link is armed.

Clients look for the socket of their link at each call (:mod:`siterig.rpc.client`,
:mod:`siterig.azure_emu.storage.link_transport`).  So a proxy comes into the path, and leaves it, without a restart; calls
that are under way stay where they are.

Fault contract: the process can be killed at any moment.  Its sockets stay then and refuse connections; clients take the
direct way, and :meth:`LinkEntries.run` of the next process removes them.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.core.paths import Layout
from siterig.net.link_faults import LinkControl
from siterig.net.proxy import LinkServer, serve_link_proxy
from siterig.rpc.contract import check_socket_path
from siterig.rpc.directory import AZURITE
from siterig.rpc.trust import TLS_LINKS
from siterig.rpc.ways import HOST, read_port

ServeBlobs = Callable[[trio.SocketStream], Awaitable[None]]
"""Serves one connection of a client to the storage account."""


@dataclass(slots=True)
class _Entry:
    """The proxy in one link."""

    control: LinkControl
    rules: set[str] = field(default_factory=set)
    until: trio.Event | None = None
    """Ends the proxy; None if it is not in the path."""
    has_ended: trio.Event = field(default_factory=trio.Event)


class LinkEntries:
    """The proxies in the links of one rig; :meth:`run` must run."""

    def __init__(self, layout: Layout, *, clock: Clock = SYSTEM_CLOCK) -> None:
        """Begin without a proxy.

        Args:
            layout: the rig.
            clock: measures delays and rates.
        """
        self._layout, self._clock = layout, clock
        self._entries: dict[str, _Entry] = {}
        self._blobs: dict[str, ServeBlobs] = {}
        self._nursery: trio.Nursery | None = None
        self._runs = trio.Event()

    async def run(self) -> None:
        """Carry the connections until cancelled; sockets that a killed process left are removed first."""
        for left in self._layout.link("", "").parent.glob("*.sock"):
            left.unlink()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._runs.set()
            await trio.sleep_forever()

    def control(self, link: str) -> LinkControl:
        """Return the control of a link."""
        if link not in self._entries:
            self._entries[link] = _Entry(LinkControl())
        return self._entries[link].control

    def serve_blobs(self, link: str, serve: ServeBlobs) -> None:
        """Serve the requests to the storage account that come by a link; without it the link cannot be used."""
        self._blobs[link] = serve

    async def enter(self, link: str, rule: str) -> None:
        """Put the proxy of a link into its path for a rule, and return when it is there.

        Raises:
            RigError: ``PathTooLong`` if the rig's folder is too deep for the socket, ``PortTaken`` if it cannot be made.
        """
        await self._runs.wait()
        self.control(link)
        entry = self._entries[link]
        if entry.until is None:
            assert self._nursery is not None  # noqa: S101 (it runs)
            check_socket_path(self._path(link))
            await self._nursery.start(self._serve, link, entry)
        entry.rules.add(rule)

    async def leave(self, rule: str) -> None:
        """Take the proxies that were needed for this rule alone out of their paths; connections that are open stay."""
        for entry in self._entries.values():
            if rule not in entry.rules:
                continue
            entry.rules.remove(rule)
            if not entry.rules and entry.until is not None:
                entry.until.set()
                await entry.has_ended.wait()

    async def _serve(self, link: str, entry: _Entry, *, task_status: trio.TaskStatus[object]) -> None:
        until, has_ended = trio.Event(), trio.Event()
        serve = partial(
            serve_link_proxy,
            self._server(link),
            entry.control,
            self._path(link),
            clock=self._clock,
            connections=self._nursery,
            until=until,
        )
        try:
            entry.until, entry.has_ended = until, has_ended
            await serve(task_status=task_status)
        finally:
            entry.until = None
            has_ended.set()

    def _path(self, link: str) -> Path:
        client, _, server = link.partition("-")
        return self._layout.link(client, server)

    def _server(self, link: str) -> LinkServer:
        client, _, server = link.partition("-")
        if server == AZURITE:
            return partial(self._connect_blobs, link)
        if (client, server) in TLS_LINKS:
            return partial(_connect_side, self._layout.port(server))
        return self._layout.socket(server)

    async def _connect_blobs(self, link: str) -> trio.SocketStream:
        """Return a connection to the proxy of the storage account in this process."""
        ours, theirs = trio.socket.socketpair()
        assert self._nursery is not None  # noqa: S101 (it runs)
        self._nursery.start_soon(self._blobs[link], trio.SocketStream(theirs))
        return trio.SocketStream(ours)


async def _connect_side(port_file: Path) -> trio.SocketStream:
    """Return a connection to a role of the other side, at the port that it has now."""
    try:
        port = read_port(port_file)
    except (httpx.ConnectError, RigError) as error:
        raise OSError(str(error)) from error
    stream: trio.SocketStream = await trio.open_tcp_stream(HOST, port)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return stream
