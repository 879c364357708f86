"""The peers of a link with TLS: who a certificate is for, and whether it is valid by the clock of the rig.

A certificate names its holder by one DNS name, ``NAME.ROLE.siterig.internal``.  OpenSSL checks the chain; the holder and
the times are checked here, because OpenSSL knows only the time of the host (decision 0034).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from siterig.blockfs.core.clock import Clock, rfc3339
from siterig.blockfs.core.errors import Code, RigError

PeerRole = Literal["vault", "storage", "host", "credentials"]
"""The roles of certificates: the vault, the storage account, a host of a site, and a vault credentials file of a site."""
DOMAIN = "siterig.internal"
NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
"""The name of a holder: one label of a DNS name."""
_SECOND_NS = 1_000_000_000
_ROTATED_AT = 0.25
"""A certificate is rotated when this part of its life is left."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The holder of a certificate.  Times are nanoseconds since the epoch; ``serial`` is in hexadecimal digits."""

    role: PeerRole
    name: str
    serial: str
    not_before_ns: int
    not_after_ns: int

    @classmethod
    def of(cls, certificate: Mapping[str, Any] | None) -> Peer | None:
        """Return the holder of a certificate as :meth:`ssl.SSLSocket.getpeercert` describes it; None if it names none."""
        for kind, text in (certificate or {}).get("subjectAltName", ()):
            name, _, rest = str(text).partition(".")
            role, _, domain = rest.partition(".")
            if kind == "DNS" and domain == DOMAIN and role in get_args(PeerRole) and NAME_PATTERN.fullmatch(name):
                found = cast("Mapping[str, str]", certificate)
                begin, end = (ssl.cert_time_to_seconds(found[key]) for key in ("notBefore", "notAfter"))
                serial = f"{int(found['serialNumber'], 16):x}"
                return cls(cast("PeerRole", role), name, serial, begin * _SECOND_NS, end * _SECOND_NS)
        return None

    @property
    def holder(self) -> str:
        """The holder in words."""
        return {
            "vault": "the vault",
            "storage": "the storage account",
            "host": f"the host {self.name}",
            "credentials": f"the vault credentials file of the site {self.name}",
        }[self.role]

    @property
    def words(self) -> str:
        """The certificate in words."""
        return f"the certificate of {self.holder} (serial {self.serial})"

    @property
    def rotation_ns(self) -> int:
        """The time, in nanoseconds since the epoch, from which the certificate is rotated."""
        return self.not_after_ns - int((self.not_after_ns - self.not_before_ns) * _ROTATED_AT)

    def needs_rotation(self, clock: Clock) -> bool:
        """Return True if the certificate is not valid now, or soon will not be."""
        return not self.not_before_ns <= clock.wall_ns() < self.rotation_ns

    def time_problem(self, clock: Clock) -> str | None:
        """Return the reason for which the certificate is not valid now, by this clock; None if it is valid."""
        now_ns = clock.wall_ns()
        if now_ns < self.not_before_ns:
            return f"{self.words} is not valid before {rfc3339(self.not_before_ns)}, and it is {rfc3339(now_ns)}"
        if now_ns > self.not_after_ns:
            return f"{self.words} expired at {rfc3339(self.not_after_ns)}, and it is {rfc3339(now_ns)}"
        return None


PEER: ContextVar[Peer | None] = ContextVar("PEER", default=None)
"""The caller of this connection, on a server with TLS."""


def peer_name(role: PeerRole, name: str) -> str:
    """Return the DNS name that stands for a holder in its certificate.

    Raises:
        RigError: ``InvalidName`` if the name cannot be part of it.
    """
    if not NAME_PATTERN.fullmatch(name):
        allowed = "1 to 63 lower-case letters, digits and hyphens, with no hyphen at either end"
        raise RigError(Code.InvalidName, f"{name!r} cannot name a {role}; allowed: {allowed}")
    return f"{name}.{role}.{DOMAIN}"


class CertificateRefusedError(ssl.SSLError):
    """A certificate was refused after a handshake that OpenSSL has accepted; the text has the reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(ssl.SSL_ERROR_SSL, reason)
        self.words = reason


_UNKNOWN = "is not of the authority of the vault"
_UNKNOWN_CODES = (18, 19, 20, 21)
"""The codes of OpenSSL for a chain that does not end with the authority."""
_REFUSED = "the other side refuses the certificate of this side"
_ALERTS = {
    "TLSV1_ALERT_UNKNOWN_CA": f"{_REFUSED}: it {_UNKNOWN}",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": f"{_REFUSED}: it is for servers only",
    "SSLV3_ALERT_BAD_CERTIFICATE": _REFUSED,
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": _REFUSED,
    "TLSV1_ALERT_DECRYPT_ERROR": f"{_REFUSED}: its signature is wrong",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "the other side demands a certificate, and this side has none",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the other side has shown no certificate",
    "TLSV1_ALERT_PROTOCOL_VERSION": "the other side speaks another version of TLS; allowed: TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "the other side speaks another version of TLS; allowed: TLS 1.3",
    "HTTP_REQUEST": "the other side speaks HTTP without TLS",
    "WRONG_VERSION_NUMBER": "the other side does not speak TLS",
}


def refusal_of(error: BaseException | None) -> str | None:
    """Return in words why a connection failed, if a certificate or TLS was the reason; None otherwise.

    Args:
        error: the error, also of a library; its causes are examined.
    """
    for each in _causes(error):
        if isinstance(each, CertificateRefusedError):
            return each.words
        if isinstance(each, ssl.SSLCertVerificationError):
            problem = _UNKNOWN if each.verify_code in _UNKNOWN_CODES else "is not accepted"
            return f"the certificate of the other side {problem} ({each.verify_message})"
        if isinstance(each, ssl.SSLError) and each.reason in _ALERTS:
            return _ALERTS[each.reason]
    return None


def is_own_refusal(error: BaseException | None) -> bool:
    """Return True if this side has refused the certificate of the other side; False if the other side has refused.

    Args:
        error: the error, also of a library; its causes are examined.
    """
    return any(isinstance(each, CertificateRefusedError | ssl.SSLCertVerificationError) for each in _causes(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that have caused it."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        inner = getattr(error, "inner_exception", None) or getattr(error, "reason", None)  # of azure.core, of urllib3
        error = error.__cause__ or (inner if isinstance(inner, BaseException) else None) or error.__context__
