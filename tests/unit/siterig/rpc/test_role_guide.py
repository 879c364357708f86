"""A command and a role that does not answer: it waits for one that comes back, names one that does not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio

from siterig.azure_emu.contracts.reports import RoleState, RoleStatus
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.deadlines import deadline
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Wait
from siterig.core.supervisor_contract import RigStatus, SupervisorControl
from siterig.rpc import client, role_guide, server
from siterig.rpc.client import GUIDE, proxy
from siterig.rpc.role_guide import RoleGuide
from tests.support.clocks import SettableClock


class Depot(Protocol):
    @deadline(10)
    async def look(self) -> int: ...
    async def put(self) -> int: ...
    async def keep(self, *, vm: str) -> int: ...


class Keeper:
    """Implements Depot."""

    def __init__(self, *failures: RigError) -> None:
        self.calls = 0
        self.failures = list(failures)

    async def look(self) -> int:
        self.calls += 1
        if self.failures:
            raise self.failures.pop(0)
        return self.calls

    put = look

    async def keep(self, *, vm: str) -> int:
        return len(vm)


class FakeSupervisor:
    """A guide for a rig with one role, ``depot``; ``settles``: the state of the role in the end."""

    def __init__(self, state: RoleState, settles: RoleState = "ready") -> None:
        self.state, self.settles = state, settles
        self.settled_event = trio.Event()
        self.waiting = trio.Event()
        self.waits: list[Wait] = []
        self.clock = SettableClock()
        """Each call of ``status`` takes 10 s by it."""

    def role(self, state: RoleState) -> RoleStatus:
        waits = list(self.waits)
        return RoleStatus(name="depot", state=state, pid=None, restarts=1, detail="no room", since_ns=0, waits=waits)

    async def status(self) -> RigStatus:
        self.clock.advance_ns(10 * SECOND_NS)
        return RigStatus(folder="/rig", pid=1, roles=[self.role(self.state)])

    async def wait_for_steady_state(self, *, name: str) -> RoleStatus:
        assert name == "depot"
        self.waiting.set()
        await self.settled_event.wait()
        self.state = self.settles
        return self.role(self.settles)


@pytest.fixture
def notes() -> Iterator[list[str]]:
    notes: list[str] = []
    token = GUIDE.set(lambda sockets: RoleGuide(sockets, notes.append))
    yield notes
    GUIDE.reset(token)


@asynccontextmanager
async def supervised(folder: Path, supervisor: FakeSupervisor) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        face: Any = supervisor
        await nursery.start(server.serve, {"SupervisorControl": (SupervisorControl, face)}, folder / "supervisor.sock")
        yield nursery
        nursery.cancel_scope.cancel()


def depot(folder: Path) -> Depot:
    return proxy(Depot, folder / "depot.sock")


@contextmanager
def refused(code: str, text: str) -> Iterator[None]:
    with pytest.raises(RigError) as caught:
        yield
    assert caught.value.code == code
    assert text in caught.value.message


@pytest.fixture
def sockets(tmp_path: Path, notes: list[str]) -> Path:
    assert notes == []
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return folder


class SlowKeeper(Keeper):
    """Answers when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = trio.Event()

    async def keep(self, *, vm: str) -> int:
        await self.may_answer.wait()
        return len(vm)


async def test_a_command_that_waits_names_the_waits_of_its_vm(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT_REPORTED_S", 0.01)
    monkeypatch.setattr(role_guide, "WAIT_REPORTED_S", 0.01)
    seen: list[str] = []
    supervisor, keeper = FakeSupervisor("ready"), SlowKeeper()

    def wait(vm: str, reason: str) -> Wait:
        return Wait(vm=vm, disk=None, code="AppScriptRuns", reason=reason, since_ns=0)

    def note(text: str) -> None:
        seen.append(text)
        if "first" in text:
            supervisor.waits = [wait("web01", "second")]
        elif "second" in text:
            keeper.may_answer.set()

    GUIDE.set(lambda folder: RoleGuide(folder, note))
    supervisor.waits = [wait("web01", "first"), wait("db", "another VM")]
    async with supervised(sockets, supervisor) as nursery:
        await nursery.start(server.serve, {"Depot": (Depot, keeper)}, sockets / "depot.sock")
        assert await depot(sockets).keep(vm="web01") == 5
    assert seen == ["waiting for the depot ...", "depot: first (AppScriptRuns)", "depot: second (AppScriptRuns)"]


async def test_a_wait_that_lasts_is_named_again_with_its_duration(sockets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WAIT_REPORTED_S", 0.01)
    monkeypatch.setattr(role_guide, "WAIT_REPORTED_S", 0.01)
    seen: list[str] = []
    supervisor, keeper = FakeSupervisor("ready"), SlowKeeper()
    clock, text = supervisor.clock, "script /s of VM 'web01': --pre has not ended"
    began_ns = clock.monotonic_ns()
    supervisor.waits = [
        Wait(vm="web01", disk=None, code="AppScriptRuns", reason=text, since_ns=0, since_monotonic_ns=began_ns)
    ]

    def note(line: str) -> None:
        seen.append(line)
        if len(seen) == 4:
            keeper.may_answer.set()

    GUIDE.set(lambda folder: RoleGuide(folder, note, clock))
    async with supervised(sockets, supervisor) as nursery:
        await nursery.start(server.serve, {"Depot": (Depot, keeper)}, sockets / "depot.sock")
        with trio.fail_after(30):
            assert await depot(sockets).keep(vm="web01") == 5
    named = [f"depot: {text} (AppScriptRuns, for {seconds} s)" for seconds in (20, 50, 80)]
    assert seen == ["waiting for the depot ...", *named]


@pytest.mark.parametrize("method", ["look", "put"])
async def test_a_role_that_is_started_again_is_waited_for(sockets: Path, method: str) -> None:
    supervisor, keeper = FakeSupervisor("restarting"), Keeper()
    results: list[int] = []

    async def call() -> None:
        results.append(await getattr(depot(sockets), method)())

    async with supervised(sockets, supervisor) as nursery, trio.open_nursery() as calling:
        calling.start_soon(call)
        await supervisor.waiting.wait()
        await nursery.start(server.serve, {"Depot": (Depot, keeper)}, sockets / "depot.sock")
        supervisor.settled_event.set()
    assert (results, keeper.calls) == ([1], 1)


@pytest.mark.parametrize(
    ("state", "code", "text"),
    [
        ("failed", "RoleFailed", "role depot failed and is not started again: no room; start it with siterig role restart"),
        ("held", "RoleHeld", "role depot is down on purpose; start it with siterig role restart depot"),
        ("hung", "RoleHung", "role depot is hung: no room; if it does not recover: siterig role restart depot"),
    ],
)
async def test_a_role_that_does_not_come_back_is_named_with_the_remedy(
    sockets: Path, state: RoleState, code: str, text: str
) -> None:
    async with supervised(sockets, FakeSupervisor(state)):
        with refused(code, text):
            await depot(sockets).look()


async def test_a_role_that_fails_while_it_is_waited_for_is_named(sockets: Path) -> None:
    supervisor = FakeSupervisor("starting", settles="failed")
    supervisor.settled_event.set()
    async with supervised(sockets, supervisor):
        with refused("RoleFailed", "role depot failed"):
            await depot(sockets).look()


async def test_without_a_supervisor_the_error_is_that_of_the_role(sockets: Path) -> None:
    with refused("RoleUnavailable", "the depot does not answer at"):
        await depot(sockets).look()


AWAY = RigError(Code.RoleUnavailable, "the azurite does not answer", recoverable=True, role="depot")


@pytest.mark.parametrize(("method", "calls"), [("look", 2), ("put", 1)])
async def test_queries_are_repeated_after_an_absent_role_but_operations_are_not(
    sockets: Path, method: str, calls: int
) -> None:
    supervisor, keeper = FakeSupervisor("ready"), Keeper(AWAY)
    async with supervised(sockets, supervisor) as nursery:
        await nursery.start(server.serve, {"Depot": (Depot, keeper)}, sockets / "depot.sock")
        if method == "look":
            assert await depot(sockets).look() == 2
        else:
            with refused("RoleUnavailable", "the azurite does not answer"):
                await depot(sockets).put()
    assert keeper.calls == calls


async def test_a_call_that_may_have_been_done_is_not_sent_a_second_time(sockets: Path) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        calls.append(await stream.receive_some())

    calls: list[bytes] = []
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(sockets / "depot.sock"))
    listener.listen()
    async with supervised(sockets, FakeSupervisor("ready")) as nursery:
        nursery.start_soon(trio.serve_listeners, hang_up, [trio.SocketListener(listener)])
        with refused("RoleUnavailable", "the depot does not answer at"):
            await depot(sockets).put()
    assert len(calls) == 1


async def test_a_long_wait_names_the_role_that_is_the_reason(
    sockets: Path, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    noted = trio.Event()

    def note(text: str) -> None:
        notes.append(text)
        noted.set()

    GUIDE.set(lambda folder: RoleGuide(folder, note))
    monkeypatch.setattr(client, "WAIT_REPORTED_S", 0.01)
    monkeypatch.setattr(role_guide, "WAIT_REPORTED_S", 0.01)
    supervisor = FakeSupervisor("restarting")
    async with supervised(sockets, supervisor), trio.open_nursery() as calling:
        calling.start_soon(depot(sockets).look)
        with trio.fail_after(30):
            await noted.wait()
        calling.cancel_scope.cancel()
    assert notes == ["role depot is restarting: no room; waiting until it is back ..."]
