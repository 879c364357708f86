"""The identities of the roles of a rig on links with TLS, and the settings of TLS that follow from them."""

from __future__ import annotations

from pathlib import Path

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.trust.identity import Identity, TlsContext, only
from siterig.blockfs.trust.peer import PeerRole
from siterig.core.paths import Layout

OWN_IDENTITIES: dict[PeerRole, str] = {"vault": "vault", "storage": "cache"}
"""The holders of certificates on the recovery side, with their names."""


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
