"""TLS between two sides: each accepts the other only if its certificate is right, by the clock of the rig."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from siterig.azure_emu.authority.authority import Authority
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.trust.identity import Identity, TlsContext, identity_text, only
from siterig.blockfs.trust.peer import PEER, Peer, PeerRole, refusal_of
from siterig.blockfs.trust.signing_requests import key_text, new_key, new_request, requested_key
from tests.support.clocks import SettableClock

DAY_NS = 86_400 * 1_000_000_000
VAULT_ONLY = only("vault")


class Sides:
    """An authority, and the identities that it has given to the two sides."""

    def __init__(self, folder: Path) -> None:
        self.clock = SettableClock()
        self.folder = folder
        self.authority = Authority(folder / "authority", self.clock)
        self.refused: list[str] = []
        self.seen: list[Peer | None] = []

    def identity(self, role: PeerRole, name: str, authority: Authority | None = None) -> Identity:
        path = self.folder / f"{role}-{name}.pem"
        (authority or self.authority).replace_identity(path, role, name)
        return Identity(path)

    def server(self, identity: Identity, *, clock: Clock | None = None, demands: bool = True) -> TlsContext:
        return TlsContext(
            True,
            authority=self.authority.certificate,
            clock=clock or self.clock,
            identity=identity,
            refused=self.refused.append,
            demands_certificate=demands,
        )

    def client(
        self,
        identity: Identity | None,
        check: Callable[[Peer | None], None] = VAULT_ONLY,
        *,
        authority: Authority | None = None,
    ) -> TlsContext:
        trusted = (authority or self.authority).certificate
        return TlsContext(False, authority=trusted, clock=self.clock, identity=identity, check=check)

    async def problem(self, server: TlsContext, client: TlsContext) -> str | None:
        """Connect, and send a byte in both directions; return the reason of the client if that fails."""
        ours, theirs = trio.socket.socketpair()
        found: list[str | None] = []

        async def serve() -> None:
            async with trio.SSLStream(trio.SocketStream(theirs), server, server_side=True, https_compatible=True) as stream:
                try:
                    await stream.do_handshake()
                    self.seen.append(PEER.get())
                    await stream.send_all(await stream.receive_some(1))
                except trio.BrokenResourceError:
                    return

        async def call() -> None:
            async with trio.SSLStream(trio.SocketStream(ours), client, https_compatible=True) as stream:
                try:
                    await stream.send_all(b"x")
                    await stream.receive_some(1)
                    found.append(None)
                except trio.BrokenResourceError as error:
                    found.append(refusal_of(error) or "")

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve)
                nursery.start_soon(call)
        return found[0]


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


async def test_each_side_learns_the_holder_of_the_other_certificate(sides: Sides) -> None:
    server = sides.server(sides.identity("vault", "vault"))
    assert await sides.problem(server, sides.client(sides.identity("host", "site"))) is None
    assert [(peer.role, peer.name) for peer in sides.seen if peer] == [("host", "site")]
    assert server.minimum_version is ssl.TLSVersion.TLSv1_3


async def test_a_client_of_a_foreign_authority_is_refused_and_both_sides_know_why(sides: Sides) -> None:
    foreign = Authority(sides.folder / "foreign", sides.clock)
    client = sides.client(sides.identity("host", "site", foreign))
    problem = await sides.problem(sides.server(sides.identity("vault", "vault")), client)
    assert problem == "the other side refuses the certificate of this side: it is not of the authority of the vault"
    (refused,) = sides.refused
    assert refused.startswith("the certificate of the other side is not of the authority of the vault")


async def test_a_client_without_a_certificate_is_refused(sides: Sides) -> None:
    problem = await sides.problem(sides.server(sides.identity("vault", "vault")), sides.client(None))
    assert problem == "the other side demands a certificate, and this side has none"
    assert sides.refused == ["the other side has shown no certificate"]


async def test_a_server_of_a_foreign_authority_is_refused(sides: Sides) -> None:
    foreign = Authority(sides.folder / "foreign", sides.clock)
    server = sides.server(sides.identity("vault", "vault", foreign))
    problem = await sides.problem(server, sides.client(sides.identity("host", "site")))
    assert problem is not None
    assert problem.startswith("the certificate of the other side is not of the authority of the vault")


@pytest.mark.parametrize(("days", "word"), [(400, "expired at"), (-400, "is not valid before"), (364, None)])
async def test_a_server_certificate_is_valid_by_the_clock_of_the_rig_only(sides: Sides, days: int, word: str | None) -> None:
    server = sides.server(sides.identity("vault", "vault"))
    client = sides.client(None)
    server.verify_mode = ssl.CERT_NONE
    sides.clock.step_wall_ns(days * DAY_NS)
    problem = await sides.problem(server, client)
    if word is None:
        assert problem is None
    else:
        assert problem is not None
        assert problem.startswith("the certificate of the vault (serial ")
        assert word in problem


async def test_a_server_that_shows_the_certificate_of_another_role_is_refused(sides: Sides) -> None:
    client = sides.client(sides.identity("vault", "vault"), only("host", "site"))
    problem = await sides.problem(sides.server(sides.identity("host", "other")), client)
    assert problem is not None
    assert problem.startswith("the other side shows the certificate of the host other (serial ")
    assert problem.endswith("; expected: the host site")
    assert await sides.problem(sides.server(sides.identity("host", "site")), client) is None


async def test_a_new_certificate_in_the_file_is_used_by_the_next_connection(sides: Sides) -> None:
    vault = sides.identity("vault", "vault")
    server, client = sides.server(vault), sides.client(sides.identity("host", "site"))
    assert await sides.problem(server, client) is None
    sides.identity("host", "site")  # replaces the file
    assert await sides.problem(server, client) is None
    first, second = (peer.serial for peer in sides.seen if peer)
    assert first != second


async def test_two_sides_that_speak_no_tls_1_3_or_no_tls_have_a_reason_in_words(sides: Sides) -> None:
    old = sides.client(sides.identity("host", "site"))
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    problem = await sides.problem(sides.server(sides.identity("vault", "vault")), old)
    assert problem == "the other side speaks another version of TLS; allowed: TLS 1.3"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: b"", "it has the PEM blocks (none); allowed: PRIVATE KEY, CERTIFICATE, CERTIFICATE"),
        (lambda data: data + data, "it has the PEM blocks PRIVATE KEY, CERTIFICATE, CERTIFICATE, PRIVATE KEY"),
        (lambda data: b"x" * 70_000, "has more than 65536 bytes"),
    ],
)
def test_a_damaged_identity_is_refused_by_name(sides: Sides, change: Callable[[bytes], bytes], reason: str) -> None:
    identity = sides.identity("host", "site")
    identity.path.write_bytes(change(identity.path.read_bytes()))
    with pytest.raises(RigError) as caught:
        identity.parts()
    assert reason in caught.value.message
    assert str(identity.path) in caught.value.message


def test_a_key_of_another_certificate_is_refused(sides: Sides) -> None:
    identity = sides.identity("host", "site")
    _, certificate, authority = identity.parts()
    identity.path.write_bytes(identity_text(key_text(new_key()), certificate, authority))
    with pytest.raises(RigError) as caught:
        sides.client(identity)
    assert caught.value.code == Code.BadCertificate


def test_a_request_for_a_certificate_must_be_signed_by_its_own_key() -> None:
    key, other = new_key(), new_key()
    request = new_request(key)
    assert requested_key(request) == key.public_key()
    signed_by_other = new_request(other)
    for text in ("", "x" * 20_000, request.replace("M", "N"), request[:-90] + signed_by_other[-90:], "\u20ac"):
        with pytest.raises(RigError) as caught:
            requested_key(text)
        assert caught.value.code == Code.BadRequest
