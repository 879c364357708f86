"""Tests of the proxy of a link without rules: bytes and ends pass unchanged (the rules: ../director/links)."""

from __future__ import annotations

import errno
import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from siterig.blockfs.core.errors import RigError
from siterig.net.link_faults import LinkControl
from siterig.net.proxy import LinkAddress, serve_link_proxy

PATIENCE_S = 60
BODY = random.Random(1).randbytes(3 << 20)


@dataclass
class Link:
    """A proxy with a server behind it, which hands out the connections that it gets."""

    control: LinkControl
    address: LinkAddress
    accepted: trio.MemoryReceiveChannel[trio.SocketStream]
    streams: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Return both ends of a new connection: the client's and the server's."""
        client = await self.open_client()
        return client, await self.accepted.receive()

    async def open_client(self) -> trio.SocketStream:
        """Return the client's end of a new connection."""
        if isinstance(self.address, Path):
            stream = await trio.open_unix_socket(self.address)
        else:
            stream = await trio.open_tcp_stream(*self.address)
        self.streams.append(stream)
        return stream


@asynccontextmanager
async def link(*, unix: Path | None = None) -> AsyncIterator[Link]:
    control = LinkControl()
    found, accepted = trio.open_memory_channel[trio.SocketStream](100)

    async def accept(stream: trio.SocketStream) -> None:
        await found.send(stream)
        await trio.sleep_forever()

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            server: LinkAddress
            if unix is None:
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                server = ("127.0.0.1", listener.socket.getsockname()[1])
            else:
                server = unix / "server"
                plain = socket.socket(socket.AF_UNIX)
                plain.bind(str(server))
                plain.listen()
                listener = trio.SocketListener(trio.socket.from_stdlib_socket(plain))
            await nursery.start(trio.serve_listeners, accept, [listener])
            listen: LinkAddress = ("127.0.0.1", 0) if unix is None else unix / "link"
            address = await nursery.start(
                lambda task_status: serve_link_proxy(server, control, listen, task_status=task_status)
            )
            made = Link(control, address, accepted)
            try:
                yield made
            finally:
                for stream in made.streams:
                    await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def receive_all(stream: trio.SocketStream) -> bytes:
    received = b""
    while data := await stream.receive_some(1 << 20):
        received += data
    return received


@pytest.mark.parametrize("is_unix", [False, True])
async def test_without_rules_all_bytes_and_both_ends_pass(is_unix: bool, tmp_path: Path) -> None:
    async with link(unix=tmp_path if is_unix else None) as made:
        client, server = await made.connect()

        async def send(stream: trio.SocketStream) -> None:
            await stream.send_all(BODY)
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, client)
            assert await receive_all(server) == BODY
            nursery.start_soon(send, server)
            assert await receive_all(client) == BODY
        await until(lambda: made.control.counters.open == 0)
        counters = made.control.counters
        assert (counters.connections, counters.upstream_bytes, counters.downstream_bytes) == (1, len(BODY), len(BODY))
    assert not (tmp_path / "link").exists()


async def test_a_side_that_resets_its_connection_resets_the_other() -> None:
    async with link() as made:
        client, server = await made.connect()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(server)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some(1)


async def test_a_server_that_is_away_resets_the_client() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = ("127.0.0.1", listener.socket.getsockname()[1])
    await listener.aclose()
    control = LinkControl()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            at = await nursery.start(serve_link_proxy, address, control)
            async with await trio.open_tcp_stream(*at) as client:
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_some(1)
            nursery.cancel_scope.cancel()


async def test_an_address_that_is_taken_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(RigError, match=r"a link cannot listen at .*/taken: Address already in use") as caught:
        await serve_link_proxy(("127.0.0.1", 1), LinkControl(), tmp_path / "taken")
    assert caught.value.code == "PortTaken"
    assert (tmp_path / "taken").exists()


async def test_a_connection_without_a_descriptor_ends_and_the_others_live_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async with link() as made:
        old, old_server = await made.connect()
        await old.send_all(b"x")
        assert await old_server.receive_some(1) == b"x"
        with monkeypatch.context() as patch:
            patch.setattr(os, "pipe2", no_descriptor)
            client, _ = await made.connect()
            await ended(client)
        await old.send_all(b"y")
        assert await old_server.receive_some(1) == b"y"
        client, server = await made.connect()
        await client.send_all(b"z")
        assert await server.receive_some(1) == b"z"


async def ended(stream: trio.SocketStream) -> None:
    with suppress(trio.BrokenResourceError):
        assert await stream.receive_some(1) == b""
