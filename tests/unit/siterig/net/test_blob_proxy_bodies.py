"""Tests of bodies on their way through the blob proxy: long ones, several in one burst, and ones that end too early."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import pytest
import trio

from siterig.net.blob_faults import BlobFaultList, BlobRule, RefuseRequest, WithholdAnswer
from siterig.net.blob_proxy import SPLICED_BYTES_MIN, BlobService, serve_blob_proxy
from siterig.net.http_peer import CONNECTION_ERRORS, HttpPeer

LONG = bytes(range(256)) * (SPLICED_BYTES_MIN // 256 * 2)
HEAD = b"Host: 127.0.0.1\r\nX-Ms-Date: today\r\n"


@dataclass
class Service:
    """A stand-in for a blob service: it answers a long body to each request, and remembers all of them."""

    requests: list[tuple[str, list[tuple[bytes, bytes]], bytes]] = field(default_factory=list)
    ended_early: int = 0
    refuses: bool = False

    async def serve(self, stream: trio.SocketStream) -> None:
        peer = HttpPeer(stream, h11.SERVER)
        try:
            while isinstance(message := await peer.receive(), h11.Request):
                if self.refuses:
                    answer = h11.Response(status_code=403, headers=[("Content-Length", "0"), ("Connection", "close")])
                    await peer.send(answer)
                    await peer.send(h11.EndOfMessage())
                    return
                body = b""
                while (data := await peer.receive_data()) is not None:
                    body += data
                self.requests.append((message.target.decode(), message.headers.raw_items(), body))
                await peer.send(h11.Response(status_code=200, headers=[("Content-Length", str(len(LONG)))]))
                await peer.send(h11.Data(data=LONG))
                await peer.send(h11.EndOfMessage())
                peer.next_cycle()
        except CONNECTION_ERRORS:
            self.ended_early += 1


@dataclass
class Proxied:
    service: Service
    client: trio.SocketStream
    faults: BlobFaultList


@asynccontextmanager
async def proxied() -> AsyncIterator[Proxied]:
    service, faults = Service(), BlobFaultList()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            await nursery.start(trio.serve_listeners, service.serve, [listener])
            at = BlobService("127.0.0.1", listener.socket.getsockname()[1], "/account")
            port = await nursery.start(serve_blob_proxy, at, faults)
            async with await trio.open_tcp_stream("127.0.0.1", port) as client:
                yield Proxied(service, client, faults)
            nursery.cancel_scope.cancel()


def put(name: str, body: bytes, more: bytes = b"") -> bytes:
    return b"PUT /account/c/%s HTTP/1.1\r\n%sContent-Length: %d\r\n%s\r\n%s" % (name.encode(), HEAD, len(body), more, body)


async def answers(client: trio.SocketStream, count: int) -> list[tuple[int, bytes]]:
    """Read answers as a client does."""
    found = []
    peer = HttpPeer(client, h11.CLIENT)
    for _ in range(count):
        request = h11.Request(method="GET", target="/", headers=[("Host", "x")])
        peer.http.send(request)
        peer.http.send(h11.EndOfMessage())
        while isinstance(message := await peer.receive(), h11.InformationalResponse):
            pass
        assert isinstance(message, h11.Response)
        body = b""
        while (data := await peer.receive_data()) is not None:
            body += data
        found.append((message.status_code, body))
        peer.next_cycle()
    return found


async def test_several_requests_in_one_burst_are_answered_in_their_order() -> None:
    async with proxied() as made:
        async with trio.open_nursery() as nursery:
            burst = put("1", LONG) + put("2", b"short") + put("3", b"") + put("4", LONG * 3) + put("5", b"x")
            nursery.start_soon(made.client.send_all, burst)
            assert await answers(made.client, 5) == [(200, LONG)] * 5
        bodies = [(target, body) for target, _, body in made.service.requests]
        assert bodies == [
            ("/account/c/1", LONG),
            ("/account/c/2", b"short"),
            ("/account/c/3", b""),
            ("/account/c/4", LONG * 3),
            ("/account/c/5", b"x"),
        ]


async def test_headers_keep_their_case_and_order() -> None:
    async with proxied() as made:
        await made.client.send_all(put("1", b"x"))
        await answers(made.client, 1)
        assert made.service.requests[0][1] == [(b"Host", b"127.0.0.1"), (b"X-Ms-Date", b"today"), (b"Content-Length", b"1")]


@pytest.mark.parametrize("length", [10, len(LONG)])
async def test_a_client_that_waits_for_100_continue_gets_it(length: int) -> None:
    async with proxied() as made:
        message = put("1", LONG[:length], b"Expect: 100-continue\r\n")
        await made.client.send_all(message[:-length])
        assert (await made.client.receive_some(4096)).startswith(b"HTTP/1.1 100 ")
        await made.client.send_all(message[-length:])
        assert await answers(made.client, 1) == [(200, LONG)]
        assert made.service.requests[0][2] == LONG[:length]


@pytest.mark.parametrize("sent", [1000, len(LONG) - 1])
async def test_a_body_that_the_client_does_not_complete_is_not_completed_by_the_proxy(sent: int) -> None:
    async with proxied() as made:
        await made.client.send_all(put("1", LONG)[: -len(LONG)] + LONG[:sent])
        await made.client.send_eof()
        assert await made.client.receive_some(1) == b""
        while not made.service.ended_early:
            await trio.lowlevel.checkpoint()
        assert made.service.requests == []


async def test_an_early_answer_reaches_a_client_that_still_sends() -> None:
    async with proxied() as made:
        made.service.refuses = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.client.send_all, put("1", LONG * 40))
            assert await answers(made.client, 1) == [(403, b"")]


async def test_a_request_that_is_carried_out_without_an_answer_is_complete() -> None:
    async with proxied() as made:
        made.faults.rules.append(BlobRule(WithholdAnswer(is_carried_out=True, is_reset=True)))
        await made.client.send_all(put("1", LONG))
        with pytest.raises(trio.BrokenResourceError):
            await made.client.receive_some(1)
        assert [body for _, _, body in made.service.requests] == [LONG]
        assert made.faults.injections[0].effect == (
            "the service answered 200, which the client does not get; the connection is reset"
        )


async def test_an_answer_that_has_no_body_is_complete_and_the_connection_lives_on() -> None:
    async with proxied() as made:
        made.faults.rules.append(BlobRule(RefuseRequest(status=304, code="ConditionNotMet", retry_after_s=3), times=1))
        await made.client.send_all(put("1", b"x") + put("2", b"y"))
        assert await answers(made.client, 2) == [(304, b""), (200, LONG)]
        assert [target for target, _, _ in made.service.requests] == ["/account/c/2"]


async def test_a_path_that_no_url_has_reaches_the_service() -> None:
    async with proxied() as made:
        await made.client.send_all(b"GET //[ HTTP/1.1\r\n%s\r\n" % HEAD)
        assert await answers(made.client, 1) == [(200, LONG)]
        assert made.service.requests[0][0] == "//["
