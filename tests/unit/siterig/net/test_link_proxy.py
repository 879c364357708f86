"""Tests of the proxy of a link: bytes pass unchanged, and each condition does what it says, also while it changes."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import RigError
from siterig.net.proxy import LinkAddress, serve_link_proxy
from siterig.net.shaping import PLAIN, FlowConditions, LinkConditions, LinkControl
from tests.support.clocks import FakeClock

PATIENCE_S = 60
BODY = random.Random(1).randbytes(3 << 20)
HELD = FlowConditions(is_held=True)


@dataclass
class Link:
    """A proxy with a server behind it, which hands out the connections that it gets."""

    control: LinkControl
    address: LinkAddress
    accepted: trio.MemoryReceiveChannel[trio.SocketStream]
    effects: list[str]
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
async def link(*, unix: Path | None = None, clock: Clock = SYSTEM_CLOCK, seed: int = 0) -> AsyncIterator[Link]:
    effects: list[str] = []
    control = LinkControl(seed, note=effects.append)
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
                lambda task_status: serve_link_proxy(server, control, listen, clock=clock, task_status=task_status)
            )
            made = Link(control, address, accepted, effects)
            try:
                yield made
            finally:
                for stream in made.streams:
                    await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def receive_exactly(stream: trio.SocketStream, byte_count: int) -> bytes:
    received = b""
    while len(received) < byte_count:
        data = await stream.receive_some(byte_count - len(received))
        assert data, f"the stream ends after {len(received)} bytes"
        received += data
    return received


async def receive_all(stream: trio.SocketStream) -> bytes:
    received = b""
    while data := await stream.receive_some(1 << 20):
        received += data
    return received


async def arrived(stream: trio.SocketStream) -> bytes:
    """Return what has arrived at a stream, without waiting."""
    await trio.testing.wait_all_tasks_blocked()
    try:
        return os.read(stream.socket.fileno(), 1 << 20)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("is_unix", [False, True])
async def test_without_conditions_all_bytes_and_both_ends_pass(is_unix: bool, tmp_path: Path) -> None:
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
        assert made.effects == []
    assert not (tmp_path / "link").exists()


async def test_no_byte_is_lost_or_moved_while_conditions_change() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    choices = [
        PLAIN,
        HELD,
        FlowConditions(latency_s=0.002, jitter_s=0.002),
        FlowConditions(rate_bytes_s=200e6),
        FlowConditions(cut_after_bytes=1 << 40),
    ]
    async with link() as made:
        client, server = await made.connect()

        async def send() -> None:
            for _ in range(8):
                await client.send_all(BODY)
            await client.send_eof()

        async def change() -> None:
            while True:
                await made.control.set(LinkConditions(upstream=chance.choice(choices)))
                await trio.sleep(chance.random() / 100)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(change)
            assert await receive_all(server) == BODY * 8
            nursery.cancel_scope.cancel()


async def test_a_latency_delays_each_piece_and_keeps_the_order() -> None:
    clock = FakeClock()
    async with link(clock=clock, seed=5) as made:
        await made.control.set(LinkConditions(upstream=FlowConditions(latency_s=2.0, jitter_s=1.0)))
        client, server = await made.connect()
        times: list[float] = []
        for number in range(3):
            await client.send_all(bytes([number]))
            await until(lambda: made.control.counters.waiting_bytes == number + 1)  # noqa: B023 (it is called at once)
        for tick in range(40):
            times += [tick / 10] * len(await arrived(server))
            await clock.run_for(0.1)
        assert len(times) == 3 and times == sorted(times)
        assert times[0] >= 1.0 and times[-1] <= 3.1
        assert len(set(times)) > 1, "the jitter is not the same for all"
        await made.control.clear()
        await client.send_all(b"now")
        assert await receive_exactly(server, 3) == b"now"


async def test_a_removed_latency_no_longer_delays_what_is_on_its_way() -> None:
    async with link() as made:
        await made.control.set(LinkConditions(downstream=FlowConditions(latency_s=3600.0)))
        client, server = await made.connect()
        await server.send_all(b"late")
        assert await arrived(client) == b""
        await made.control.clear()
        assert await receive_exactly(client, 4) == b"late"


async def test_a_rate_is_kept() -> None:
    clock = FakeClock()
    async with link(clock=clock) as made:
        await made.control.set(LinkConditions(upstream=FlowConditions(rate_bytes_s=1000.0)))
        client, server = await made.connect()
        await client.send_all(bytes(5000))
        await receive_exactly(server, 50)
        await until(lambda: made.control.counters.waiting_bytes == 4950)
        await clock.run_for(2.0)
        await receive_exactly(server, 1900)
        assert 4950 - 2050 <= made.control.counters.waiting_bytes <= 4950 - 1950
        await clock.run_for(10.0)
        await receive_exactly(server, 3050)
        await until(lambda: made.control.counters.waiting_bytes == 0)


async def test_a_black_hole_in_one_direction_holds_bytes_and_the_end() -> None:
    async with link() as made:
        client, server = await made.connect()
        await client.send_all(b"before")
        assert await receive_exactly(server, 6) == b"before"
        await made.control.set(LinkConditions(upstream=HELD))
        await client.send_all(b"held")
        await client.send_eof()
        await server.send_all(b"other direction")
        assert await receive_exactly(client, 15) == b"other direction"
        assert await arrived(server) == b""
        await made.control.clear()
        assert await receive_all(server) == b"held"


async def test_a_black_hole_in_both_directions_holds_new_connections_too() -> None:
    async with link() as made:
        await made.control.set(LinkConditions(upstream=HELD, downstream=HELD))
        client, server = await made.connect()
        await client.send_all(b"a")
        await server.send_all(b"b")
        assert (await arrived(server), await arrived(client)) == (b"", b"")
        await made.control.clear()
        assert (await receive_exactly(server, 1), await receive_exactly(client, 1)) == (b"a", b"b")


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_connection_is_cut_after_its_bytes(is_reset: bool) -> None:
    async with link() as made:
        old_client, old_server = await made.connect()
        await old_client.send_all(bytes(500))
        await receive_exactly(old_server, 500)
        await made.control.set(LinkConditions(upstream=FlowConditions(cut_after_bytes=1000), cut_resets=is_reset))
        for client, server in ((old_client, old_server), await made.connect()):
            await client.send_all(BODY[:1000])
            assert await receive_exactly(server, 1000) == BODY[:1000]
            if is_reset:
                with pytest.raises(trio.BrokenResourceError):
                    await client.receive_some(1)
            else:
                assert await server.receive_some(1) == b""
                assert await client.receive_some(1) == b""
        assert made.control.counters.cuts == 2
        assert made.effects == [f"connection {number}: cut after 1000 bytes upstream" for number in (1, 2)]


async def test_a_reset_breaks_open_connections_only() -> None:
    async with link() as made:
        client, server = await made.connect()
        await until(lambda: made.control.counters.open == 1)
        assert made.control.reset_connections() == 1
        for stream in (client, server):
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some(1)
        client, server = await made.connect()
        await client.send_all(b"new")
        assert await receive_exactly(server, 3) == b"new"
        assert made.control.counters.resets == 1


async def test_a_side_that_resets_its_connection_resets_the_other() -> None:
    async with link() as made:
        client, server = await made.connect()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(server)
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some(1)


async def test_a_refused_connection_is_reset() -> None:
    async with link() as made:
        await made.control.set(LinkConditions(is_refused=True))
        client = await made.open_client()
        with pytest.raises(trio.BrokenResourceError):
            await client.receive_some(1)
        assert made.control.counters.refused == 1
        await made.control.clear()
        await made.connect()


async def test_a_slow_close_delays_the_end_and_no_byte() -> None:
    clock = FakeClock()
    async with link(clock=clock) as made:
        await made.control.set(LinkConditions(upstream=FlowConditions(close_delay_s=30.0)))
        client, server = await made.connect()
        await client.send_all(b"x")
        await client.send_eof()
        assert await receive_exactly(server, 1) == b"x"
        ended = False

        async def wait_end() -> None:
            nonlocal ended
            assert await server.receive_some(1) == b""
            ended = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_end)
            await until(lambda: made.control.counters.upstream_bytes == 1)
            await clock.run_for(29.0)
            assert not ended
            await clock.run_for(2.0)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_half_open_connection_is_silent_for_the_other_side(side: Any) -> None:
    async with link() as made:
        client, server = await made.connect()
        gone, stays = (client, server) if side == "client" else (server, client)
        await made.control.set(LinkConditions(half_open=side))
        with trio.move_on_after(30):  # its bytes may make the end a reset
            assert await gone.receive_some(1) == b""
        await stays.send_all(b"to nobody")
        assert await arrived(stays) == b""
        await made.control.clear()
        with pytest.raises(trio.BrokenResourceError):
            await receive_all(stays)
        assert made.effects == [f"connection 1 is half-open: the {side} sees its end"]


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


@pytest.mark.parametrize(
    ("field", "value"),
    [("latency_s", -1.0), ("jitter_s", float("nan")), ("rate_bytes_s", 0.0), ("cut_after_bytes", -1), ("close_delay_s", -1)],
)
def test_a_bad_condition_is_an_error_that_names_it(field: str, value: float) -> None:
    with pytest.raises(RigError, match=f"{field} of a link is {value}; allowed: "):
        FlowConditions(**{field: value})  # type: ignore[arg-type]
