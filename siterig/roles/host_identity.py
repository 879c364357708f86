"""The certificate of the Hyper-V host: the host is registered with a vault credentials file, and rotates its certificate.

Fault contract: the process can be killed at any moment.  The credentials file is removed after the certificate is durable,
so a killed registration is repeated; the vault then has issued one more certificate, whose key nobody has.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
import trio

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.small_file import FileTooLongError, bounded
from siterig.blockfs.sides.host_certificates import (
    WORDS_MAX,
    HostCertificates,
    HostIdentityControl,
    HostRegistration,
    HostSetup,
    IssuedHostCertificate,
)
from siterig.blockfs.trust.credentials_file import CREDENTIALS_BYTES_MAX, read_credentials
from siterig.blockfs.trust.identity import Identity, TlsContext, identity_text, only, store
from siterig.blockfs.trust.peer import PEER, Peer, is_own_refusal, refusal_of
from siterig.blockfs.trust.refusals import Refusal, UnreportedRefusals
from siterig.blockfs.trust.signing_requests import belongs_to, holder_of, key_text, new_key, new_request
from siterig.core.paths import Layout
from siterig.rpc.client import proxy
from siterig.rpc.trust import HOST, tls_way

LOOK_EVERY_S = 60.0
"""The time between two looks whether the certificate has to be rotated; the wall clock can be set meanwhile."""
AGAIN_S = 60.0
"""The time after which a failed rotation is tried again."""
REGISTER_AGAIN_S = 0.5
"""The time after which a vault that does not answer is asked again; it is about to start."""
START_S = 20.0
"""The longest wait for the vault before the start is reported."""
_PLACE = "certificate"
_log = structlog.get_logger(__name__)


class HostIdentity(HostIdentityControl, HostSetup):
    """The certificate of this host; :meth:`run` must run."""

    def __init__(self, layout: Layout, vault: HostCertificates, clock: Clock, waits: Waits) -> None:
        """Begin without a call to the vault.

        Args:
            layout: the rig.
            vault: renews the certificate.
            clock: tells whether certificates are valid.
            waits: the waits of the role.
        """
        self._layout, self._vault, self._clock, self._waits = layout, vault, clock, waits
        self._refusals = UnreportedRefusals(clock)
        self._accepted = trio.Event()
        self.is_registered = trio.Event()
        """Set as soon as the host has a certificate."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register the host if a credentials file is there, and rotate its certificate in time, until cancelled.

        The start is reported when the host is registered, or cannot be, or if the vault has not answered for
        ``START_S``: then the wait can be seen.
        """
        tried = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._work, tried)
            nursery.start_soon(self._report_refusals)
            with self._clock.real.move_on_after(START_S):
                await tried.wait()
            task_status.started()

    async def _work(self, tried: trio.Event) -> None:
        await self._register_by_file()
        self._look()
        tried.set()
        await self.is_registered.wait()
        while True:
            await self._clock.sleep(LOOK_EVERY_S if await self._rotate_in_time() else AGAIN_S)

    def _look(self) -> None:
        if self._layout.host_identity.exists():
            self.is_registered.set()
        elif not self._layout.registration.exists():
            text = f"the host {HOST} is not registered with the vault: siterig site register FILE registers it"
            self._waits.set(_PLACE, Code.HostNotRegistered, text)

    async def _register_by_file(self) -> None:
        """Register by the file that the start of the rig has left, as soon as the vault answers."""
        path = self._layout.registration
        while path.exists():
            try:
                await self._register(_text_of(path), str(path))
            except RigError as error:
                self._waits.set(_PLACE, error.code, error.message)
                if error.code != Code.RoleUnavailable:
                    _log.error("host_not_registered", code=error.code, reason=error.message)
                    return
                await self._clock.real.sleep(REGISTER_AGAIN_S)
            else:
                path.unlink()

    async def register(self, *, credentials: str) -> str:
        await self._register(credentials, "the file")
        return HOST

    async def _register(self, credentials: str, what: str) -> None:
        site, identity_bytes = read_credentials(credentials, what)
        path = self._layout.agent / "registration.pem"
        store(path, identity_bytes)
        try:
            answer, key = await self._ask(Identity(path), site)
        finally:
            with suppress(FileNotFoundError):
                path.unlink()
        self._use(answer, key)
        self._waits.clear(_PLACE)
        self._waits.clear("link agent-vault")  # the host may have no other call to make
        self.is_registered.set()
        _log.info("host_registered", host=HOST, site=site)

    async def _ask(self, identity: Identity, site: str) -> tuple[IssuedHostCertificate, str]:
        """Ask for a certificate with a credentials file; return the answer, and the key that belongs to it."""
        what, own = f"the vault credentials file of the site {site}", identity.parts()[1]
        holder = holder_of(own)
        if holder is None or (holder.role, holder.name) != ("credentials", site):
            raise RigError(Code.BadCredentialsFile, f"{what} has the certificate of {holder.holder if holder else 'nobody'}")
        if (problem := holder.time_problem(self._clock)) is not None:
            raise RigError(Code.PeerRefused, f"{what} cannot be used: {problem}")
        authority = identity.authority()
        context = partial(TlsContext, False, authority=authority, clock=self._clock, identity=identity, check=only("vault"))
        way = tls_way(self._layout, "agent", "vault", context)
        vault = proxy(HostRegistration, way, clock=self._clock)
        key = new_key()
        try:
            return await vault.register_host(host=HOST, request=new_request(key)), key_text(key)
        except RigError as error:
            if error.code != Code.PeerRefused:
                raise
            # Without an answer the two do not trust each other at all; the answer of this vault has the reason.
            hint = "; it may be of another vault" if error.__cause__ is not None else ""
            text = f"{what} is refused{hint}: {error.message}; siterig vault credentials writes a new file"
            raise RigError(Code.PeerRefused, text) from error
        finally:
            await way.aclose()

    async def rotate_certificate(self) -> str:
        if not self._layout.host_identity.exists():
            raise RigError(Code.HostNotRegistered, f"the host {HOST} is not registered with the vault", recoverable=True)
        key = new_key()
        answer = await self._vault.renew_certificate(request=new_request(key))
        return self._use(answer, key_text(key)).serial

    def _use(self, answer: IssuedHostCertificate, key: str) -> Peer:
        """Use a certificate from now on, and return its holder."""
        holder = holder_of(answer.certificate)
        if holder is None or (holder.role, holder.name) != ("host", HOST) or not belongs_to(answer.certificate, key):
            raise RigError(Code.BadCertificate, f"the vault has answered with a certificate that is not of the host {HOST}")
        store(self._layout.host_identity, identity_text(key, answer.certificate, answer.authority))
        return holder

    async def _rotate_in_time(self) -> bool:
        """Rotate the certificate if it is time; return False if that failed."""
        try:
            holder = holder_of(Identity(self._layout.host_identity).parts()[1])
            if holder is None or holder.needs_rotation(self._clock):
                await self.rotate_certificate()
        except RigError as error:
            text = f"the certificate of the host {HOST} cannot be rotated: {error.message}"
            self._waits.set(_PLACE, error.code, text)
            return False
        self._waits.clear(_PLACE)
        return True

    def note_failed_handshake(self, reason: str) -> None:
        """Note that a handshake with a caller failed; ``reason`` is in words."""
        self._note_refusal("an unknown caller", reason)

    def note_called(self, failure: RigError | None) -> None:
        """Note the end of a call to the vault: the failure if one side refuses the other; None if it was answered."""
        if failure is None:
            self._accepted.set()
        elif is_own_refusal(failure.__cause__):  # a refusal by the vault is its own event
            self._note_refusal("the vault", refusal_of(failure.__cause__) or failure.message)

    def _note_refusal(self, affected: str, reason: str) -> None:
        _log.warning("peer_refused", peer=affected, reason=reason)
        self._refusals.note(Refusal(affected[:WORDS_MAX], reason[:WORDS_MAX]))

    async def _report_refusals(self) -> None:
        """Report each refusal to the vault, as soon as the two accept each other, until cancelled."""
        while True:
            refusal = await self._refusals.oldest()
            self._accepted = trio.Event()
            try:
                await self._vault.report_refusal(affected=refusal.affected, reason=refusal.reason)
            except RigError as error:
                _log.info("refusal_not_reported", code=error.code, reason=error.message)
                with self._clock.move_on_after(AGAIN_S):
                    await self._accepted.wait()
            else:
                self._refusals.forget_oldest()

    def guard(self, _service: str) -> RigError | None:
        """Return the reason for which the caller of this connection may not call the host."""
        peer = PEER.get()
        if peer is None or peer.role != "vault":
            problem = (
                f"{peer.words if peer else 'its certificate'} may not be used here; allowed: the certificate of the vault"
            )
        else:
            problem = peer.time_problem(self._clock) or ""
        if not problem:
            return None
        self._note_refusal("a caller without a holder" if peer is None else peer.holder, problem)
        return RigError(Code.PeerRefused, f"the host {HOST} refuses this caller: {problem}", recoverable=True)


def _text_of(path: Path) -> str:
    """Return the text of a file of the rig, which may be damaged.

    Raises:
        RigError: ``BadCredentialsFile``.
    """
    try:
        with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
            return bounded(file, CREDENTIALS_BYTES_MAX).decode(errors="replace")
    except OSError as error:
        raise RigError(Code.BadCredentialsFile, f"{path} cannot be read: {reason(error, path)}") from error
    except FileTooLongError as error:
        raise RigError(Code.BadCredentialsFile, f"{path} {error}") from error
