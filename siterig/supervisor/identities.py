"""The certificates of the recovery side of a rig: made before its roles start, and replaced before they expire.

The module loads the library that makes certificates only if one is missing or old, because a rig with all of them must not
wait for it.
"""

from __future__ import annotations

from siterig.azure_emu.authority.register import CertificateRegister
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.files import safe_files
from siterig.blockfs.trust.identity import store
from siterig.core.paths import Layout
from siterig.rpc.trust import HOST, OWN_IDENTITIES, own_identity


def ensure_identities(layout: Layout, clock: Clock) -> None:
    """Make the authority of the vault, and the certificates of the vault and of the storage account, if one is missing.

    A host without a certificate gets a vault credentials file, with which its agent registers it; one whose certificate was
    revoked gets none.  A rig of a version without certificates gets them, too.  The caller holds the lock of the rig.

    Args:
        layout: the rig.
        clock: tells which certificates are old.

    Raises:
        RigError: ``AuthorityUnusable``.
    """
    register = CertificateRegister(layout.register)
    missing = []
    for role, name in OWN_IDENTITIES.items():
        newest = register.newest(role, name)
        if newest is None or newest.peer.needs_rotation(clock) or not own_identity(layout, role).exists():
            missing.append((role, name))
    is_registered = _is_registered(register, layout, clock)
    if not missing and is_registered and layout.authority_certificate.exists():
        return

    from siterig.azure_emu.authority.authority import Authority  # noqa: PLC0415

    authority = Authority(layout.authority, clock)
    for role, name in missing:
        authority.replace_identity(own_identity(layout, role), role, name)
    store(layout.authority_certificate, authority.certificate.encode("ascii"))
    if not is_registered:
        from siterig.azure_emu.authority.service import new_credentials  # noqa: PLC0415

        safe_files.make_folder(layout.agent, parents=True)
        store(layout.registration, new_credentials(authority, HOST))


def _is_registered(register: CertificateRegister, layout: Layout, clock: Clock) -> bool:
    """Return True if the host of the rig has a certificate, or must not get one because it was revoked."""
    newest = register.newest("host", HOST)
    if newest is None:
        return False
    if newest.revoked_ns is not None:
        return True
    return newest.state(clock) == "valid" and layout.host_identity.exists()
