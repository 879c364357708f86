"""The certificates of the recovery side of a rig: made before its roles start, and replaced before they expire.

The module loads the library that makes certificates only if one is missing or old, because a rig with all of them must not
wait for it.
"""

from __future__ import annotations

from siterig.azure_emu.authority.register import CertificateRegister
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.files.durable_io import write_atomically
from siterig.core.paths import Layout
from siterig.rpc.trust import OWN_IDENTITIES, own_identity


def ensure_identities(layout: Layout, clock: Clock) -> None:
    """Make the authority of the vault, and the certificates of the vault and of the storage account, if one is missing.

    A rig of a version without certificates gets them, too.  The caller holds the lock of the rig.

    Args:
        layout: the rig.
        clock: tells which certificates are old.

    Raises:
        RigError: ``AuthorityUnusable``.
    """
    register = CertificateRegister(layout.authority / "register.json")
    missing = []
    for role, name in OWN_IDENTITIES.items():
        newest = register.newest(role, name)
        if newest is None or newest.peer.needs_rotation(clock) or not own_identity(layout, role).exists():
            missing.append((role, name))
    if not missing and layout.authority_certificate.exists():
        return

    from siterig.azure_emu.authority.authority import Authority  # noqa: PLC0415

    authority = Authority(layout.authority, clock)
    for role, name in missing:
        authority.replace_identity(own_identity(layout, role), role, name)
    write_atomically(layout.authority_certificate, authority.certificate.encode("ascii"))
