"""Calls between the sides over TLS: who is accepted, what a refused side learns, rotation, and faults of the links."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from siterig.azure_emu.authority.authority import Authority
from siterig.azure_emu.authority.service import CertificateService, new_credentials
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.sides.host_certificates import HostCertificates, HostIdentityControl, HostRegistration
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.blockfs.trust.identity import Identity, TlsContext, only
from siterig.blockfs.trust.signing_requests import holder_of
from siterig.core.paths import Layout
from siterig.director.director import FaultDirector
from siterig.director.links.wiring import link_injectors
from siterig.roles.host_identity import HostIdentity
from siterig.rpc import directory, trust
from siterig.rpc.client import TLS_CALLS, WATCH, proxy
from siterig.rpc.directory import Service
from siterig.rpc.tls_server import serve_tls
from siterig.rpc.ways import TlsWay
from siterig.scenarios.faults.rules import read_rule
from siterig.scenarios.faults.schedule import FaultSchedule
from siterig.supervisor.identities import ensure_identities
from tests.support.clocks import SettableClock

T = TypeVar("T")
DAY_NS = 86_400 * 1_000_000_000
PATIENCE_S = 60


class Answers:
    """The part of ``VaultLink`` that the tests call."""

    def __init__(self) -> None:
        self.calls = 0
        self.forever = False

    async def may_replicate(self, *, vm: str) -> bool:
        self.calls += 1
        if self.forever:
            await trio.sleep_forever()
        return vm == "web01"


class Rig:
    """The vault and the host of a rig, of which only the certificates and the calls exist."""

    def __init__(self, folder: Path) -> None:
        self.layout, self.clock = Layout(folder), SettableClock()
        for path in (self.layout.socket(""), self.layout.link("", ""), self.layout.host_identity):
            path.parent.mkdir(exist_ok=True)
        ensure_identities(self.layout, self.clock)
        self.events: list[tuple[str, str, str]] = []
        self.waits = Waits(self.clock)
        self.authority = Authority(self.layout.authority, self.clock)
        own = {(role, name): trust.own_identity(self.layout, role) for role, name in trust.OWN_IDENTITIES.items()}
        self.ways: list[TlsWay] = []
        hosts = {trust.HOST: self.call(directory.host_identity, "vault")}
        self.certificates = CertificateService(self.authority, own, hosts, self._record, waits=self.waits, clock=self.clock)
        self.answers = Answers()
        self.host = HostIdentity(self.layout, self.call(directory.host_certificates), self.clock, self.waits)
        self.link = self.call(directory.vault_link)

    def call(self, service: Service[T], client: str = "agent", context: TlsContext | None = None) -> T:
        """Return an object that calls a service of the other side; ``context`` takes the place of the client's settings."""
        way = trust.way_between_sides(self.layout, client, service.role, self.clock)
        if context is not None:
            way = trust.tls_way(self.layout, client, service.role, lambda: context)
        assert way is not None
        self.ways.append(way)
        return proxy(service.protocol, way)

    async def _record(self, code: str, _severity: str, affected: str, text: str) -> None:
        self.events.append((code, affected, text))

    async def serve_vault(self, *, task_status: trio.TaskStatus[None]) -> None:
        faces: dict[str, tuple[type, object]] = {
            "VaultLink": (VaultLink, self.answers),
            "HostRegistration": (HostRegistration, self.certificates),
            "HostCertificates": (HostCertificates, self.certificates),
        }
        context = trust.vault_server_tls(self.layout, self.clock, self.certificates.note_failed_handshake)
        await serve_tls(faces, self.layout.port("vault"), context, self.certificates.guard, task_status=task_status)

    async def serve_host(self, *, task_status: trio.TaskStatus[None]) -> None:
        faces: dict[str, tuple[type, object]] = {"HostIdentityControl": (HostIdentityControl, self.host)}
        context = trust.host_tls(self.layout, self.clock, is_server=True, refused=self.host.note_failed_handshake)
        await serve_tls(faces, self.layout.port("agent"), context, self.host.guard, task_status=task_status)

    async def ask(self) -> bool:
        return await self.link.may_replicate(vm="web01")

    @property
    def waiting(self) -> list[tuple[str, str]]:
        return [(wait.code, wait.reason) for wait in self.waits.list()]

    def host_serial(self) -> str:
        holder = holder_of(Identity(self.layout.host_identity).parts()[1])
        assert holder is not None
        return holder.serial


@asynccontextmanager
async def rig(folder: Path, *, is_registered: bool = True) -> AsyncIterator[Rig]:
    made = Rig(folder)
    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            WATCH.set(made.waits)
            nursery.start_soon(made.certificates.run)
            await nursery.start(made.serve_vault)
            if is_registered:
                await nursery.start(made.host.run)
                await nursery.start(made.serve_host)
            yield made
            for way in made.ways:
                await way.aclose()
            nursery.cancel_scope.cancel()


async def refusal(call: Callable[[], Awaitable[object]], code: Code = Code.PeerRefused) -> str:
    with pytest.raises(RigError) as caught:
        await call()
    assert caught.value.code == code, caught.value
    return caught.value.message


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await trio.lowlevel.checkpoint()


async def test_a_host_registers_by_the_file_of_the_start_and_calls_on_one_connection(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        assert await made.ask() and await made.ask()
        await until(lambda: made.events)
        ((code, affected, text),) = made.events
        assert (code, affected) == ("HostRegistered", "site")
        assert "vault credentials file of the site site" in text
        assert not made.layout.registration.exists()
        assert {path.name for path in made.layout.agent.iterdir()} == {"host.pem"}
        assert made.waiting == []
        ensure_identities(made.layout, made.clock)
        assert not made.layout.registration.exists()  # a registered host is not registered again


async def test_a_host_without_a_certificate_waits_with_the_reason(tmp_path: Path) -> None:
    async with rig(tmp_path, is_registered=False) as made:
        made.layout.registration.unlink()
        async with trio.open_nursery() as nursery:
            await nursery.start(made.host.run)
            assert [code for code, _ in made.waiting] == [Code.HostNotRegistered]
            assert "is not registered" in await refusal(made.ask, Code.HostNotRegistered)
            credentials = new_credentials(made.authority, "site").decode()
            assert await made.host.register(credentials=credentials) == "site"
            assert await made.ask()
            assert made.waiting == []
            nursery.cancel_scope.cancel()


async def test_a_revoked_host_is_refused_at_its_next_call_on_an_open_connection(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        assert await made.ask()
        host = made.call(directory.host_identity, "vault")
        assert await host.rotate_certificate()
        await made.certificates.revoke_certificates(role="host", name="site", reason="the machine was stolen")
        message = await refusal(made.ask)
        assert "the vault refuses this caller: the certificate of the host site" in message
        assert message.endswith(": the machine was stolen")
        assert [code for code, _ in made.waiting] == [Code.PeerRefused]  # a wait with its reason
        for _ in range(3):
            await refusal(made.ask)
        # a revoked host is not called either
        assert message.partition("caller: ")[2] in await refusal(host.rotate_certificate)
        await until(lambda: len(made.events) >= 3)
        refusals = [event for event in made.events if event[0] == Code.PeerRefused]
        assert len(refusals) == 1  # one event, however often the host asks
        assert refusals[0][1] == "the host site"
        ensure_identities(made.layout, made.clock)
        assert not made.layout.registration.exists()  # a start of the rig does not undo the revocation
        await made.host.register(credentials=new_credentials(made.authority, "site").decode())
        assert await made.ask()
        assert made.waiting == []


@pytest.mark.parametrize(("days", "word"), [(400, "expired at"), (-3, "is not valid before")])
async def test_a_certificate_is_refused_outside_its_time_by_the_clock_of_the_rig(
    tmp_path: Path, days: int, word: str
) -> None:
    async with rig(tmp_path) as made:
        assert await made.ask()
        made.clock.step_wall_ns(days * DAY_NS)
        message = await refusal(made.ask)
        assert word in message
        assert "the certificate of the host site" in message
        if days > 0:
            await made.certificates.rotate_certificate(role="vault", name="vault")
            await made.host.register(credentials=new_credentials(made.authority, "site").decode())
        else:
            made.clock.step_wall_ns(-days * DAY_NS)
        assert await made.ask()
        assert made.waiting == []


async def test_a_host_of_another_vault_is_refused_and_both_sides_know_why(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        foreign = Authority(tmp_path / "foreign", made.clock)
        foreign.replace_identity(made.layout.host_identity, "host", "site")
        message = await refusal(made.ask)
        assert "the certificate of the other side is not of the authority of the vault" in message
        own, trusted = Identity(made.layout.host_identity), made.authority.certificate
        context = TlsContext(False, authority=trusted, clock=made.clock, identity=own, check=only("vault"))
        link = made.call(directory.vault_link, context=context)  # a host that trusts this vault, and is not of it
        message = await refusal(lambda: link.may_replicate(vm="web01"))
        assert "the other side refuses the certificate of this side" in message
        await until(lambda: any(code == Code.PeerRefused for code, _, _ in made.events))
        assert made.answers.calls == 0


@pytest.mark.parametrize("role", ["vault", "storage", "credentials"])
async def test_a_certificate_of_another_role_opens_no_service_of_the_host(tmp_path: Path, role: Any) -> None:
    async with rig(tmp_path) as made:
        made.authority.replace_identity(made.layout.host_identity, role, "site")
        message = await refusal(made.ask)
        if role == "storage":  # the certificate is for servers only: OpenSSL ends the handshake
            assert message.endswith("the other side refuses the certificate of this side: it is for servers only")
        else:
            assert "may not be used here; allowed: the certificate of a host" in message
        assert made.answers.calls == 0


async def test_a_host_can_neither_register_hosts_nor_stand_for_another_host(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        registration = made.call(directory.host_registration)
        message = await refusal(lambda: registration.register_host(host="other", request=""))
        assert "allowed: the certificate of a vault credentials file" in message
        made.authority.replace_identity(made.layout.host_identity, "host", "other")
        host = made.call(directory.host_identity, "vault")
        message = await refusal(host.rotate_certificate)
        assert "the other side shows the certificate of the host other" in message
        assert message.endswith("; expected: the host site")


async def test_only_the_vault_can_call_the_host(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        identity = Identity(made.layout.host_identity)
        context = TlsContext(
            False, authority=made.authority.certificate, clock=made.clock, identity=identity, check=only("host", "site")
        )
        host = made.call(directory.host_identity, "vault", context)
        message = await refusal(host.rotate_certificate)
        assert "the host site refuses this caller: the certificate of the host site" in message


def refusals(made: Rig) -> list[tuple[str, str]]:
    return [(affected, text) for code, affected, text in made.events if code == Code.PeerRefused]


async def test_a_host_reports_refused_callers_to_the_vault(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        stranger = tmp_path / "stranger.pem"
        foreign = Authority(tmp_path / "foreign", made.clock)
        for authority, role, words in (
            (made.authority, "host", "the host site refused the host site: the certificate of the host site"),
            (foreign, "vault", "the host site refused an unknown caller: the certificate of the other side is not of the"),
        ):
            authority.replace_identity(stranger, role, "site")  # type: ignore[arg-type]
            own, trusted = Identity(stranger), made.authority.certificate
            context = TlsContext(False, authority=trusted, clock=made.clock, identity=own, check=only("host"))
            host = made.call(directory.host_identity, "vault", context)
            before = len(refusals(made))
            for _ in range(3):
                await refusal(host.rotate_certificate)
            await until(lambda before=before: len(refusals(made)) > before)  # type: ignore[misc]
            assert refusals(made)[-1][1].startswith(words), refusals(made)
            assert len(refusals(made)) == before + 1, "one event, however often it calls"


async def test_a_host_reports_later_that_it_refused_the_vault(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        TLS_CALLS.set(made.host.note_called)
        Authority(tmp_path / "foreign", made.clock).replace_identity(made.layout.vault_identity, "vault", "vault")
        await refusal(made.ask)
        assert refusals(made) == []
        made.authority.replace_identity(made.layout.vault_identity, "vault", "vault")
        assert await made.ask()
        await until(lambda: refusals(made))
        ((affected, text),) = refusals(made)
        assert affected == "the vault"
        assert text.startswith("the host site refused the vault: the certificate of the other side is not of the authority")


async def test_the_vault_records_refusals_of_its_own_calls(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        TLS_CALLS.set(partial(made.certificates.note_called, trust.HOST))
        host = made.call(directory.host_identity, "vault")
        made.authority.replace_identity(made.layout.host_identity, "host", "other")
        for _ in range(2):
            await refusal(host.rotate_certificate)
        made.authority.replace_identity(made.layout.host_identity, "host", "site")
        made.authority.replace_identity(made.layout.vault_identity, "credentials", "vault")
        for _ in range(2):
            await refusal(host.rotate_certificate)
        await until(lambda: {affected for affected, _ in refusals(made)} == {"the host site", "the vault"})
        texts = [text for _, text in refusals(made)]
        assert any(text.startswith("the vault refused the host site: the other side shows") for text in texts)
        assert any(text.startswith("the host site refused the vault: ") for text in texts)


async def test_a_report_of_a_refusal_is_bounded_and_escaped(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        vault = made.call(directory.host_certificates)
        message = await refusal(lambda: vault.report_refusal(affected="x", reason="y" * 1001), Code.BadRequest)
        assert message == "reason: 1001 characters; allowed: at most 1000"
        await vault.report_refusal(affected="a\nb", reason="c\x1b[2J")
        await until(lambda: refusals(made))
        assert refusals(made) == [("a\\nb", "the host site refused a\\nb: c\\x1b[2J")]


@pytest.mark.parametrize("problem", ["expired", "revoked", "foreign", "other", "site", "damaged"])
async def test_a_credentials_file_that_is_not_right_is_refused_by_name(tmp_path: Path, problem: str) -> None:
    async with rig(tmp_path) as made:
        before = made.layout.host_identity.read_bytes()
        text = new_credentials(made.authority, "site").decode()
        code, words = Code.PeerRefused, "the vault credentials file of the site site"
        if problem == "expired":
            made.clock.step_wall_ns(6 * DAY_NS)
            words += " cannot be used: the certificate of the vault credentials file of the site site"
        elif problem == "revoked":
            await made.certificates.revoke_certificates(role="credentials", name="site", reason="sent to all")
            words += (
                " is refused: the vault refuses this caller: the certificate of the vault credentials file of the site site"
            )
        elif problem == "foreign":
            text = new_credentials(Authority(tmp_path / "foreign", made.clock), "site").decode()
            words += " is refused; it may be of another vault"
        elif problem == "other":
            text = text.replace("siterig vault credentials", "something")
            code, words = Code.BadCredentialsFile, "the file is no vault credentials file"
        elif problem == "site":
            text = text.replace('"site": "site"', '"site": "other"')
            code, words = (
                Code.BadCredentialsFile,
                "of the site other has the certificate of the vault credentials file of the",
            )
        else:
            code, text, words = Code.BadCredentialsFile, text[:-100], "the file is no vault credentials file: it is not JSON"
        message = await refusal(lambda: made.host.register(credentials=text), code)
        assert words in message
        assert made.layout.host_identity.read_bytes() == before
        assert {path.name for path in made.layout.agent.iterdir()} == {"host.pem"}
        if problem != "expired":
            assert await made.ask()


async def test_certificates_of_all_holders_rotate_under_load_without_a_failed_call(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        serials = {made.host_serial()}
        is_over = False

        async def call() -> None:
            while not is_over:
                assert await made.ask()

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(call)
            for _ in range(3):
                calls = made.answers.calls
                for role, name in (("host", "site"), ("vault", "vault"), ("storage", "cache")):
                    info = await made.certificates.rotate_certificate(role=role, name=name)  # type: ignore[arg-type]
                    assert (info.role, info.is_current, info.state) == (role, True, "valid")
                serials.add(made.host_serial())
                await until(lambda calls=calls: made.answers.calls > calls + 20)  # type: ignore[misc]
            is_over = True
        assert len(serials) == 4
        listed = await made.certificates.list_certificates()
        assert sum(info.is_current for info in listed) == 4
        assert made.waiting == []


async def test_a_certificate_is_rotated_by_itself_when_a_quarter_of_its_life_is_left(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        first = made.host_serial()
        assert await made.host._rotate_in_time()  # noqa: SLF001
        assert made.host_serial() == first
        made.clock.step_wall_ns(280 * DAY_NS)
        assert await made.host._rotate_in_time()  # noqa: SLF001
        assert made.host_serial() != first
        assert await made.ask()


async def test_an_unknown_holder_or_role_is_an_error_that_names_the_allowed_ones(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        rotate = partial(made.certificates.rotate_certificate, role="host", name="lost")
        message = await refusal(rotate, Code.BadRequest)
        assert message == "host lost has no certificate to rotate; allowed: vault, storage, host site"
        revoke = made.certificates.revoke_certificates
        message = await refusal(partial(revoke, role="vault", name="vault", reason="x"), Code.BadRequest)
        assert message == "role 'vault': its certificate is rotated; allowed: host, credentials"
        message = await refusal(partial(revoke, role="host", name="lost", reason="x"), Code.BadRequest)
        assert message == "host 'lost' has no valid certificate; known: site"
        message = await refusal(partial(revoke, role="host", name="site", reason="x" * 201), Code.BadRequest)
        assert message == "reason: 201 characters; allowed: at most 200"


@asynccontextmanager
async def director(made: Rig) -> AsyncIterator[tuple[FaultDirector, FaultSchedule]]:
    schedule = FaultSchedule(7)
    found = FaultDirector(schedule, link_injectors(made.layout, schedule))
    async with trio.open_nursery() as nursery:
        await nursery.start(found.run)
        yield found, schedule
        nursery.cancel_scope.cancel()


async def add(faults: FaultDirector, *words: str) -> None:
    await faults.add_faults(rules=[read_rule(line).document() for line in words])


@pytest.mark.parametrize("operation", ["connect", "send occurrence=1", "send occurrence=2", "send stream=downstream"])
async def test_a_reset_within_a_handshake_is_an_error_at_once_and_no_way_around(tmp_path: Path, operation: str) -> None:
    async with rig(tmp_path) as made, director(made) as (faults, schedule):
        assert await made.ask()
        calls = made.answers.calls
        await add(faults, f"link agent-vault {operation} connection=reset times=1")
        message = await refusal(made.ask, Code.RoleUnavailable)
        assert "over the link agent-vault" in message
        assert made.answers.calls == calls
        assert [injection.done for injection in schedule.injections][-1:] != []
        assert await made.ask()


async def test_a_black_hole_within_a_handshake_holds_the_call_until_it_ends(tmp_path: Path) -> None:
    async with rig(tmp_path) as made, director(made) as (faults, _):
        await add(faults, "link agent-vault send connection=black-hole name=hole")
        answered: list[bool] = []

        async def call() -> None:
            answered.append(await made.ask())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            with trio.move_on_after(0.2):
                await until(lambda: answered)
            assert answered == []
            await faults.remove_fault(name="hole")
            await until(lambda: answered)
        assert answered == [True]


async def test_a_black_hole_within_a_handshake_ends_with_the_deadline_of_the_call(tmp_path: Path) -> None:
    async with rig(tmp_path) as made, director(made) as (faults, _):
        await add(faults, "link vault-agent send connection=black-hole")
        host = made.call(directory.host_identity, "vault")
        with trio.move_on_after(0.3) as limit:  # a caller that stops leaves nothing behind
            await host.rotate_certificate()
        assert limit.cancelled_caught
        await faults.clear_faults()
        assert await host.rotate_certificate()


async def test_a_peer_that_dies_or_is_silent_in_its_handshake_hurts_nobody_else(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        port = int(made.layout.port("vault").read_text())
        for begin in (b"", b"\x16\x03\x01", b"GET / HTTP/1.0\r\n\r\n", b"\x00" * 100):
            stream = await trio.open_tcp_stream("127.0.0.1", port)
            await stream.send_all(begin) if begin else None
            stream.socket.close()
        silent = await trio.open_tcp_stream("127.0.0.1", port)
        context = trust.host_tls(made.layout, made.clock)
        half = trio.SSLStream(await trio.open_tcp_stream("127.0.0.1", port), context, https_compatible=True)
        await half.do_handshake()
        half.transport_stream.socket.close()
        assert await made.ask()
        await silent.aclose()


async def test_a_server_that_ends_within_the_handshake_is_a_role_that_does_not_answer(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:

        async def end(stream: trio.SocketStream) -> None:
            await stream.receive_some(10)

        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        made.layout.port("vault").write_text(str(listener.socket.getsockname()[1]))
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, end, [listener])
            await refusal(made.ask, Code.RoleUnavailable)
            nursery.cancel_scope.cancel()
        await refusal(made.ask, Code.RoleUnavailable)  # nobody listens now
        made.layout.port("vault").unlink()
        assert "has not listened yet" in await refusal(made.ask, Code.RoleUnavailable)
        made.layout.port("vault").write_text("none")
        await refusal(made.ask, Code.BadPort)


async def test_a_cancelled_call_is_cancelled_at_the_other_side(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        assert await made.ask()
        made.answers.forever = True
        with trio.move_on_after(0.1):
            await made.ask()
        made.answers.forever = False
        assert await made.ask()


def test_a_start_registers_a_host_whose_certificate_has_expired_or_is_missing(tmp_path: Path) -> None:
    made = Rig(tmp_path)
    assert made.layout.registration.exists()
    before = made.layout.vault_identity.read_bytes()
    made.authority.replace_identity(made.layout.host_identity, "host", "site")
    for change in (made.layout.host_identity.unlink, partial(made.clock.step_wall_ns, 400 * DAY_NS)):
        made.layout.registration.unlink()
        ensure_identities(made.layout, made.clock)
        assert not made.layout.registration.exists()
        change()
        ensure_identities(made.layout, made.clock)
        assert made.layout.registration.exists()
        Authority(made.layout.authority, made.clock).replace_identity(made.layout.host_identity, "host", "site")
    assert made.layout.vault_identity.read_bytes() != before  # it had expired, too


def test_both_sides_speak_tls_1_3_only(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for path in (layout.socket(""), layout.host_identity):
        path.parent.mkdir(exist_ok=True)
    ensure_identities(layout, SYSTEM_CLOCK)
    for context in (
        trust.vault_tls(layout, SYSTEM_CLOCK),
        trust.vault_server_tls(layout, SYSTEM_CLOCK, print),
        trust.storage_tls(layout),
    ):
        assert context is not None
        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
