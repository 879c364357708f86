"""The identity of a process on links with TLS: a file with its private key, its certificate and that of the authority.

The file is replaced atomically when the certificate is rotated.  Every connection looks whether it is a new one, so all
processes that use it follow, without a message and without a restart.  Connections that are open keep the certificate that
they began with.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.durable_io import write_atomically
from siterig.blockfs.files.os_errors import FULL, reason
from siterig.blockfs.files.small_file import bounded
from siterig.blockfs.trust.peer import PEER, CertificateRefusedError, Peer, PeerRole, refusal_of

IDENTITY_BYTES_MAX = 1 << 16
_WITHOUT_TIME = 0x200000
"""``X509_V_FLAG_NO_CHECK_TIME`` of OpenSSL: the times are checked by the clock of the rig."""
_KINDS = (b"PRIVATE KEY", b"CERTIFICATE", b"CERTIFICATE")
_BLOCK = re.compile(rb"(?m)^-----BEGIN ([A-Z ]+)-----\n(?:[A-Za-z0-9+/=]*\n)+-----END \1-----\n")

Stamp = tuple[int, int, int]
"""Device, inode and time of change of a file."""


class Identity:
    """The file of an identity, which may be replaced at any time."""

    def __init__(self, path: Path) -> None:
        """Name the file; it need not exist yet."""
        self.path = path

    @property
    def stamp(self) -> Stamp | None:
        """Tells one version of the file from another; None without a file."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino, found.st_mtime_ns

    def load_into(self, context: ssl.SSLContext) -> None:
        """Let the later connections of a context use the key and the certificate of the file.

        Raises:
            RigError: ``BadCertificate`` if the file has something else, or cannot be read.
        """
        try:
            with os.fdopen(safe_files.open_file(self.path, os.O_RDONLY), "rb") as file:
                check_identity(bounded(file, IDENTITY_BYTES_MAX))
                # It opens the name twice, for the certificate and the key.
                context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password=_no_password)
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise _bad(self.path, error) from error

    def authority(self) -> str:
        """Return the certificate of the authority as PEM.

        Raises:
            RigError: ``BadCertificate``.
        """
        return self.parts()[2]

    def parts(self) -> tuple[str, str, str]:
        """Return the private key, the own certificate and that of the authority, each as PEM.

        Raises:
            RigError: ``BadCertificate``.
        """
        try:
            with os.fdopen(safe_files.open_file(self.path, os.O_RDONLY), "rb") as file:
                data = bounded(file, IDENTITY_BYTES_MAX)
        except (OSError, ValueError) as error:
            raise _bad(self.path, error) from error
        try:
            return check_identity(data)
        except ValueError as error:
            raise _bad(self.path, error) from None


def check_identity(data: bytes) -> tuple[str, str, str]:
    """Return the private key, the own certificate and that of the authority in an identity, each as PEM.

    Raises:
        ValueError: it has other PEM blocks; the text names them.
    """
    blocks = [(found[1], found[0].decode("ascii")) for found in _BLOCK.finditer(data)]
    kinds = tuple(kind for kind, _ in blocks)
    if kinds != _KINDS:
        allowed = ", ".join(kind.decode() for kind in _KINDS)
        shown = b", ".join(kind[:30] for kind in kinds[:4]).decode() + (", ..." if len(kinds) > 4 else "")
        raise ValueError(f"it has the PEM blocks {shown or '(none)'}; allowed: {allowed}")
    key, own, authority = (text for _, text in blocks)
    return key, own, authority


def identity_text(key: str, certificate: str, authority: str) -> bytes:
    """Return the bytes of an identity file; all arguments are PEM."""
    return f"{key}{certificate}{authority}".encode("ascii")


def store(path: Path, data: bytes) -> None:
    """Replace a file of this package durably.

    Raises:
        RigError: ``DiskFull`` or ``FolderUnusable`` (both recoverable): the old file stays.
    """
    try:
        write_atomically(path, data)
    except OSError as error:
        code = Code.DiskFull if error.errno in FULL else Code.FolderUnusable
        raise RigError(code, f"cannot write {path}: {reason(error, path)}", recoverable=True) from error


def _bad(path: Path, why: object) -> RigError:
    text = why.strerror if isinstance(why, OSError) and why.strerror else why
    return RigError(Code.BadCertificate, f"{path} is no usable certificate with its key: {text}")


def _no_password() -> str:
    """Refuse a private key with a password, for which OpenSSL would ask on the terminal."""
    raise ValueError("its private key has a password")


class TlsContext(ssl.SSLContext):
    """The settings of TLS 1.3 for one side of a link, and the checks after each handshake."""

    identity: Identity | None
    clock: Clock

    def __new__(cls, is_server: bool, *_arguments: Any, **_options: Any) -> TlsContext:
        """Create the context for one side."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER if is_server else ssl.PROTOCOL_TLS_CLIENT)

    def __init__(
        self,
        is_server: bool,
        *,
        authority: str,
        clock: Clock,
        identity: Identity | None = None,
        check: Callable[[Peer | None], None] | None = None,
        refused: Callable[[str], None] | None = None,
        demands_certificate: bool = True,
    ) -> None:
        """Make the settings.

        Args:
            is_server: the side.
            authority: the certificate of the authority that must have signed the certificate of the other side, as PEM.
            clock: tells whether certificates are valid.
            identity: the own certificate; a client of a server that asks for none has none.
            check: called after each handshake with the holder of the other certificate; it may raise
                ``CertificateRefusedError``.
            refused: called with the reason, in words, when a handshake fails.
            demands_certificate: the other side needs a certificate; a client always demands one.
        """
        self.clock, self.identity = clock, identity
        self.check, self.refused = check, refused
        self._loaded: Stamp | None = None
        self.is_server = is_server
        self.minimum_version = ssl.TLSVersion.TLSv1_3
        self.check_hostname = False  # `check` looks for the role and the name of the other side
        self.verify_mode = ssl.CERT_REQUIRED if demands_certificate or not is_server else ssl.CERT_NONE
        self.verify_flags = ssl.VerifyFlags(int(ssl.VERIFY_DEFAULT) | _WITHOUT_TIME)
        self.load_verify_locations(cadata=authority)
        if is_server:
            self.num_tickets = 0  # no session is resumed, so each connection shows its certificate
        self.refresh()

    def refresh(self) -> None:
        """Use the certificate that the file of the identity has now.

        Raises:
            RigError: ``BadCertificate``.
        """
        if self.identity is not None and self._loaded != (stamp := self.identity.stamp):
            self.identity.load_into(self)
            self._loaded = stamp

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        """Begin a connection of trio, with the newest certificate."""
        self.refresh()
        return super().wrap_bio(*arguments, **options)

    def wrap_socket(self, *arguments: Any, **options: Any) -> ssl.SSLSocket:
        """Begin a connection of a thread, with the newest certificate."""
        self.refresh()
        return super().wrap_socket(*arguments, **options)

    def examine(self, certificate: Any) -> None:
        """Examine the certificate of the other side after a handshake.

        Args:
            certificate: its description by the ssl module; empty without one.

        Raises:
            CertificateRefusedError: the check refuses the holder, or a server's certificate is not valid now.
        """
        peer = Peer.of(certificate)
        if self.is_server:
            PEER.set(peer)
        elif peer is not None and (problem := peer.time_problem(self.clock)) is not None:
            raise CertificateRefusedError(problem)
        if self.check is not None:
            self.check(peer)

    def note_failure(self, error: ssl.SSLError) -> None:
        """Report a handshake that failed, unless the other side has only closed the connection."""
        words = refusal_of(error)
        if self.refused is not None and words is not None:
            self.refused(words)


class _CheckedObject(ssl.SSLObject):
    """A connection of trio, whose handshake ends with the checks of the context."""

    _failure: ssl.SSLError | None = None
    _calls_left = 2

    def do_handshake(self) -> None:
        context = self.context
        assert isinstance(context, TlsContext)  # noqa: S101 (it makes no other)
        if self._failure is None:
            try:
                super().do_handshake()
                context.examine(self.getpeercert())
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                context.note_failure(error)
                self._failure = error
            else:
                return
        # OpenSSL has written an alert with the reason, which trio sends only if more is to be read.  The second time trio
        # reads the bytes that the other side has sent: if they were unread, the close would be a reset, without the alert.
        if context.is_server and self._calls_left:
            self._calls_left -= 1
            raise ssl.SSLWantReadError
        raise self._failure


class _CheckedSocket(ssl.SSLSocket):
    """The same for a connection of a thread."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        context = self.context
        assert isinstance(context, TlsContext)  # noqa: S101 (it makes no other)
        context.examine(self.getpeercert())


TlsContext.sslobject_class = _CheckedObject
TlsContext.sslsocket_class = _CheckedSocket


def only(role: PeerRole, name: str | None = None) -> Callable[[Peer | None], None]:
    """Return a check that accepts one role only, and one name if it is given."""
    wanted = Peer(role, name or "", "", 0, 0).holder if role != "host" or name else "a host"

    def check(peer: Peer | None) -> None:
        if peer is None:
            raise CertificateRefusedError(f"the other side shows a certificate without a holder; expected: {wanted}")
        if peer.role != role or name not in (None, peer.name):
            raise CertificateRefusedError(f"the other side shows {peer.words}; expected: {wanted}")

    return check
