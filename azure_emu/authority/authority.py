"""The authority of a vault: it signs the certificates of the vault, the storage account, the hosts and credentials files.

Fault contract: its private key is in one file of mode 0600 that only this program writes, and leaves the process only into
it.  A kill during the creation leaves no file, or the complete one.
"""

from __future__ import annotations

import os
import secrets
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from siterig.azure_emu.authority.register import CertificateRegister, IssuedCertificate
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.small_file import bounded
from siterig.blockfs.trust.identity import IDENTITY_BYTES_MAX, identity_text, store
from siterig.blockfs.trust.peer import PeerRole, peer_name
from siterig.blockfs.trust.signing_requests import key_text, new_key

AUTHORITY_VALID_FOR = timedelta(days=20 * 365)
VALID_FOR: dict[PeerRole, timedelta] = {
    "vault": timedelta(days=365),
    "storage": timedelta(days=365),
    "host": timedelta(days=365),
    "credentials": timedelta(days=5),
}
"""The time after which a certificate expires; a vault credentials file has five days, as in the service."""
BACKDATED = timedelta(days=1)
"""A certificate is valid from so long before it was made: the clock of another role may be behind."""
_SERIAL_BITS = 63


class Authority:
    """The authority of one vault: its key, and its register."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Read the authority, or create it in a folder that has none.

        Raises:
            RigError: ``AuthorityUnusable``.
        """
        self._path = folder / "authority.pem"
        self._clock = clock
        if not self._path.exists():
            if (folder / "register.json").exists():
                raise RigError(Code.AuthorityUnusable, f"{self._path} is missing, while {folder} has its register")
            safe_files.make_folder(folder, parents=True)
            _create(self._path, clock)
        self._key, self._certificate = _read(self._path)
        self.register = CertificateRegister(folder / "register.json")

    @property
    def certificate(self) -> str:
        """The certificate of the authority, as PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def issue(self, role: PeerRole, name: str, key: ec.EllipticCurvePublicKey) -> str:
        """Sign a certificate for a key, and return it as PEM; its entry in the register is durable then.

        Raises:
            RigError: ``InvalidName`` if the name cannot stand in a certificate.
        """
        dns_name = peer_name(role, name)
        now = self._clock.utc().replace(microsecond=0)
        begin, end = now - BACKDATED, now + VALID_FOR[role]
        serial = secrets.randbits(_SERIAL_BITS) + 1
        names: list[x509.GeneralName] = [x509.DNSName(dns_name)]
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH]
        if role == "storage":  # clients of the SDK, of siterig or not, look for the address that they connect to
            names += [x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))]
            uses = [ExtendedKeyUsageOID.SERVER_AUTH]
        elif role == "credentials":
            uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        certificate = (
            _builder(_name(f"siterig {role} {name}"), key, begin, end, serial)
            .issuer_name(self._certificate.subject)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        entry = IssuedCertificate(f"{serial:x}", role, name, _ns(now), _ns(begin), _ns(end))
        self.register.add(entry)
        return certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")

    def issue_identity(self, role: PeerRole, name: str) -> bytes:
        """Make a key and its certificate, and return the bytes of an identity file."""
        key = new_key()
        return identity_text(key_text(key), self.issue(role, name, key.public_key()), self.certificate)

    def replace_identity(self, path: Path, role: PeerRole, name: str) -> None:
        """Replace the identity file of a role of this side by a new key and certificate; the old one stays valid."""
        safe_files.make_folder(path.parent, parents=True)
        store(path, self.issue_identity(role, name))


def _create(path: Path, clock: Clock) -> None:
    key = new_key()
    now = clock.utc().replace(microsecond=0)
    name = _name(f"siterig vault authority {secrets.token_hex(4)}")
    serial = secrets.randbits(_SERIAL_BITS) + 1
    certificate = (
        _builder(name, key.public_key(), now - BACKDATED, now + AUTHORITY_VALID_FOR, serial)
        .issuer_name(name)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_CA_USAGE, critical=True)
        .sign(key, hashes.SHA256())
    )
    text = key_text(key) + certificate.public_bytes(serialization.Encoding.PEM).decode("ascii")
    store(path, text.encode("ascii"))


_CA_USAGE = x509.KeyUsage(
    digital_signature=True,
    key_cert_sign=True,
    crl_sign=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    encipher_only=False,
    decipher_only=False,
)


def _builder(
    name: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime, serial: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .public_key(key)
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _ns(moment: datetime) -> int:
    return int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * 1_000_000_000


def _read(path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
            data = bounded(file, IDENTITY_BYTES_MAX)
        key = serialization.load_pem_private_key(data, None)
        certificate = x509.load_pem_x509_certificate(data)
    except (OSError, ValueError, TypeError) as error:
        raise RigError(Code.AuthorityUnusable, f"{path} is no usable authority: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise RigError(Code.AuthorityUnusable, f"{path} is no usable authority: its certificate is not of its key")
    return key, certificate
