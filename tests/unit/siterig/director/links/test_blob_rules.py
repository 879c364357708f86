"""Fault rules of the blob service, between the real client of the SDK and a stand-in for the service, over HTTPS."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h11
import pytest
import trio

from siterig.azure_emu.storage.azurite import CONTAINER, connection_string, load_or_create_account
from siterig.azure_emu.storage.blob_cache import BlobCacheAccount
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.transfer.part_name import PartName
from siterig.core.paths import Layout
from siterig.director.director import FaultDirector
from siterig.director.links import wiring
from siterig.director.links.wiring import link_injectors
from siterig.net.http_peer import CONNECTION_ERRORS, HttpPeer
from siterig.rpc.trust import storage_server_tls, storage_tls
from siterig.scenarios.faults.operations import FaultOperation
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultSchedule
from siterig.supervisor.identities import ensure_identities
from tests.support.clocks import SettableClock

PATIENCE_S = 60
PART = PartName("0f0e0d0c-0000-4000-8000-000000000001", 1, "sync", 2, 2)
OTHER = PartName("0f0e0d0c-0000-4000-8000-000000000001", 1, "log", 3, 3)
DATA = bytes(range(256)) * 1024


@dataclass
class Service:
    """A stand-in for the blob service: it stores blobs, and counts its connections."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    connections: int = 0
    container_deletions: int = 0
    deletion_status: int = 202

    async def serve(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.connections += 1
        peer = HttpPeer(stream, h11.SERVER)
        try:
            while isinstance(message := await peer.receive(), h11.Request):
                body = b""
                while (data := await peer.receive_data()) is not None:
                    body += data
                if message.method == b"DELETE" and not self.deletion_status:
                    await trio.sleep_forever()
                status, headers, answer = self._answer(message.method, message.target.decode(), body)
                headers += [("Content-Length", str(len(answer))), ("ETag", '"1"')]
                headers += [("Last-Modified", "Mon, 30 Nov 2026 00:00:00 GMT"), ("x-ms-version", "2025-01-01")]
                await peer.send(h11.Response(status_code=status, headers=headers))
                if answer and message.method != b"HEAD":
                    await peer.send(h11.Data(data=answer))
                await peer.send(h11.EndOfMessage())
                peer.next_cycle()
        except CONNECTION_ERRORS:
            pass

    def _answer(self, method: bytes, target: str, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        path = target.partition("?")[0].partition("/")[2].partition("/")[2]
        if "restype=container" in target:
            self.container_deletions += method == b"DELETE"
            return {b"PUT": 201, b"DELETE": self.deletion_status}.get(method, 200), [], b""
        if method == b"PUT":
            self.blobs[path] = body
            return 201, [], b""
        if path not in self.blobs:
            return 404, [("x-ms-error-code", "BlobNotFound")], b""
        found = self.blobs[path]
        more = [("Content-Range", f"bytes 0-{len(found) - 1}/{len(found)}"), ("x-ms-blob-type", "BlockBlob")]
        return 206, more, found


class Rig:
    """A rig of which only the storage account and its clients exist, and the director."""

    def __init__(self, folder: Path, port: int) -> None:
        self.layout = Layout(folder)
        self.layout.azurite.mkdir()
        (self.layout.azurite / "port").write_text(f"{port}\n")
        load_or_create_account(self.layout.keys)
        ensure_identities(self.layout, SYSTEM_CLOCK)
        self.layout.link("", "").parent.mkdir()
        self.service = Service()
        self.schedule = FaultSchedule(7)
        self.injectors = link_injectors(self.layout, self.schedule)
        self.director = FaultDirector(self.schedule, self.injectors)

    def account(self, role: str) -> BlobCacheAccount:
        text = connection_string(self.layout.azurite, self.layout.keys)
        return BlobCacheAccount(text, link=self.layout.link(role, "azurite"), tls=storage_tls(self.layout))

    async def add(self, *words: str) -> None:
        await self.director.add_faults(rules=[read_rule(line).document() for line in words])

    @property
    def done(self) -> list[str]:
        return [injection.done for injection in self.schedule.injections]

    @property
    def stored(self) -> bytes | None:
        return self.service.blobs.get(f"{CONTAINER}/{PART.blob()}")


@asynccontextmanager
async def rig(folder: Path) -> AsyncIterator[tuple[Rig, BlobCacheAccount]]:
    with trio.fail_after(PATIENCE_S):
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made = Rig(folder, listener.socket.getsockname()[1])
        agent = made.account("agent")
        async with trio.open_nursery() as nursery:
            tls = storage_server_tls(made.layout)
            assert tls is not None
            secure = trio.SSLListener(listener, tls, https_compatible=True)
            await nursery.start(trio.serve_listeners, made.service.serve, [secure])
            await nursery.start(made.director.run)
            try:
                yield made, agent
            finally:
                agent.close()
            nursery.cancel_scope.cancel()


async def test_a_certificate_that_has_expired_is_refused_until_it_is_replaced(tmp_path: Path) -> None:
    """Both without a proxy and with one in the link, whose certificate is that of the account."""
    async with rig(tmp_path) as (made, _):
        clock = SettableClock(SYSTEM_CLOCK.wall_ns())
        text, link = connection_string(made.layout.azurite, made.layout.keys), made.layout.link("agent", "azurite")
        account = BlobCacheAccount(text, link=link, tls=storage_tls(made.layout, clock))
        await account.put(PART, DATA)
        clock.step_wall_ns(400 * 86_400 * 10**9)
        account.close()
        account = BlobCacheAccount(text, link=link, tls=storage_tls(made.layout, clock))
        for words in ("", "blob DeleteBlob error=503"):
            if words:
                await made.add(words)
            error = await failure(lambda: account.get(PART))
            assert error.code == "PeerRefused"
            assert "the certificate of the storage account (serial " in error.message
            assert error.recoverable
        await made.director.clear_faults()
        ensure_identities(made.layout, clock)
        assert await account.get(PART) == DATA
        account.close()


async def failure(call: Callable[[], Awaitable[object]]) -> RigError:
    with pytest.raises(RigError) as caught:
        await call()
    return caught.value


def put(account: BlobCacheAccount) -> Callable[[], Awaitable[bool]]:
    return lambda: account.put(PART, DATA, replace=True)


async def test_requests_follow_the_rules_at_once_and_leave_no_connection_behind(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await put(agent)()
        await put(agent)()
        assert made.service.connections == 1
        await made.add("blob PutBlob error=503 role=agent name=busy")
        assert (await failure(put(agent))).code == "CacheUnreachable"
        applier = made.account("applier")
        await put(applier)()
        applier.close()
        await made.director.remove_fault(name="busy")
        await put(agent)()
        await put(agent)()
        assert made.service.connections == 3
        assert not any(made.layout.link("", "").parent.iterdir())


async def test_a_socket_that_refuses_is_passed_by_until_it_listens(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent), trio.open_nursery() as nursery:
        link = trio.socket.socket(socket.AF_UNIX)
        await link.bind(str(made.layout.link("agent", "azurite")))
        await put(agent)()
        assert made.stored == DATA
        link.listen()  # the file stays the same, as when a file system gives the next director's socket the same inode
        behind = Service()
        tls = storage_server_tls(made.layout)
        assert tls is not None
        secure = trio.SSLListener(trio.SocketListener(link), tls, https_compatible=True)
        await nursery.start(trio.serve_listeners, behind.serve, [secure])
        await put(agent)()
        assert list(behind.blobs.values()) == [DATA]
        nursery.cancel_scope.cancel()


async def test_the_first_requests_fail_with_retry_after_and_the_next_one_does_not(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add("blob asr-cache/*/sync/* PutBlob error.status=503 error.retry_after=7 times=2")
        for _ in range(2):
            error = await failure(put(agent))
            assert (error.code, error.retry_after_s, error.recoverable) == ("CacheUnreachable", 7, True)
            assert error.message.endswith("(503 ServerBusy), and asks to wait 7 s")
        await agent.put(OTHER, DATA)
        await put(agent)()
        assert made.done == ["answered 503 ServerBusy, nothing was forwarded, Retry-After 7"] * 2


async def test_an_error_after_the_request_leaves_the_blob_stored(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add("blob PutBlob error=500 timing=after")
        assert (await failure(put(agent))).code == "CacheUnreachable"
        assert made.stored == DATA
        assert made.done == ["answered 500 InternalError in place of 201"]


async def test_a_lost_blob_is_acknowledged_and_not_stored(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add("blob PutBlob lost=true times=1")
        assert await put(agent)()
        assert made.stored is None
        assert made.done == [f"answered 201, and {len(DATA)} bytes were not stored"]


@pytest.mark.parametrize("operation", ["PutBlob", "GetBlob"])
async def test_the_flipped_bits_are_those_of_the_seed(tmp_path: Path, operation: str) -> None:
    words = f"blob {operation} flip.bits=3 name=flips"
    expected = FaultSchedule(7)
    expected.add([read_rule(words)])
    (decision,) = expected.decide(FaultOperation("blob", operation, {"blob": "", "role": "agent"}))
    damaged = bytearray(DATA)
    for bit in decision.flipped_bits(len(DATA)):
        damaged[bit // 8] ^= 1 << bit % 8
    async with rig(tmp_path) as (made, agent):
        await made.add(words)
        await put(agent)()
        assert await agent.get(PART) == damaged
        assert made.stored == (damaged if operation == "PutBlob" else DATA)
        assert len(made.done) == 1


async def test_a_body_that_ends_early_is_no_whole_part(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await put(agent)()
        await made.add("blob GetBlob truncate=1000B times=9")
        await made.add("blob GetBlob flip=true name=one", "blob GetBlob flip.bits=2 name=two")
        await made.add("blob GetBlob rate=1GiB/s name=slow", "blob GetBlob rate=2GiB/s name=slower")
        assert (await failure(lambda: agent.get(PART))).code == "PartUnreadable"
        first = [injection.done for injection in made.schedule.injections if injection.n == 1]  # all changes apply
        assert first[:3] == [
            "bodies have at most 1.07374e+09 bytes a second",
            "bodies have at most 2.14748e+09 bytes a second",
            f"the body of the answer ends after 1000 of {len(DATA)} bytes",
        ]
        assert [words.partition(" of ")[0] for words in first[3:]] == ["1 bits", "2 bits"]
        made.service.blobs.clear()
        await made.add("blob PutBlob truncate=1000B times=1 name=upload")
        assert (await failure(put(agent))).code == "CacheUnreachable"
        assert made.stored is None
        assert made.done[-1] == f"the body of the request ends after 1000 of {len(DATA)} bytes"
        await made.add("blob PutBlob truncate=1MiB name=longer")
        injected = len(made.done)
        await put(agent)()
        longer = next(rule for rule in made.schedule.status() if rule.name == "longer")
        assert (longer.matched, longer.fired, len(made.done)) == (1, 0, injected)


@pytest.mark.parametrize(("timing", "stored"), [("before", None), ("after", DATA)])
async def test_a_reset_comes_before_or_after_the_request(tmp_path: Path, timing: str, stored: bytes | None) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add(f"blob PutBlob connection=reset timing={timing} times=1")
        assert (await failure(put(agent))).code == "CacheUnreachable"
        assert made.stored == stored
        await put(agent)()


@pytest.mark.parametrize("timing", ["before", "after"])
async def test_a_request_in_a_black_hole_continues_when_the_rule_is_removed(tmp_path: Path, timing: str) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add(f"blob PutBlob connection=black-hole timing={timing} name=hole")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(put(agent))
            await made.director.wait_fired(name="hole", times=1)
            while not made.done:
                await trio.lowlevel.checkpoint()
            assert made.stored == (DATA if timing == "after" else None)
            await made.director.remove_fault(name="hole")
        assert made.stored == DATA


async def test_delays_of_several_rules_add_up_and_end_with_their_rules(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add("blob PutBlob delay=1ms name=short", "blob PutBlob delay=1h name=long", "blob PutBlob error=503")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failure, put(agent))
            while len(made.done) < 2:
                await trio.lowlevel.checkpoint()
            assert made.done == ["delayed by 0.001 s", "delayed by 3600 s"]
            await made.director.remove_fault(name="long")
        assert made.done[2:] == ["answered 503 ServerBusy, nothing was forwarded"]


async def test_a_rotated_key_refuses_every_request_until_the_rule_is_removed(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add("blob account=key-rotated name=key")
        for call in (put(agent), lambda: agent.get(PART), agent.ensure_container):
            error = await failure(call)
            assert (error.code, error.recoverable) == ("CacheAuthentication", False)
        await made.director.remove_fault(name="key")
        await put(agent)()


async def test_the_next_director_keeps_the_account_as_it_is(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add("blob account=account-deleted name=gone")
        (armed,) = made.schedule.armed("blob")
        blobs = made.injectors[1]
        await blobs.disarm([armed])
        await put(agent)()
        await blobs.resume([armed])
        assert (await failure(put(agent))).code == "CacheUnreachable"
        assert made.service.container_deletions == 1


async def test_containers_are_really_deleted_at_the_request_that_the_rule_counts(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add("blob asr-* PutBlob account=container-deleted occurrence=2")
        await put(agent)()
        assert made.service.container_deletions == 0
        await put(agent)()
        assert made.service.container_deletions == 1
        assert made.done == ["deleted the containers asr-cache"]


async def test_a_deleted_account_resets_every_connection(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        await made.add("blob account=account-deleted name=gone")
        assert made.service.container_deletions == 1
        assert (await failure(put(agent))).code == "CacheUnreachable"
        await made.director.remove_fault(name="gone")
        await put(agent)()


async def test_a_request_under_way_is_released_by_the_removal_of_its_rule(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        for words in ("rate=1B/s", "delay=1h error=503"):
            made.service.blobs.clear()
            await made.add(f"blob PutBlob {words} name=slow")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put(agent))
                injected = len(made.done)
                while len(made.done) == injected:
                    await trio.lowlevel.checkpoint()
                assert made.stored is None
                await made.director.remove_fault(name="slow")
            assert made.stored == DATA


async def test_a_fault_of_the_account_that_fails_has_not_fired_and_the_request_passes(tmp_path: Path) -> None:
    async with rig(tmp_path) as (made, agent):
        made.service.deletion_status = 403
        await made.add("blob PutBlob account=container-deleted name=one", "blob PutBlob account=account-deleted name=two")
        await put(agent)()
        assert made.stored == DATA
        assert [(rule.name, rule.matched, rule.fired) for rule in made.schedule.status()] == [("one", 1, 0), ("two", 1, 0)]
        assert made.done == []


async def test_an_account_that_does_not_answer_keeps_no_other_rule_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wiring, "DELETION_S", 0.05)
    async with rig(tmp_path) as (made, _):
        made.service.deletion_status = 0
        with pytest.raises(RigError, match=r"the storage account did not answer within 0\.05 s"):
            await made.add("blob account=container-deleted")
        assert made.schedule.armed() == []
