"""The identities of the roles of a rig on links with TLS, and the settings of TLS that follow from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from siterig.azure_emu.authority.register import CertificateRegister
from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.trust.identity import Identity, TlsContext, only
from siterig.blockfs.trust.peer import CertificateRefusedError, Peer, PeerRole
from siterig.core.paths import Layout
from siterig.rpc.ways import TlsWay

OWN_IDENTITIES: dict[PeerRole, str] = {"vault": "vault", "storage": "cache"}
"""The holders of certificates on the recovery side, with their names."""


HOST = "site"
"""The name of the Hyper-V host, as in :mod:`siterig.core.hosts`."""
TLS_LINKS: dict[tuple[str, str], PeerRole] = {("agent", "vault"): "vault", ("vault", "agent"): "host"}
"""The links between the sides: client and server, and the role of the server's certificate."""


def own_identity(layout: Layout, role: PeerRole) -> Path:
    """Return the file with the certificate of the vault, or of the storage account."""
    return layout.vault_identity if role == "vault" else layout.storage_identity


def storage_tls(layout: Layout, clock: Clock = SYSTEM_CLOCK) -> TlsContext | None:
    """Return the settings of a client of the storage account; None if the account has no certificate."""
    if not layout.storage_identity.exists():
        return None
    authority = layout.authority_certificate.read_text()
    return TlsContext(False, authority=authority, clock=clock, check=only("storage"))


def storage_server_tls(layout: Layout, clock: Clock = SYSTEM_CLOCK) -> TlsContext | None:
    """Return the settings of a proxy that stands in the place of the storage account; None without a certificate."""
    if not layout.storage_identity.exists():
        return None
    identity, authority = Identity(layout.storage_identity), layout.authority_certificate.read_text()
    return TlsContext(True, authority=authority, clock=clock, identity=identity, demands_certificate=False)


def host_tls(
    layout: Layout, clock: Clock, *, is_server: bool = False, refused: Callable[[str], None] | None = None
) -> TlsContext:
    """Return the settings of the host for connections with the vault.

    ``refused`` gets the reason of each handshake that fails.

    Raises:
        RigError: ``HostNotRegistered`` (recoverable) if the host has no certificate.
    """
    if not layout.host_identity.exists():
        text = f"the host {HOST} is not registered with the vault: it has no certificate"
        raise RigError(Code.HostNotRegistered, text, recoverable=True)
    identity = Identity(layout.host_identity)
    check = None if is_server else only("vault")
    return TlsContext(
        is_server, authority=identity.authority(), clock=clock, identity=identity, check=check, refused=refused
    )


def vault_tls(layout: Layout, clock: Clock) -> TlsContext:
    """Return the settings of the vault as a client of the host, which it refuses as it would refuse its calls."""
    identity = Identity(layout.vault_identity)

    def check(peer: Peer | None) -> None:
        only("host", HOST)(peer)
        problem = CertificateRegister(layout.register).problem(peer, ["host"], clock)
        if problem is not None:
            raise CertificateRefusedError(problem)

    return TlsContext(False, authority=identity.authority(), clock=clock, identity=identity, check=check)


def vault_server_tls(layout: Layout, clock: Clock, refused: Callable[[str], None]) -> TlsContext:
    """Return the settings of the vault as a server; ``refused`` gets the reason of each handshake that fails."""
    identity = Identity(layout.vault_identity)
    return TlsContext(True, authority=identity.authority(), clock=clock, identity=identity, refused=refused)


def tls_way(layout: Layout, client: str, role: str, context: Callable[[], TlsContext]) -> TlsWay:
    """Return the way of a client to a role of the other side, with settings of TLS that ``context`` makes."""
    return TlsWay(
        role,
        layout.port(role),
        layout.link(client, role),
        layout.socket("").parent,
        context=context,
        service_role=TLS_LINKS[client, role],
        register=layout.register if client == "vault" else None,
    )


def way_between_sides(layout: Layout, client: str, role: str, clock: Clock) -> TlsWay | None:
    """Return the way of a client to a role of the other side; None if both are on one side."""
    if (client, role) not in TLS_LINKS:
        return None
    return tls_way(layout, client, role, partial(vault_tls if client == "vault" else host_tls, layout, clock))
