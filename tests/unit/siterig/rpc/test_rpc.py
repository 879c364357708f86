"""The RPC: what goes over it, and how each kind of failure arrives."""

from __future__ import annotations

import stat
from collections.abc import AsyncIterator, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Literal, Protocol

import httpx
import pytest
import trio
from hypercorn.trio.tcp_server import TCPServer

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel
from siterig.rpc import client, server, ways
from siterig.rpc.contract import check_socket_path


class Box(WireModel):
    name: str
    weights: list[tuple[int, int]]


class Depot(Protocol):
    async def store(self, *, box: Box, kind: Literal["a", "b"] = "a", limit_s: float | None = None) -> list[Box]: ...
    async def count(self) -> int: ...
    async def listed(self) -> list[Box]: ...
    async def fail(self) -> None: ...
    async def fail_in_a_task(self) -> None: ...
    async def crash(self) -> None: ...
    async def wait_for_ever(self) -> None: ...


class RealDepot:
    def __init__(self) -> None:
        self.entered = trio.Event()
        self.cancelled = trio.Event()

    async def store(self, *, box: Box, kind: str = "a", limit_s: float | None = None) -> list[Box]:
        return [box, Box(name=f"{kind} {limit_s}", weights=[])]

    async def count(self) -> int:
        return 7

    async def listed(self) -> list[Box]:
        return [Box(name="one", weights=[(1, 2)]), Box(name="/srv/\udcff", weights=[]), Box(name="größe", weights=[])]

    async def fail(self) -> None:
        raise RigError(Code.VmNotFound, "no VM 'web01'", recoverable=True)

    async def fail_in_a_task(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fail)

    async def crash(self) -> None:
        raise ValueError("secret detail")

    async def wait_for_ever(self) -> None:
        self.entered.set()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()


class Served:
    def __init__(self, socket: Path, real: RealDepot, remote: Depot) -> None:
        self.socket, self.real, self.remote = socket, real, remote

    async def post(self, path: str, body: str) -> httpx.Response:
        transport = httpx.AsyncHTTPTransport(uds=str(self.socket), verify=False)
        async with httpx.AsyncClient(transport=transport) as client:
            return await client.post(f"http://rig{path}", content=body)


@pytest.fixture
async def depot(tmp_path: Path) -> AsyncIterator[Served]:
    socket = tmp_path / "run" / "depot.sock"
    real = RealDepot()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, {"Depot": (Depot, real)}, socket)
        yield Served(socket, real, client.proxy(Depot, socket))
        nursery.cancel_scope.cancel()


async def test_arguments_and_results_arrive_as_their_types(depot: Served) -> None:
    box = Box(name="x", weights=[(1, 2)])
    assert await depot.remote.store(box=box, kind="b", limit_s=2) == [box, Box(name="b 2.0", weights=[])]
    assert await depot.remote.count() == 7


async def test_defaults_are_those_of_the_service(depot: Served) -> None:
    assert (await depot.remote.store(box=Box(name="x", weights=[])))[1].name == "a None"


async def test_of_a_list_one_element_that_json_cannot_carry_fails_no_other(depot: Served) -> None:
    found = await depot.remote.listed()
    assert [(box.name, box.weights) for box in found] == [("one", [(1, 2)]), ("/srv/\\xff", []), ("größe", [])]


async def test_socket_and_its_folder_are_for_the_owner_only(depot: Served) -> None:
    assert stat.S_IMODE(depot.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(depot.socket.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("method", ["fail", "fail_in_a_task"])
async def test_a_rig_error_is_raised_again_at_the_caller(depot: Served, method: str) -> None:
    with pytest.raises(RigError) as caught:
        await getattr(depot.remote, method)()
    assert (caught.value.code, caught.value.message, caught.value.recoverable) == ("VmNotFound", "no VM 'web01'", True)


async def test_a_role_keeps_its_connection_until_the_server_ends(tmp_path: Path) -> None:
    socket, accepted, real = tmp_path / "run" / "depot.sock", list[object](), RealDepot()
    way = ways.SocketWay(socket, keeps=True)
    remote = client.proxy(Depot, way)

    class Counted(TCPServer):
        async def run(self) -> None:
            accepted.append(self)
            await super().run()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hypercorn.trio.run.TCPServer", Counted)
        for servers in (1, 2):  # the second one begins after the end of the first, which had the connection
            async with trio.open_nursery() as nursery:
                await nursery.start(server.serve, {"Depot": (Depot, real)}, socket)
                for _ in range(3):
                    assert await remote.count() == 7
                assert len(accepted) == servers
                nursery.cancel_scope.cancel()
        with pytest.raises(RigError) as caught:
            await remote.count()
        assert (caught.value.code, caught.value.uncertain) == ("RoleUnavailable", False), "it certainly was not done"
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, {"Depot": (Depot, real)}, socket)
            await remote.count()
            async with trio.open_nursery() as caller:
                caller.start_soon(remote.wait_for_ever)
                await real.entered.wait()
                caller.cancel_scope.cancel()
            await real.cancelled.wait()
            assert await remote.count() == 7
            nursery.cancel_scope.cancel()
    await way.aclose()


async def test_a_request_that_is_too_long_is_refused(depot: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "REQUEST_BYTES_MAX", 1000)
    transport = httpx.AsyncHTTPTransport(uds=str(depot.socket))
    async with httpx.AsyncClient(transport=transport, base_url="http://rig") as client:
        answer = await client.post("/Depot/count", content=b" " * 1001)
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            413,
            "Depot.count: the body is longer than 1000 bytes",
        )
        assert (await client.post("/Depot/count", content=b"{}" + b" " * 998)).status_code == 200


async def test_an_answer_that_is_too_long_is_not_read(depot: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways, "ANSWER_BYTES_MAX", 100)
    assert await depot.remote.count() == 7
    with pytest.raises(RigError, match=r"the depot answers with \d+ bytes; at most 100 are read") as caught:
        await depot.remote.store(box=Box(name="x" * 200, weights=[]))
    assert caught.value.code == "BadAnswer"


async def test_the_caller_of_a_bug_gets_no_detail(depot: Served) -> None:
    with pytest.raises(RigError) as caught:
        await depot.remote.crash()
    assert caught.value.code == "InternalError"
    assert caught.value.message == "call crash: a bug: ValueError; the traceback is in the log of the role"


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        (
            "/Depot/store",
            '{"boxx": 1, "box": {"name": "x", "weights": []}}',
            400,
            "Depot.store: unknown argument 'boxx'; allowed: box, kind, limit_s",
        ),
        ("/Depot/store", "{}", 400, "Depot.store: argument 'box' is missing"),
        (
            "/Depot/store",
            '{"box": {"name": 5, "weights": []}}',
            400,
            "Depot.store: argument 'box.name' = 5: Input should be a valid string",
        ),
        (
            "/Depot/store",
            '{"box": {"name": "x", "weights": []}, "kind": "c"}',
            400,
            "Depot.store: argument 'kind' = 'c': Input should be 'a' or 'b'",
        ),
        (
            "/Depot/none",
            "{}",
            404,
            "unknown method 'Depot.none'; Depot has: count, crash, fail, fail_in_a_task, listed, store, wait_for_ever",
        ),
        ("/Shop/count", "{}", 404, "unknown service 'Shop'; here are: Depot"),
    ],
)
async def test_a_bad_request_is_named(depot: Served, path: str, body: str, status: int, message: str) -> None:
    answer = await depot.post(path, body)
    assert answer.status_code == status
    assert answer.json()["error"] == {"code": "BadRequest", "message": message, "recoverable": False}


async def test_a_body_that_is_no_object_is_refused(depot: Served) -> None:
    answer = await depot.post("/Depot/count", "[1]")
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("Depot.count: the body must be a JSON object of arguments: ")


async def test_a_handler_is_cancelled_when_its_client_goes(depot: Served) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(depot.remote.wait_for_ever)
        await depot.real.entered.wait()
        nursery.cancel_scope.cancel()
    with trio.fail_after(60):
        await depot.real.cancelled.wait()


class Counter:
    async def count(self) -> int:
        return 8


class Shelves(Protocol):
    async def listed(self) -> list[Box]: ...


class Stock(Shelves, Protocol):
    async def count(self) -> int: ...


async def test_several_objects_implement_one_protocol() -> None:
    class Lister:
        async def listed(self) -> list[Box]:
            return []

    stock = server.joined(Stock, (Counter(), Lister()))
    assert (await stock.count(), await stock.listed()) == (8, [])


def test_each_method_of_a_protocol_is_in_one_of_the_objects() -> None:
    message = "each method of Stock must be in one object: count in 2 of them, listed in 0 of them"
    with pytest.raises(TypeError, match=message):
        server.joined(Stock, (Counter(), Counter()))


async def test_a_client_that_goes_while_it_asks_is_no_error() -> None:
    app = server.application({"Depot": (Depot, RealDepot())})
    told: Iterator[MutableMapping[str, Any]] = iter(
        [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]
    )
    answers: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return next(told)

    async def send(message: MutableMapping[str, Any]) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/Depot/count", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    assert answers[0]["status"] == 499


async def test_nobody_listening_is_a_recoverable_error(tmp_path: Path) -> None:
    remote = client.proxy(Depot, tmp_path / "none.sock")
    with pytest.raises(RigError) as caught:
        await remote.count()
    assert caught.value.code == "RoleUnavailable"
    assert caught.value.recoverable
    assert str(tmp_path / "none.sock") in caught.value.message


async def test_a_lost_connection_is_a_recoverable_error(tmp_path: Path) -> None:
    socket, real = tmp_path / "run" / "depot.sock", RealDepot()
    caught: list[RigError] = []

    async def call() -> None:
        try:
            await client.proxy(Depot, socket).wait_for_ever()
        except RigError as error:
            caught.append(error)

    async with trio.open_nursery() as clients, trio.open_nursery() as serving:
        await serving.start(server.serve, {"Depot": (Depot, real)}, socket)
        clients.start_soon(call)
        await real.entered.wait()
        serving.cancel_scope.cancel()
    assert [(error.code, error.recoverable) for error in caught] == [("RoleUnavailable", True)]


async def test_a_stale_socket_is_replaced_and_a_finished_server_leaves_none(tmp_path: Path) -> None:
    socket = tmp_path / "run" / "depot.sock"
    socket.parent.mkdir()
    socket.touch()
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, {"Depot": (Depot, RealDepot())}, socket)
        assert await client.proxy(Depot, socket).count() == 7
        nursery.cancel_scope.cancel()
    assert not socket.exists()


async def test_a_server_that_is_to_end_finishes_the_running_call(tmp_path: Path) -> None:
    socket, end = tmp_path / "run" / "depot.sock", trio.Event()

    class Ending(RealDepot):
        async def count(self) -> int:
            end.set()
            await trio.sleep(0.05)
            return 8

    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            await server.serve({"Depot": (Depot, Ending())}, socket, until=end.wait, task_status=task_status)

        await nursery.start(serve)
        assert await client.proxy(Depot, socket).count() == 8


def test_a_path_too_long_for_a_socket_is_named(tmp_path: Path) -> None:
    with pytest.raises(RigError) as caught:
        check_socket_path(Path("/" + "x" * 107))
    assert caught.value.code == "PathTooLong"
    assert caught.value.message.endswith("is 108 bytes long; the kernel allows 107: use a shorter --dir")
