"""The contract of the vault's authority, as the command line calls it."""

from __future__ import annotations

from typing import Literal, Protocol

from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_S, deadline
from siterig.blockfs.core.wire_model import WireModel

CertificateRole = Literal["vault", "storage", "host", "credentials"]
CertificateState = Literal["valid", "expired", "revoked", "not yet valid"]


class CertificateInfo(WireModel):
    """A certificate that the vault's authority has issued; times are RFC 3339, UTC, by the clock of the rig.

    ``is_current``: it is the one that was issued last to its holder.
    """

    serial: str
    role: CertificateRole
    name: str
    state: CertificateState
    is_current: bool
    issued: str
    not_before: str
    not_after: str
    revoked: str | None = None
    reason: str | None = None


class CertificateApi(Protocol):
    """The operations on certificates."""

    @deadline(ANSWER_S)
    async def list_certificates(self) -> list[CertificateInfo]:
        """Return all certificates in the register, newest first."""
        ...

    @deadline(ASKING_S)
    async def rotate_certificate(self, *, role: CertificateRole, name: str) -> CertificateInfo:
        """Give a holder a new certificate, and return it; the former one stays valid.

        Raises:
            RigError: ``BadRequest`` unless the holder is the vault, the storage account, or a registered host; the errors of
                the call to the host.
        """
        ...

    @deadline(ANSWER_S)
    async def revoke_certificates(self, *, role: CertificateRole, name: str, reason: str) -> list[CertificateInfo]:
        """Revoke all valid certificates of a host, or all valid credentials files of a site, and return them.

        The vault refuses the next call on every connection.

        Raises:
            RigError: ``BadRequest`` for another role, a name without valid certificates, or a reason that is too long.
        """
        ...

    @deadline(ANSWER_S)
    async def issue_credentials(self, *, site: str) -> str:
        """Return the text of a new vault credentials file, which registers hosts of the site for five days.

        Raises:
            RigError: ``InvalidName``.
        """
        ...
