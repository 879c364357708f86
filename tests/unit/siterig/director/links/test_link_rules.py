"""Fault rules of links, over real sockets: the proxy comes and goes with them, and each fault does what its rule says."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.core.paths import Layout
from siterig.director.director import FaultDirector
from siterig.director.injectors import LayerInjector
from siterig.director.links.wiring import link_injectors
from siterig.scenarios.faults.catalog import EFFECTS, LAYERS, effects_of
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import ArmedRule, FaultSchedule
from tests.support.clocks import FakeClock

PATIENCE_S = 60
BODY = random.Random(1).randbytes(3 << 20)


class Rig:
    """A rig of which only the links exist: a vault that hands out its connections, and the director."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self.layout = Layout(folder)
        for path in (self.layout.socket(""), self.layout.link("", "")):
            path.parent.mkdir(exist_ok=True)
        self.schedule = FaultSchedule(7, clock=clock)
        self.injectors = link_injectors(self.layout, self.schedule, clock=clock)
        self.director = FaultDirector(self.schedule, self.injectors, clock=clock)
        self._found, self._accepted = trio.open_memory_channel[trio.SocketStream](100)
        self._streams: list[trio.SocketStream] = []

    async def serve_vault(self, *, task_status: trio.TaskStatus[object]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.layout.port("vault").write_text(str(listener.socket.getsockname()[1]))

        async def accept(stream: trio.SocketStream) -> None:
            await self._found.send(stream)
            await trio.sleep_forever()

        await trio.serve_listeners(accept, [listener], task_status=task_status)

    async def add(self, *words: str) -> None:
        await self.director.add_faults(rules=[read_rule(line).document() for line in words])

    @property
    def link(self) -> Path:
        return self.layout.link("agent", "vault")

    @property
    def done(self) -> list[str]:
        return [f"{injection.operation}: {injection.done}" for injection in self.schedule.injections]

    def fired(self, name: str) -> tuple[int, int]:
        status = next(status for status in self.schedule.status() if status.name == name)
        return status.matched, status.fired

    async def client(self) -> trio.SocketStream:
        """Return a connection of the agent to the vault, by the way that its calls take."""
        if self.link.exists():
            stream = await trio.open_unix_socket(self.link)
        else:
            stream = await trio.open_tcp_stream("127.0.0.1", int(self.layout.port("vault").read_text()))
        self._streams.append(stream)
        return stream

    async def connect(self) -> tuple[trio.SocketStream, trio.SocketStream]:
        """Return both ends of a new connection: the agent's and the vault's."""
        client = await self.client()
        return client, await self._accepted.receive()

    async def close(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def rig(folder: Path, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Rig]:
    made = Rig(folder, clock)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(made.serve_vault)
            await nursery.start(made.director.run)
            try:
                yield made
            finally:
                await made.close()
            nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def receive(stream: trio.SocketStream, byte_count: int) -> bytes:
    received = b""
    while len(received) < byte_count:
        data = await stream.receive_some(byte_count - len(received))
        assert data, f"the stream ends after {len(received)} bytes"
        received += data
    return received


async def arrived(stream: trio.SocketStream) -> bytes:
    """Return what has arrived at a stream, without waiting."""
    await trio.testing.wait_all_tasks_blocked()
    try:
        return os.read(stream.socket.fileno(), 1 << 20)
    except BlockingIOError:
        return b""


async def ends(stream: trio.SocketStream) -> bool:
    """Wait for the end of a stream without any byte; return True if it is a reset."""
    try:
        assert await stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True
    return False


async def exchange(client: trio.SocketStream, server: trio.SocketStream, count: int = 1) -> None:
    for number in range(count):
        await client.send_all(b"question %d" % number)
        assert await receive(server, 10) == b"question %d" % number
        await server.send_all(b"answer %d" % number)
        assert await receive(client, 8) == b"answer %d" % number


# --- the way of a link ----------------------------------------------------------------------------------------------------


async def test_the_proxy_is_in_the_path_only_while_a_rule_is_armed(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        assert not made.link.exists()
        direct = await made.connect()
        await made.add("link agent-vault connect delay=1ms name=one", "link *-vault connect delay=1ms name=two")
        assert made.link.stat().st_mode & 0o777 == 0o600
        assert sorted(path.name for path in made.link.parent.iterdir()) == [
            f"{client}-vault.sock" for client in ("agent", "applier", "azure", "cli", "supervisor")
        ]
        by_proxy = await made.connect()
        await exchange(*direct)
        await exchange(*by_proxy)
        await made.director.remove_fault(name="two")
        assert [path.name for path in made.link.parent.iterdir()] == ["agent-vault.sock"]
        assert (await made.director.clear_faults(), list(made.link.parent.iterdir())) == (1, [])
        await exchange(*by_proxy)
        await exchange(*await made.connect())
        assert made.done == ["connect agent-vault upstream: connection 1: delayed by 0.001 s"] * 2


async def test_a_socket_of_a_killed_director_is_removed_and_a_new_one_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for client in ("agent", "cli"):
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(str(tmp_path / "links" / f"{client}-vault.sock"))
        stale.close()
    async with rig(tmp_path) as made:
        await made.add("link agent-vault delay=1ms")
        assert [path.name for path in made.link.parent.iterdir()] == ["agent-vault.sock"]
        await exchange(*await made.connect())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "link agent-vaalt delay=1s",
            r"there is no link 'agent-vaalt' .did you mean agent-vault..; allowed: agent-site, agent-vault",
        ),
        ("link role=agnt delay=1s", r"where\.role: 'agnt' is no client.*agent.*; allowed: agent, applier, azure"),
        ("link vault-* role=agent delay=1s", r"there is no link 'vault-\*' of the client agent"),
        ("blob role=vault delay=1s", r"where\.role: 'vault' is no client.*; allowed: agent, applier, or a pattern"),
        ("blob connection=slow-close close_after=1s", "'slow-close' is a fault of the layer link, like link agent-azurite"),
        (
            "blob connection=half-open",
            "'half-open' is a fault of the layer link.*allowed on blob: reset, refuse, black-hole",
        ),
        ("link agent-vault connection=slow-close", "close_after: is missing: connection = slow-close needs the time"),
        ("link agent-vault send connection=slow-close close_after=1s", "is a fault of close; allowed: close"),
    ],
)
async def test_a_rule_that_cannot_be_put_in_force_is_refused_and_changes_nothing(
    tmp_path: Path, words: str, message: str
) -> None:
    async with rig(tmp_path) as made:
        with pytest.raises(RigError, match=message):
            await made.add("link agent-vault delay=1s name=good", words)
        assert list(made.link.parent.iterdir()) == []
        assert (await made.director.list_faults()).rules == []


async def test_a_folder_that_is_too_deep_for_the_socket_refuses_the_rule(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * (89 - len(bytes(tmp_path))))
    deep.mkdir()
    async with rig(deep) as made:
        with pytest.raises(RigError, match=r"socket path .*/links/agent-vault.sock is \d+ bytes long") as caught:
            await made.add("link agent-vault delay=1s")
        assert caught.value.code == "PathTooLong"
        await exchange(*await made.connect())


# --- bytes ----------------------------------------------------------------------------------------------------------------


async def test_no_byte_is_lost_or_moved_while_rules_come_and_go(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    choices = ["delay=2ms jitter=2ms", "rate=200MB/s", "connection=black-hole", "cut_after=1TiB"]
    async with rig(tmp_path) as made:
        await made.add("link agent-vault connect delay=1ns name=stays")
        client, server = await made.connect()

        async def send() -> None:
            for _ in range(2):
                await client.send_all(BODY)
            await client.send_eof()

        async def change() -> None:
            while True:
                await made.add(f"link agent-vault send name=x {chance.choice(choices)}")
                await trio.sleep(chance.random() / 100)
                await made.director.remove_fault(name="x")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(change)
            received = b""
            while data := await server.receive_some(1 << 20):
                received += data
            assert received == BODY * 2
            nursery.cancel_scope.cancel()


async def test_a_request_and_its_answer_are_one_send_each_in_any_number_of_packets(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault send stream=upstream occurrence=3 delay=1ns name=third")
        await made.add("link agent-vault send mark=seen name=all")
        client, server = await made.connect()
        for _ in range(3):
            await client.send_all(BODY[:300_000])
            await receive(server, 300_000)
            await server.send_all(BODY)
            await receive(client, len(BODY))
        assert (made.fired("third"), made.fired("all")) == ((3, 1), (6, 6))


@pytest.mark.parametrize("distribution", ["uniform", "normal", "pareto"])
async def test_the_delays_of_sends_are_those_of_the_seed_and_keep_the_order(tmp_path: Path, distribution: str) -> None:
    clock = FakeClock()
    async with rig(tmp_path, clock) as made:
        rule = f"link agent-vault send stream=upstream delay=2s jitter=1s distribution={distribution} name=slow"
        await made.add(rule)
        client, server = await made.connect()
        expected = FaultSchedule(7)
        expected.add([read_rule(rule)])
        place = {"link": "agent-vault", "role": "agent"}
        for _ in range(3):
            (decision,) = expected.decide(FaultOperation("link", "send", place, stream="upstream"))
            due_s = decision.delay_ns() / 1e9
            await client.send_all(b"x")
            await until(lambda: len(made.done) == made.fired("slow")[1] > 0)
            await clock.run_for(max(0.0, due_s - 0.01))
            assert await arrived(server) == b""
            await clock.run_for(0.02)
            assert await receive(server, 1) == b"x"
            await server.send_all(b"y")
            await receive(client, 1)


async def test_a_removed_delay_no_longer_delays_bytes_on_their_way(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault stream=downstream delay=1h name=late")
        client, server = await made.connect()
        await server.send_all(b"late")
        assert await arrived(client) == b""
        await made.director.remove_fault(name="late")
        assert await receive(client, 4) == b"late"


async def test_connections_share_the_rate_of_a_rule(tmp_path: Path) -> None:
    clock = FakeClock()
    async with rig(tmp_path, clock) as made:
        await made.add("link agent-vault rate=1000B/s stream=upstream")
        pairs = [await made.connect(), await made.connect()]
        for client, _ in pairs:
            await client.send_all(bytes(5000))
        got = 0
        for second in range(1, 4):
            await clock.run_for(1.0)
            for _, server in pairs:
                got += len(await arrived(server))
            assert abs(got - 1000 * second) <= 150


# --- black holes, cuts, resets --------------------------------------------------------------------------------------------


async def test_a_black_hole_in_one_direction_holds_bytes_and_the_end(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault connect delay=1ns name=way")
        client, server = await made.connect()
        await exchange(client, server)
        await made.add("link agent-vault connection=black-hole stream=upstream name=hole")
        await client.send_all(b"held")
        await client.send_eof()
        await server.send_all(b"other direction")
        assert await receive(client, 15) == b"other direction"
        assert await arrived(server) == b""
        await made.director.remove_fault(name="hole")
        assert await receive(server, 4) == b"held"
        assert not await ends(server)


async def test_a_black_hole_in_both_directions_holds_new_connections_too(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault connection=black-hole name=hole")
        client, server = await made.connect()
        await client.send_all(b"a")
        await server.send_all(b"b")
        assert (await arrived(server), await arrived(client)) == (b"", b"")
        await made.director.remove_fault(name="hole")
        assert (await receive(server, 1), await receive(client, 1)) == (b"a", b"b")


async def test_a_black_hole_ends_with_a_reset_after_its_time(tmp_path: Path) -> None:
    clock = FakeClock()
    async with rig(tmp_path, clock) as made:
        await made.add("link agent-vault connect connection=black-hole close_after=30s")
        client, server = await made.connect()
        await client.send_all(b"a")
        await clock.run_for(29.0)
        assert await arrived(server) == b""
        await clock.run_for(2.0)
        await ends(client)
        await ends(server)
        assert made.done[-1].endswith("connection 1: reset")


async def test_a_connection_is_cut_after_its_bytes_in_both_directions_together(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault connect cut_after=1000B occurrence=2 name=cut")
        await exchange(*await made.connect())
        client, server = await made.connect()
        await client.send_all(BODY[:400])
        await receive(server, 400)
        assert made.fired("cut") == (2, 0)  # nothing is cut yet
        await server.send_all(BODY[:900])
        assert await receive(client, 600) == BODY[:600]
        await ends(client)
        await ends(server)
        assert made.done == ["connect agent-vault upstream: connection 2: cut after 1000 bytes"]
        assert made.fired("cut") == (2, 1)


async def test_no_more_connections_are_cut_than_a_rule_may(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault cut_after=100B times=1 name=cut")
        pairs = [await made.connect(), await made.connect()]
        for client, server in pairs:
            await client.send_all(BODY[:99])
            await receive(server, 99)
        for number, (client, server) in enumerate(pairs):
            await client.send_all(BODY[:2])
            assert await receive(server, 1 + number) == BODY[: 1 + number]
        assert await ends(pairs[0][0]) in (True, False)
        await exchange(*pairs[1])
        assert made.fired("cut")[1] == len(made.done) == 1


@pytest.mark.parametrize(
    ("words", "fails"),
    [
        ("connect connection=reset every=2", [False, True, False, True]),
        ("connect connection=refuse times=1", [True, False, False, False]),
        ("connect connection=reset occurrence=3", [False, False, True, False]),
        ("connection=refuse", [True, True, True, True]),
    ],
)
async def test_counted_connections_are_refused_or_reset(tmp_path: Path, words: str, fails: list[bool]) -> None:
    async with rig(tmp_path) as made:
        await made.add(f"link agent-vault {words} name=rule")
        for is_refused in fails:
            if is_refused:
                await ends(await made.client())
            else:
                await exchange(*await made.connect())
        assert made.fired("rule") == (4, sum(fails))


async def test_a_reset_after_a_send_leaves_the_server_with_the_request(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault send stream=upstream connection=reset timing=after occurrence=2 name=late")
        client, server = await made.connect()
        await exchange(client, server)
        await client.send_all(b"do it")
        assert await receive(server, 5) == b"do it"
        await server.send_all(b"done")
        await ends(client)
        assert made.done == ["send agent-vault upstream: connection 1: reset"]


async def test_a_slow_close_delays_the_end_and_no_byte(tmp_path: Path) -> None:
    clock = FakeClock()
    async with rig(tmp_path, clock) as made:
        await made.add("link agent-vault connection=slow-close close_after=30s")
        client, server = await made.connect()
        await client.send_all(b"x")
        await client.send_eof()
        assert await receive(server, 1) == b"x"
        await until(lambda: len(made.done) == 1)
        await clock.run_for(29.0)
        with pytest.raises(BlockingIOError):
            os.read(server.socket.fileno(), 1)
        await clock.run_for(2.0)
        assert not await ends(server)


@pytest.mark.parametrize("stream", ["upstream", "downstream"])
async def test_a_half_open_connection_is_silent_for_the_sender(tmp_path: Path, stream: str) -> None:
    async with rig(tmp_path) as made:
        await made.add(f"link agent-vault send connection=half-open stream={stream} name=half")
        client, server = await made.connect()
        stays, gone = (client, server) if stream == "upstream" else (server, client)
        await stays.send_all(b"to nobody")
        await ends(gone)
        assert await arrived(stays) == b""
        await made.director.remove_fault(name="half")
        await ends(stays)
        side = "server" if stream == "upstream" else "client"
        assert made.done == [f"send agent-vault {stream}: connection 1: half-open: the {side} sees its end"]


async def test_a_rule_that_begins_later_meets_open_connections(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault after=mark:now connection=reset name=later")
        client, server = await made.connect()
        await exchange(client, server, 3)
        assert made.fired("later") == (0, 0)
        await made.director.note_mark(name="now")
        await client.send_all(b"x")
        await ends(client)
        await ends(server)


async def test_a_rule_is_in_force_from_the_moment_in_which_it_counts(tmp_path: Path) -> None:
    """While other rules of the same call are still being armed, an operation that is counted meets the fault."""
    async with rig(tmp_path) as made:
        await made.add("link agent-vault send mark=seen name=all")
        client, server = await made.connect()
        await exchange(client, server)
        made.schedule.add([read_rule("link agent-vault send connection=reset times=1 name=now")])
        await client.send_all(b"x")
        await ends(server)
        assert made.fired("now") == (1, 1)
        assert made.done[-1] == "send agent-vault upstream: connection 1: reset"


async def test_a_rule_that_cannot_be_armed_holds_nothing(tmp_path: Path) -> None:
    """An operation may meet it while it is being armed."""
    async with rig(tmp_path) as made:
        await made.add("link agent-vault send mark=seen name=all")
        client, server = await made.connect()

        class Refusing(LayerInjector):
            layers = ("process",)

            async def arm(self, rules: Sequence[ArmedRule]) -> None:
                await client.send_all(b"x")
                assert await arrived(server) == b""
                raise RigError(Code.FaultNotPossible, "another rule of the same call")

        director = FaultDirector(made.schedule, [Refusing(), *made.injectors])
        lines = ("process kill=KILL after=mark:never", "link agent-vault send connection=black-hole name=hole")
        with pytest.raises(RigError, match="another rule of the same call"):
            await director.add_faults(rules=[read_rule(line).document() for line in lines])
        assert await receive(server, 1) == b"x"


async def test_a_rule_that_is_being_removed_counts_nothing(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await made.add("link agent-vault send connection=reset name=end", "link agent-vault send mark=seen name=all")
        client, server = await made.connect()
        made.schedule.end(["end"])
        await exchange(client, server)
        assert (made.fired("end"), made.fired("all")) == ((0, 0), (2, 2))


async def test_a_new_rule_has_nothing_of_an_older_one_with_its_name(tmp_path: Path) -> None:
    clock = FakeClock()
    async with rig(tmp_path, clock) as made:
        await made.add("link agent-vault rate=1B/s name=again")
        await made.director.remove_fault(name="again")
        await made.add("link agent-vault send mark=seen name=again")
        client, server = await made.connect()
        await exchange(client, server)
        assert {effect.partition(": ")[2] for effect in made.done} == {"set the mark seen"}


async def test_a_removed_rate_no_longer_slows_bytes_on_their_way(tmp_path: Path) -> None:
    async with rig(tmp_path, FakeClock()) as made:  # whose time stands still
        await made.add("link agent-vault rate=1B/s stream=upstream name=slow")
        client, server = await made.connect()
        await client.send_all(BODY[:5000])
        await receive(server, 1)
        await made.director.remove_fault(name="slow")
        assert await receive(server, 4999) == BODY[1:5000]


# --- the catalog ----------------------------------------------------------------------------------------------------------

_VALUES = {
    "error": "error=503",
    "delay": "delay=1ms",
    "jitter": "delay=1ms jitter=1ms",
    "distribution": "delay=1ms jitter=1ms distribution=normal",
    "rate": "rate=1GiB/s",
    "truncate": "truncate=1B",
    "flip": "flip=true",
    "lost": "lost=true",
    "connection": "connection=reset",
    "close_after": "connection=reset close_after=1ms",
    "cut_after": "cut_after=1B",
    "account": "PutBlob account=key-rotated",
    "mark": "mark=here",
}


@pytest.mark.parametrize(("layer", "key"), [(layer, key) for layer in ("link", "blob") for key in effects_of(layer)])
async def test_every_fault_of_the_catalog_can_be_armed(tmp_path: Path, layer: str, key: str) -> None:
    assert key in EFFECTS and layer in LAYERS
    async with rig(tmp_path) as made:
        await made.add(f"{layer} {_VALUES[key]}")
        assert len((await made.director.list_faults()).rules) == 1
