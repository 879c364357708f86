"""Private keys, requests for certificates, and reading of certificates (X.509, P-256).

A private key never leaves the process that has made it, except into the file of its identity: the authority gets a request
(PKCS #10) and answers with a certificate.
"""

from __future__ import annotations

import ssl
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.trust.peer import Peer

REQUEST_BYTES_MAX = 1 << 14
"""A request of this program has about 400 bytes."""


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new private key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_text(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a private key as PEM (PKCS #8), without a password."""
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode("ascii")


def new_request(key: ec.EllipticCurvePrivateKey) -> str:
    """Return a request for a certificate of this key, as PEM.  The authority chooses the holder and the times."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "siterig")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode("ascii")


def requested_key(request_pem: str) -> ec.EllipticCurvePublicKey:
    """Return the public key of a request, whose sender has the private key.

    Raises:
        RigError: ``BadRequest`` for something else.
    """
    if len(request_pem) > REQUEST_BYTES_MAX:
        raise _bad_request(f"it has {len(request_pem)} characters; allowed: {REQUEST_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(request_pem.encode("ascii"))
        key = request.public_key()
        is_signed = request.is_signature_valid
    except (ValueError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise _bad_request("it is no request as PEM") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad_request("its key is of another kind; allowed: ECDSA on the curve P-256")
    if not is_signed:
        raise _bad_request("it is not signed by its own key")
    return key


def _bad_request(why: str) -> RigError:
    return RigError(Code.BadRequest, f"the request for a certificate cannot be answered: {why}")


def holder_of(certificate_pem: str) -> Peer | None:
    """Return the holder of a certificate; None if it names none.

    Raises:
        RigError: ``BadCertificate`` if it is no certificate.
    """
    try:
        found = x509.load_pem_x509_certificate(certificate_pem.encode("ascii"))
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        described: dict[str, Any] = {
            "subjectAltName": [("DNS", name) for name in names.get_values_for_type(x509.DNSName)],
            "notBefore": _ssl_time(found.not_valid_before_utc),
            "notAfter": _ssl_time(found.not_valid_after_utc),
            "serialNumber": f"{found.serial_number:x}",
        }
    except x509.ExtensionNotFound:
        return None
    except (ValueError, UnsupportedAlgorithm) as error:
        raise RigError(Code.BadCertificate, f"a certificate is damaged: {error}") from error
    return Peer.of(described)


def belongs_to(certificate_pem: str, key_pem: str) -> bool:
    """Return True if a certificate is of a private key."""
    try:
        key = serialization.load_pem_private_key(key_pem.encode("ascii"), None)
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode("ascii"))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return isinstance(key, ec.EllipticCurvePrivateKey) and key.public_key() == certificate.public_key()


def _ssl_time(moment: datetime) -> str:
    """Return a time as the ssl module writes it, which :func:`ssl.cert_time_to_seconds` reads."""
    text = moment.strftime("%b %d %H:%M:%S %Y GMT")
    ssl.cert_time_to_seconds(text)
    return text
