"""No peer ends the server: not one that ends in the middle of a request, nor one whose connection has a defect."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing
from hypercorn.config import Config
from hypercorn.events import Event
from hypercorn.protocol import ProtocolWrapper
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from siterig.rpc.server import run_application

UNFINISHED = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc"
WHOLE = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"
STEPS_MAX = 8
"""The application answers after so many steps of the event loop; the errors came at 1, 3, 4 and 5."""
PEERS = 40
LARGE_BYTES = 8 << 20


def answering(*, steps: int = 0, size: int = 1) -> ASGIApp:
    """Return an application that answers, after some steps of the event loop, without reading the request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("there is no lifespan")
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        await Response(b"x" * size, 404)(scope, receive, send)

    return app


@asynccontextmanager
async def server(path: Path, app: ASGIApp) -> AsyncIterator[None]:
    """Serve an application on a Unix socket during the block."""
    config = Config()
    config.bind, config.errorlog = [f"unix:{path}"], None
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: run_application(app, config, task_status=task_status))
        yield
        nursery.cancel_scope.cancel()


async def answer_to(path: Path, request: bytes) -> bytes:
    """Send a request, and return everything that the server sends until it closes."""
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(request)
        return b"".join([piece async for piece in stream])


async def half_close(path: Path) -> None:
    """End the own side in the middle of the body, and read to the end."""
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(UNFINISHED)
        await stream.send_eof()
        try:
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


async def close(path: Path) -> None:
    """Close in the middle of the body."""
    async with await trio.open_unix_socket(str(path)) as stream:
        await stream.send_all(UNFINISHED)
    await trio.testing.wait_all_tasks_blocked()


@pytest.mark.parametrize("peer", [half_close, close])
async def test_a_peer_that_ends_in_the_middle_of_a_request_ends_nothing_else(
    tmp_path: Path, peer: Callable[[Path], Awaitable[None]]
) -> None:
    for steps in range(STEPS_MAX):
        path = tmp_path / f"socket-{steps}"
        async with server(path, answering(steps=steps)):
            with structlog.testing.capture_logs() as logs:
                for _ in range(PEERS):
                    await peer(path)
            assert (await answer_to(path, WHOLE)).startswith(b"HTTP/1.1 404"), steps
            assert logs == [], "the end of a peer is no error"


async def test_a_peer_that_does_not_read_its_answer_and_closes_ends_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    async with server(path, answering(size=LARGE_BYTES)):
        for _ in range(5):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.connect(str(path))
                peer.sendall(UNFINISHED)
                await trio.testing.wait_all_tasks_blocked(0.005)
                peer.shutdown(socket.SHUT_WR)
                await trio.testing.wait_all_tasks_blocked(0.005)
        assert len(await answer_to(path, WHOLE)) > LARGE_BYTES


async def test_a_defect_of_one_connection_is_logged_and_ends_that_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, original = tmp_path / "socket", ProtocolWrapper.handle
    broken = [True]

    async def handle(self: ProtocolWrapper, event: Event) -> None:
        if broken:
            broken.clear()
            raise KeyError("a defect")
        await original(self, event)

    monkeypatch.setattr(ProtocolWrapper, "handle", handle)
    async with server(path, answering()):
        with structlog.testing.capture_logs() as logs:
            assert await answer_to(path, WHOLE) == b""
            assert (await answer_to(path, WHOLE)).startswith(b"HTTP/1.1 404")
    (entry,) = logs
    assert (entry["event"], entry["log_level"], entry["exc_info"]) == ("connection_crashed", "error", True)
