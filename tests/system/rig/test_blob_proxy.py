"""Tests of the blob service's faults: the real client of the Azure SDK, through the proxy, with a real Azurite."""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio
from azure.core.exceptions import (
    AzureError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import BlobServiceClient, ContainerClient
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from siterig.azure_emu.storage.azurite import AzuriteProcess, start_azurite
from siterig.net.blob_faults import (
    BlobAction,
    BlobFaultList,
    BlobRule,
    BodyDamage,
    DistortTransfer,
    LoseRequest,
    WithholdAnswer,
    container_deleted,
    key_rotated,
    storage_error,
)
from siterig.net.blob_proxy import BlobService, serve_blob_proxy

pytestmark = pytest.mark.system

T = TypeVar("T")
BODY = bytes(range(256)) * 4096
"""1 MiB."""
READ_TIMEOUT_S = 30.0


@dataclass
class Proxied:
    """Azurite with a container, and clients with and without the proxy."""

    bare: ContainerClient
    client: ContainerClient
    port: int
    faults: BlobFaultList = field(default_factory=BlobFaultList)

    def fault(self, action: BlobAction, *operations: str, blob: str = "*", times: int | None = 1) -> BlobRule:
        rule = BlobRule(action, frozenset(operations), blob, times)
        self.faults.rules.append(rule)
        return rule

    @property
    def effects(self) -> list[str]:
        return [injection.effect for injection in self.faults.injections]


def container(azurite: AzuriteProcess, port: int, **options: Any) -> ContainerClient:
    service = BlobServiceClient.from_connection_string(
        azurite.account.connection_string(port), retry_total=0, read_timeout=READ_TIMEOUT_S, **options
    )
    return service.get_container_client("cache")


@asynccontextmanager
async def proxied(tmp_path: Path, **options: Any) -> AsyncIterator[Proxied]:
    azurite = await start_azurite(tmp_path / "azurite", tmp_path / "keys")
    try:
        async with trio.open_nursery() as nursery:
            faults = BlobFaultList()
            service = BlobService.parse(f"http://127.0.0.1:{azurite.port}/{azurite.account.name}")
            port = await nursery.start(serve_blob_proxy, service, faults)
            made = Proxied(container(azurite, azurite.port), container(azurite, port, **options), port, faults)
            await run(made.bare.create_container)
            yield made
            made.bare.close()
            made.client.close()
            nursery.cancel_scope.cancel()
    finally:
        await azurite.stop()


async def run(call: Callable[[], T]) -> T:
    """Run a call of the SDK in a thread, beside the proxy."""
    with trio.fail_after(90):
        return await trio.to_thread.run_sync(call)


def error_of(call: Callable[[], Any]) -> Any:
    """Return the error of the service that a call raises."""
    with pytest.raises(HttpResponseError) as caught:
        call()
    return caught.value


def names(client: ContainerClient) -> list[str]:
    return sorted(client.list_blob_names())


async def test_without_rules_all_requests_pass_unchanged(tmp_path: Path) -> None:
    """Uploads in one piece and in blocks, with a checksum; ranges, lists, properties, copies and deletion."""
    async with proxied(tmp_path, max_single_put_size=4 << 20, max_block_size=1 << 20) as made:

        def work() -> None:
            made.client.upload_blob("a b/+ü.part", BODY, validate_content=True, metadata={"key": "value"})
            made.client.upload_blob("large", BODY * 8)
            assert names(made.client) == names(made.bare) == ["a b/+ü.part", "large"]
            for name, body in (("a b/+ü.part", BODY), ("large", BODY * 8)):
                for client in (made.bare, made.client):
                    assert client.download_blob(name).readall() == body
            assert made.client.download_blob("large", offset=5, length=3).readall() == BODY[5:8]
            properties = made.client.get_blob_client("a b/+ü.part").get_blob_properties()
            assert properties.metadata == {"key": "value"}
            assert bytes(properties.content_settings.content_md5 or b"") == hashlib.md5(BODY, usedforsecurity=False).digest()
            made.client.upload_blob("empty", b"")
            made.client.delete_blob("large")
            caught = error_of(lambda: made.client.delete_blob("large"))
            assert (caught.status_code, caught.error_code) == (404, "BlobNotFound")
            caught = error_of(lambda: made.client.get_blob_client("large").get_blob_properties())
            assert caught.status_code == 404
            assert names(made.bare) == ["a b/+ü.part", "empty"]

        await run(work)
        assert made.effects == []


async def test_the_first_requests_fail_and_the_next_pass(tmp_path: Path) -> None:
    async with proxied(tmp_path) as made:
        rule = made.fault(storage_error("ServerBusy", retry_after_s=7), "PutBlob", blob="cache/*.part", times=2)

        def work() -> None:
            made.client.upload_blob("other", b"x")
            for _ in range(2):
                caught = error_of(lambda: made.client.upload_blob("1.part", BODY))
                assert (caught.status_code, caught.error_code) == (503, "ServerBusy")
                assert caught.message.startswith("The server is busy.")
                assert caught.response.headers["Retry-After"] == "7"
                assert caught.response.headers["x-ms-error-code"] == "ServerBusy"
            made.client.upload_blob("1.part", BODY)
            assert names(made.bare) == ["1.part", "other"]

        await run(work)
        assert (rule.matched, rule.fired) == (3, 2)
        assert made.effects == ["answered 503 ServerBusy, nothing was forwarded, Retry-After 7"] * 2


async def test_errors_of_the_service_have_its_status_and_code(tmp_path: Path) -> None:
    async with proxied(tmp_path) as made:
        made.fault(key_rotated(), "ListBlobs")
        made.fault(container_deleted(), "PutBlob")
        made.fault(storage_error("BlobNotFound"), "GetBlobProperties")

        def work() -> None:
            caught = error_of(lambda: names(made.client))
            assert (caught.status_code, caught.error_code, type(caught).__name__) == (
                403,
                "AuthenticationFailed",
                "ClientAuthenticationError",
            )
            caught = error_of(lambda: made.client.upload_blob("a", BODY))
            assert (caught.status_code, caught.error_code) == (404, "ContainerNotFound")
            caught = error_of(lambda: made.client.get_blob_client("a").get_blob_properties())
            assert (caught.status_code, caught.error_code) == (404, "BlobNotFound")
            assert names(made.client) == []

        await run(work)


async def test_an_acknowledged_upload_is_not_stored(tmp_path: Path) -> None:
    async with proxied(tmp_path, max_single_put_size=1 << 20, max_block_size=1 << 20) as made:
        made.fault(LoseRequest(), "PutBlob", blob="cache/lost")
        made.fault(LoseRequest(), "PutBlockList", blob="cache/large")
        made.fault(LoseRequest(), "DeleteBlob")

        def work() -> None:
            made.client.upload_blob("lost", BODY, validate_content=True)
            made.client.upload_blob("large", BODY * 3)
            made.client.upload_blob("kept", b"x")
            made.client.delete_blob("kept")
            assert names(made.bare) == ["kept"]

        await run(work)
        assert made.effects == [
            f"answered 201, and {len(BODY)} bytes were not stored",
            made.effects[1],
            "answered 202, and 0 bytes were not stored",
        ]


@pytest.mark.parametrize("is_carried_out", [False, True])
async def test_an_answer_that_does_not_come(is_carried_out: bool, tmp_path: Path) -> None:
    async with proxied(tmp_path) as made:
        made.fault(WithholdAnswer(is_carried_out=is_carried_out), "PutBlob", blob="cache/silent")
        made.fault(WithholdAnswer(is_carried_out=is_carried_out, is_reset=True), "PutBlob", blob="cache/reset")

        def work() -> None:
            with pytest.raises(ServiceResponseError, match="Read timed out"):
                made.client.upload_blob("silent", BODY, read_timeout=0.5)
            with pytest.raises((ServiceResponseError, ServiceRequestError), match=r"reset|abort|Broken pipe"):
                made.client.upload_blob("reset", BODY)
            assert names(made.client) == (["reset", "silent"] if is_carried_out else [])

        await run(work)


async def test_an_answer_that_ends_early_or_is_changed(tmp_path: Path) -> None:
    async with proxied(tmp_path) as made:
        await run(lambda: made.bare.upload_blob("a", BODY))
        cut = made.fault(DistortTransfer(answer=(BodyDamage(bytes_kept=1000),)), "GetBlob", times=None)

        def work() -> None:
            with pytest.raises((IncompleteReadError, HttpResponseError, ServiceResponseError)):
                made.client.download_blob("a").readall()
            made.faults.rules.remove(cut)
            assert cut.fired > 1, "the SDK has tried again"
            made.fault(DistortTransfer(answer=(BodyDamage(bytes_kept=1000, is_hidden=True),)), "GetBlob")
            lengths: list[str] = []
            hook: dict[str, Any] = {
                "raw_response_hook": lambda answer: lengths.append(answer.http_response.headers["Content-Length"])
            }
            assert made.client.download_blob("a", **hook).readall() == BODY, "the SDK has asked for the rest"
            assert lengths == ["1000", str(len(BODY) - 1000)]
            made.fault(DistortTransfer(answer=(BodyDamage(bits_flipped=1, seed=3),)), "GetBlob")
            changed = made.client.download_blob("a").readall()
            assert sum((a ^ b).bit_count() for a, b in zip(changed, BODY, strict=True)) == 1
            assert made.client.download_blob("a").readall() == BODY

        await run(work)
        assert made.effects[:-1] == ["the body of the answer ends after 1000 of 1048576 bytes"] * (cut.fired + 1)
        assert made.effects[-1].startswith("1 bits of the body of the answer are flipped, in bytes ")


async def test_a_request_that_is_cut_or_changed_on_its_way(tmp_path: Path) -> None:
    async with proxied(tmp_path) as made:
        made.fault(DistortTransfer(request=(BodyDamage(bytes_kept=1000),)), "PutBlob", blob="cache/cut")
        made.fault(DistortTransfer(request=(BodyDamage(bits_flipped=3, offset=70_000),)), "PutBlob", blob="cache/*", times=2)

        def work() -> None:
            with pytest.raises((ServiceResponseError, ServiceRequestError)):
                made.client.upload_blob("cut", BODY)
            made.client.upload_blob("changed", BODY)
            changed = made.bare.download_blob("changed").readall()
            assert [(index, a ^ b) for index, (a, b) in enumerate(zip(changed, BODY, strict=True)) if a != b] == [
                (70_000, 7)
            ]
            caught = error_of(lambda: made.client.upload_blob("checked", BODY, validate_content=True))
            assert (caught.status_code, caught.error_code) == (400, "Md5Mismatch")
            assert names(made.bare) == ["changed"]

        await run(work)


async def test_a_slow_service_keeps_its_rate_in_both_directions(tmp_path: Path) -> None:
    async with proxied(tmp_path) as made:
        made.fault(DistortTransfer(rate_bytes_s=4 << 20, delay_s=0.1), "PutBlob", "GetBlob", times=2)

        def work() -> None:
            made.client.upload_blob("a", BODY)
            assert made.client.download_blob("a").readall() == BODY

        begin = trio.current_time()
        await run(work)
        assert trio.current_time() - begin >= 2 * (0.25 + 0.1) * 0.95
        assert made.effects == ["delayed by 0.1 s", "both bodies have at most 4.1943e+06 bytes a second"] * 2


async def test_a_service_that_restarts_or_is_away_ends_connections_only(tmp_path: Path) -> None:
    """An idle connection that the service has closed is replaced; a service that is away is no answer of the proxy."""
    azurite = await start_azurite(tmp_path / "azurite", tmp_path / "keys")
    async with trio.open_nursery() as nursery:
        service = BlobService.parse(f"http://127.0.0.1:{azurite.port}/{azurite.account.name}")
        port = await nursery.start(serve_blob_proxy, service, BlobFaultList())
        client = container(azurite, port)
        await run(client.create_container)
        await azurite.stop()
        with pytest.raises(AzureError) as caught:
            await run(lambda: client.upload_blob("a", BODY))
        assert isinstance(caught.value, (ServiceRequestError, ServiceResponseError))
        azurite = await start_azurite(tmp_path / "azurite", tmp_path / "keys")
        try:
            await run(lambda: client.upload_blob("a", BODY))
            assert await run(lambda: names(client)) == ["a"]
        finally:
            client.close()
            await azurite.stop()
        nursery.cancel_scope.cancel()


def certificate(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the settings of a server ``localhost`` with a certificate of its own, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    file = folder / "server.pem"
    file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        + made.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(file)
    return server, ssl.create_default_context(cafile=file)


async def test_a_service_behind_tls_gets_its_own_name_as_host(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A server with TLS in front of Azurite stands for an account of the cloud."""
    azurite = await start_azurite(tmp_path / "azurite", tmp_path / "keys")
    server, client_tls = certificate(tmp_path)
    heads: list[bytes] = []
    connections: list[object] = []

    async def copy(source: trio.abc.ReceiveStream, to: trio.abc.SendStream, seen: list[bytes] | None = None) -> None:
        while data := await source.receive_some(65536):
            if seen is not None:
                seen.append(bytes(data))
            await to.send_all(data)

    async def terminate(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            await stream.do_handshake()
        except trio.BrokenResourceError:  # a client that does not trust the certificate ends the connection
            return
        connections.append(stream)
        async with await trio.open_tcp_stream("127.0.0.1", azurite.port) as plain, trio.open_nursery() as both:
            both.start_soon(copy, plain, stream)
            await copy(stream, plain, heads)
            both.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            serve = partial(trio.serve_ssl_over_tcp, host="127.0.0.1", https_compatible=True)  # no close_notify at the end
            listeners = await nursery.start(serve, terminate, 0, server)
            front = listeners[0].transport_listener.socket.getsockname()[1]
            service = BlobService.parse(f"https://localhost:{front}/{azurite.account.name}", tls=client_tls)
            port = await nursery.start(serve_blob_proxy, service, BlobFaultList())
            client = container(azurite, port)
            await run(client.create_container)
            await run(lambda: client.upload_blob("a", BODY))
            assert await run(lambda: client.download_blob("a").readall()) == BODY
            assert len(connections) == 1  # kept alive
            client.close()
            stranger = BlobService.parse(f"https://localhost:{front}/{azurite.account.name}")
            port = await nursery.start(serve_blob_proxy, stranger, BlobFaultList())
            with container(azurite, port) as client, pytest.raises((ServiceRequestError, ServiceResponseError)):
                await run(lambda: names(client))
            assert "CERTIFICATE_VERIFY_FAILED" in capsys.readouterr().out
            nursery.cancel_scope.cancel()
    finally:
        await azurite.stop()
    hosts = set(re.findall(rb"^host: (.*)\r$", b"".join(heads), re.MULTILINE | re.IGNORECASE))
    assert hosts == {b"localhost:%d" % front}


async def test_bytes_that_are_no_http_are_refused_and_the_proxy_stays(tmp_path: Path) -> None:
    async with proxied(tmp_path) as made:

        def work() -> bytes:
            with socket.create_connection(("127.0.0.1", made.port), timeout=30) as stream:
                stream.sendall(b"no HTTP\r\n\r\n")
                return stream.recv(4096)

        assert (await run(work)).startswith(b"HTTP/1.1 400 ")
        await run(lambda: made.client.upload_blob("a", BODY))
