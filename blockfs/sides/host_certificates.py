"""The contracts of certificates of hosts: a host gets one with a vault credentials file, and new ones before it expires."""

from __future__ import annotations

from typing import Protocol

from siterig.blockfs.core.deadlines import ANSWER_S, ASKING_S, deadline
from siterig.blockfs.core.wire_model import WireModel

WORDS_MAX = 1000
"""The largest number of characters of a text about a refusal."""


class IssuedHostCertificate(WireModel):
    """A certificate of a host, and that of the authority that has signed it, both as PEM."""

    certificate: str
    authority: str


class HostRegistration(Protocol):
    """The vault, as a Provider with a vault credentials file calls it."""

    @deadline(ANSWER_S)
    async def register_host(self, *, host: str, request: str) -> IssuedHostCertificate:
        """Register a host of the site that the credentials are for, and return its certificate.

        A repeated call issues another certificate; both are valid.

        Args:
            host: the name of the host.
            request: a request for a certificate (PKCS #10) as PEM, signed by the key of the host.

        Raises:
            RigError: ``InvalidName``, ``BadRequest``.
        """
        ...


class HostCertificates(Protocol):
    """The vault, as a registered host calls it."""

    @deadline(ANSWER_S)
    async def renew_certificate(self, *, request: str) -> IssuedHostCertificate:
        """Return a new certificate for the host whose certificate the connection has; the old one stays valid.

        Args:
            request: a request for a certificate (PKCS #10) as PEM, signed by the new key of the host.

        Raises:
            RigError: ``BadRequest``.
        """
        ...

    @deadline(ANSWER_S)
    async def report_refusal(self, *, affected: str, reason: str) -> None:
        """Record as an event that the host, whose certificate the connection has, has refused a peer.

        Args:
            affected: the peer in words, at most ``WORDS_MAX`` characters.
            reason: the reason in words, at most ``WORDS_MAX`` characters.

        Raises:
            RigError: ``BadRequest`` for a text that is longer.
        """
        ...


class HostIdentityControl(Protocol):
    """The host, as the vault and the command line of its own machine call it."""

    @deadline(ASKING_S)
    async def rotate_certificate(self) -> str:
        """Get a new certificate from the vault, and use it for later connections; return its serial number.

        Raises:
            RigError: ``HostNotRegistered``; the errors of the call to the vault.
        """
        ...


class HostSetup(Protocol):
    """The host, as the command line of its own machine calls it."""

    @deadline(ASKING_S)
    async def register(self, *, credentials: str) -> str:
        """Register this host with the vault by the contents of a vault credentials file; return the name of the host.

        Raises:
            RigError: ``BadCredentialsFile``; ``PeerRefused`` if the file is of another vault, expired or revoked.
        """
        ...
