"""The operations of the vault's authority, and the decision about each caller from the site.

A refusal is an event of the vault.  A caller that repeats its call makes one event an hour, because it may repeat it for
days.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Literal, cast

import structlog
import trio

from siterig.azure_emu.authority.authority import Authority
from siterig.azure_emu.authority.register import IssuedCertificate
from siterig.azure_emu.contracts.certificates import CertificateApi, CertificateInfo, CertificateRole, CertificateState
from siterig.blockfs.core.clock import Clock, rfc3339, rfc3339_or_none
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.printable import printable
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.sides.host_certificates import (
    WORDS_MAX,
    HostCertificates,
    HostIdentityControl,
    HostRegistration,
    IssuedHostCertificate,
)
from siterig.blockfs.trust.credentials_file import credentials_text
from siterig.blockfs.trust.identity import check_identity
from siterig.blockfs.trust.peer import PEER, Peer, PeerRole, is_own_refusal, refusal_of
from siterig.blockfs.trust.refusals import Refusal, RepeatedRefusals
from siterig.blockfs.trust.signing_requests import holder_of, requested_key

SERVICES: dict[str, tuple[PeerRole, ...]] = {
    "HostRegistration": ("credentials",),
    "DataKeys": ("host",),
    "HostCertificates": ("host",),
    "VaultLink": ("host",),
    "calls": ("host", "credentials"),
}
"""The services of the vault for the sites, and whose certificates they accept."""
LOOK_EVERY_S = 60.0
"""The time between two looks whether a certificate of this side has to be rotated; the wall clock can be set meanwhile."""
EventSeverity = Literal["OK", "Warning", "Critical"]
RecordEvent = Callable[[str, EventSeverity, str, str], Awaitable[None]]
"""Records an event: code, severity, the affected object, text."""
_log = structlog.get_logger(__name__)


class CertificateService(CertificateApi, HostRegistration, HostCertificates):
    """The certificates of one vault; :meth:`run` must run."""

    def __init__(
        self,
        authority: Authority,
        own: dict[tuple[PeerRole, str], Path],
        hosts: dict[str, HostIdentityControl],
        record: RecordEvent,
        *,
        waits: Waits,
        clock: Clock,
    ) -> None:
        """Begin without a task that runs.

        Args:
            authority: the authority.
            own: the identity files of this side by their holders.
            hosts: the hosts that can be asked for a new certificate, by name.
            record: records an event of the vault.
            waits: the waits of the vault.
            clock: the clock of the rig.
        """
        self.authority, self._own, self._hosts, self._record, self._clock = authority, own, hosts, record, clock
        self._waits = waits
        self._register = authority.register
        self._refusals = RepeatedRefusals(clock)
        self._events, self._to_record = trio.open_memory_channel[tuple[str, EventSeverity, str, str]](1000)

    async def run(self) -> None:
        """Record events, and rotate the certificates of this side before they expire, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._rotate_in_time)
            async for code, severity, affected, text in self._to_record:
                try:
                    await self._record(code, severity, affected, text)
                except RigError as error:  # the host's disk is full: the log has the event
                    _log.warning("event_not_recorded", code=code, event=text, reason=error.message)

    async def _rotate_in_time(self) -> None:
        while True:
            for role, name in self._own:
                newest = self._register.newest(role, name)
                if newest is None or newest.peer.needs_rotation(self._clock):
                    await self._rotate_own(role, name)
            await self._clock.sleep(LOOK_EVERY_S)

    async def _rotate_own(self, role: PeerRole, name: str) -> None:
        try:
            await self.rotate_certificate(role=role, name=name)
        except RigError as error:
            self._waits.set(f"certificate {role}", error.code, f"a certificate cannot be rotated: {error.message}")
        else:
            self._waits.clear(f"certificate {role}")

    # --- callers --------------------------------------------------------------------------------------------------------

    def guard(self, service: str) -> RigError | None:
        """Return the reason for which the caller of this connection may not call a service."""
        peer = PEER.get()
        problem = self._register.problem(peer, SERVICES.get(service, ()), self._clock)
        if problem is None:
            return None
        self._note("a caller without a holder" if peer is None else peer.holder, problem)
        return RigError(Code.PeerRefused, f"the vault refuses this caller: {problem}", recoverable=True)

    def note_failed_handshake(self, reason: str) -> None:
        """Record that a handshake with a caller failed; ``reason`` is in words."""
        self._note("an unknown caller", reason)

    def note_called(self, host: str, failure: RigError | None) -> None:
        """Record that a call of the vault to a host failed because one side refuses the certificate of the other.

        Args:
            host: the name of the host.
            failure: the failure, with the error of the connection as its cause; None after a call that was answered.
        """
        if failure is None:
            return
        reason = refusal_of(failure.__cause__) or failure.message
        if is_own_refusal(failure.__cause__):
            self._note(f"the host {host}", reason)
        else:
            self._note("the vault", reason, by=f"the host {host}")

    def _note(self, affected: str, reason: str, *, by: str = "the vault") -> None:
        _log.warning("peer_refused", by=by, peer=affected, reason=reason)
        if self._refusals.is_news(Refusal(f"{affected}, by {by}", reason)):
            self._event(Code.PeerRefused, "Warning", affected, f"{by} refused {affected}: {reason}")

    def _event(self, code: str, severity: EventSeverity, affected: str, text: str) -> None:
        try:
            self._events.send_nowait((code, severity, affected, text))
        except trio.WouldBlock:
            _log.warning("event_not_recorded", code=code, reason=text)

    # --- hosts ----------------------------------------------------------------------------------------------------------

    async def register_host(self, *, host: str, request: str) -> IssuedHostCertificate:
        issued = self._issue(host, request)
        credentials = PEER.get()
        by = "" if credentials is None else f" with {credentials.words}"
        self._event_ok("HostRegistered", host, f"the host {host} was registered{by}")
        return issued

    async def renew_certificate(self, *, request: str) -> IssuedHostCertificate:
        peer = PEER.get()
        if peer is None:
            raise RigError(Code.PeerRefused, "a certificate is renewed by its holder only")
        issued = self._issue(peer.name, request)
        self._event_ok("CertificateRotated", peer.name, f"{peer.holder} has a new certificate in place of {peer.serial}")
        return issued

    async def report_refusal(self, *, affected: str, reason: str) -> None:
        for name, text in (("affected", affected), ("reason", reason)):
            if len(text) > WORDS_MAX:
                raise RigError(Code.BadRequest, f"{name}: {len(text)} characters; allowed: at most {WORDS_MAX}")
        peer = PEER.get()
        if peer is None:
            raise RigError(Code.PeerRefused, "a refusal is reported by a host only")
        self._note(printable(affected), printable(reason), by=peer.holder)

    def _issue(self, host: str, request: str) -> IssuedHostCertificate:
        certificate = self.authority.issue("host", host, requested_key(request))
        self._waits.clear("link vault-agent")  # the vault may have no call to make to the host, which has a new one
        return IssuedHostCertificate(certificate=certificate, authority=self.authority.certificate)

    def _event_ok(self, code: str, affected: str, text: str) -> None:
        self._event(code, "OK", affected, text)

    # --- operations -----------------------------------------------------------------------------------------------------

    async def list_certificates(self) -> list[CertificateInfo]:
        return [self._info(entry) for entry in reversed(self._register.entries)]

    async def rotate_certificate(self, *, role: CertificateRole, name: str) -> CertificateInfo:
        path, host = self._own.get((role, name)), self._hosts.get(name)
        if path is not None:
            self.authority.replace_identity(path, role, name)
            newest = self._register.newest(role, name)
        elif role == "host" and host is not None:
            serial = await host.rotate_certificate()
            newest = next((entry for entry in self._register.entries if entry.serial == serial), None)
        else:
            allowed = ", ".join([*(each for each, _ in self._own), *(f"host {each}" for each in self._hosts)])
            raise RigError(Code.BadRequest, f"{role} {name} has no certificate to rotate; allowed: {allowed}")
        assert newest is not None  # noqa: S101 (it has just been issued)
        if path is not None:
            self._event_ok("CertificateRotated", newest.peer.holder, f"{newest.peer.holder} has a new certificate")
        return self._info(newest)

    async def revoke_certificates(self, *, role: CertificateRole, name: str, reason: str) -> list[CertificateInfo]:
        if role not in ("host", "credentials"):
            raise RigError(Code.BadRequest, f"role {role!r}: its certificate is rotated; allowed: host, credentials")
        serials = [
            entry.serial
            for entry in self._register.entries
            if (entry.role, entry.name) == (role, name) and entry.state(self._clock) in ("valid", "not yet valid")
        ]
        if not serials:
            names = sorted({entry.name for entry in self._register.entries if entry.role == role})
            text = f"{role} {name!r} has no valid certificate; known: {', '.join(names) or 'none'}"
            raise RigError(Code.BadRequest, text)
        self._register.revoke(serials, reason, self._clock)
        revoked = [entry for entry in self._register.entries if entry.serial in serials]
        holder = revoked[0].peer.holder
        self._event_ok("CertificateRevoked", holder, f"{len(revoked)} certificates of {holder} were revoked: {reason}")
        return [self._info(entry) for entry in revoked]

    async def issue_credentials(self, *, site: str) -> str:
        return new_credentials(self.authority, site).decode("ascii")

    def _info(self, entry: IssuedCertificate) -> CertificateInfo:
        return CertificateInfo(
            serial=entry.serial,
            role=entry.role,
            name=entry.name,
            state=cast("CertificateState", entry.state(self._clock)),
            is_current=self._register.newest(entry.role, entry.name) == entry,
            issued=rfc3339(entry.issued_ns),
            not_before=rfc3339(entry.not_before_ns),
            not_after=rfc3339(entry.not_after_ns),
            revoked=rfc3339_or_none(entry.revoked_ns),
            reason=entry.reason,
        )


def new_credentials(authority: Authority, site: str) -> bytes:
    """Return the bytes of a new vault credentials file for a site.

    Raises:
        RigError: ``InvalidName``.
    """
    identity = authority.issue_identity("credentials", site)
    peer = cast("Peer", holder_of(check_identity(identity)[1]))
    return credentials_text(peer, identity)
