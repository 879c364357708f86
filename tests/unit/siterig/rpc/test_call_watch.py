"""Calls without a deadline: a link that does not carry them is a wait of the role, and a call that was lost ends."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest
import trio

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.waits import Waits
from siterig.net.link_faults import FaultLife, LinkControl, LinkFault, LinkFaults, LinkOperation, LinkStream
from siterig.net.proxy import serve_link_proxy
from siterig.rpc import client, server

PATIENCE_S = 30


class Depot(Protocol):
    async def work(self) -> int: ...


class SlowDepot:
    def __init__(self) -> None:
        self.begun = trio.Event()
        self.done = trio.Event()

    async def work(self) -> int:
        self.begun.set()
        await self.done.wait()
        return 7


class HalfOpenOnce(LinkFaults):
    """The first request reaches nobody, and its sender does not learn of it."""

    def __init__(self) -> None:
        self.sends = 0

    def is_watching(self) -> bool:
        return True

    def decide(self, operation: LinkOperation, stream: LinkStream) -> list[LinkFault]:
        self.sends += operation == "send"
        if self.sends != 1 or operation != "send":
            return []
        return [LinkFault(rule="it", life=FaultLife(), record=lambda _effect: None, ending="half-open", is_late=False)]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    monkeypatch.setattr(client, "WATCH_EVERY_S", 0.2)
    waits = Waits()
    token = client.WATCH.set(waits)
    yield waits
    client.WATCH.reset(token)


async def until(condition: Callable[[], object]) -> None:
    while not condition():  # noqa: ASYNC110 (a task in another process or thread changes it)
        await trio.sleep(0.01)


async def with_depot(folder: Path, body: Callable[[SlowDepot], Awaitable[None]]) -> None:
    depot = SlowDepot()
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, {"Depot": (Depot, depot)}, folder / "depot.sock")
            await body(depot)
            nursery.cancel_scope.cancel()


async def test_a_call_that_its_server_works_on_is_no_wait(tmp_path: Path, quick: Waits) -> None:
    async def body(depot: SlowDepot) -> None:
        answers: list[int] = []

        async def call() -> None:
            answers.append(await client.proxy(Depot, tmp_path / "depot.sock").work())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await trio.sleep(1.0)
            assert quick.list() == []
            depot.done.set()
        assert answers == [7]

    await with_depot(tmp_path, body)


async def test_a_server_that_is_silent_is_a_wait_until_the_call_ends(tmp_path: Path, quick: Waits) -> None:
    with socket.socket(socket.AF_UNIX) as listener, trio.fail_after(PATIENCE_S):
        listener.bind(str(tmp_path / "depot.sock"))
        listener.listen()
        link = tmp_path / "agent-depot.sock"
        link.symlink_to("depot.sock")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.proxy(Depot, tmp_path / "depot.sock", link=link).work)
            await until(quick.list)
            (wait,) = quick.list()
            assert wait.reason == ("the depot does not answer over the link agent-depot, and the call work waits for it")
            nursery.cancel_scope.cancel()
        assert quick.list() == []
        with pytest.raises(RigError, match=r"^the depot did not answer for 0\.6 s") as caught:
            await client.proxy(Depot, tmp_path / "depot.sock", patient=False).work()
        assert (caught.value.code, caught.value.uncertain) == ("RoleUnavailable", True)


async def test_a_call_that_was_lost_on_its_link_ends_with_an_error(tmp_path: Path) -> None:
    async def body(depot: SlowDepot) -> None:
        link = tmp_path / "agent-depot.sock"
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_link_proxy, tmp_path / "depot.sock", LinkControl(HalfOpenOnce()), link)
            with pytest.raises(RigError, match="the depot no longer works on the call work: its answer is lost") as caught:
                await client.proxy(Depot, tmp_path / "depot.sock", link=link).work()
            assert (caught.value.code, caught.value.uncertain) == ("RoleUnavailable", True)
            nursery.cancel_scope.cancel()

    await with_depot(tmp_path, body)
