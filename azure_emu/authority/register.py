"""The register of the certificates that a vault's authority has issued: the role of each, until when, and which are revoked.

A certificate that is not in the register is refused, also if the authority has signed it.

Fault contract: the file is replaced atomically, and an entry is durable before its certificate leaves the process.  A kill
leaves at most an entry whose certificate nobody has.  The caller sees to it that one process at a time writes: the start of
the rig while it holds the lock, and then the vault.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from siterig.blockfs.core.clock import Clock, rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.small_file import SMALL_FILE_BYTES_MAX, read_small_file
from siterig.blockfs.trust.identity import store
from siterig.blockfs.trust.peer import NAME_PATTERN, Peer, PeerRole

FORMAT = 1
ADDED_BYTES_MAX = SMALL_FILE_BYTES_MAX // 2
"""The longest file after a new entry; the rest is for the times and reasons of revocations."""
_REASON_CHARACTERS_MAX = 200
_KEYS = {"format", "sha256", "certificates"}
_KEPT_NS = 365 * 86_400 * 1_000_000_000
"""An entry is kept for so long after its certificate has expired."""
_WORDS = {
    "vault": "the vault",
    "storage": "the storage account",
    "host": "a host",
    "credentials": "a vault credentials file",
}


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """An entry of the register.  Times are nanoseconds since the epoch, by the clock of the rig."""

    serial: str
    role: PeerRole
    name: str
    issued_ns: int
    not_before_ns: int
    not_after_ns: int
    revoked_ns: int | None = None
    reason: str | None = None

    @property
    def peer(self) -> Peer:
        """The holder."""
        return Peer(self.role, self.name, self.serial, self.not_before_ns, self.not_after_ns)

    def state(self, clock: Clock) -> str:
        """Return ``revoked``, ``expired``, ``not yet valid`` or ``valid``."""
        if self.revoked_ns is not None:
            return "revoked"
        now_ns = clock.wall_ns()
        if now_ns < self.not_before_ns:
            return "not yet valid"
        return "expired" if now_ns > self.not_after_ns else "valid"


class CertificateRegister:
    """The register in one file, which is read once."""

    def __init__(self, path: Path) -> None:
        """Read the file; without a file the register is empty.

        Raises:
            RigError: ``AuthorityUnusable`` if the file is damaged, or of another version.
        """
        self._path = path
        self.entries: Sequence[IssuedCertificate] = ()
        try:
            self.entries = read_register(read_small_file(path))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise RigError(Code.AuthorityUnusable, f"{path} is no register of certificates: {error}") from error

    def add(self, entry: IssuedCertificate) -> None:
        """Store a new entry, durably; entries that nobody needs any more are removed.

        A full register loses the entries of certificates that have expired, whatever their age.

        Raises:
            RigError: ``RegisterFull`` if too many certificates have not expired.
        """
        oldest_ns = entry.issued_ns - _KEPT_NS
        kept = [known for known in self.entries if known.not_after_ns > oldest_ns]
        if len(register_text([*kept, entry])) > ADDED_BYTES_MAX:
            kept = [known for known in kept if known.not_after_ns > entry.issued_ns]
        if len(register_text([*kept, entry])) > ADDED_BYTES_MAX:
            text = f"{self._path} has {len(kept)} certificates that have not expired, and no space for another"
            raise RigError(Code.RegisterFull, text)
        self._store([*kept, entry])

    def revoke(self, serials: Sequence[str], reason: str, clock: Clock) -> None:
        """Mark certificates as revoked, durably; those that are revoked already stay as they are.

        Raises:
            RigError: ``BadRequest`` if the reason is too long; ``RegisterFull`` if a shorter one is needed.
        """
        if len(reason) > _REASON_CHARACTERS_MAX:
            raise RigError(Code.BadRequest, f"reason: {len(reason)} characters; allowed: at most {_REASON_CHARACTERS_MAX}")
        now_ns = clock.wall_ns()
        changed = [
            replace(entry, revoked_ns=now_ns, reason=reason)
            if entry.serial in serials and entry.revoked_ns is None
            else entry
            for entry in self.entries
        ]
        if len(register_text(changed)) > SMALL_FILE_BYTES_MAX:
            raise RigError(Code.RegisterFull, f"{self._path} has no space for this reason: give a shorter one")
        self._store(changed)

    def newest(self, role: PeerRole, name: str | None = None) -> IssuedCertificate | None:
        """Return the certificate that was issued last to a holder."""
        found = [entry for entry in self.entries if entry.role == role and name in (None, entry.name)]
        return found[-1] if found else None

    def problem(self, peer: Peer | None, roles: Sequence[PeerRole], clock: Clock) -> str | None:
        """Return the reason for which a peer is refused, in words; None if it is accepted.

        Args:
            peer: the holder of the certificate that the peer has shown.
            roles: the roles that are accepted.
            clock: tells whether the certificate is valid.
        """
        if peer is None:
            return "its certificate names no holder"
        if peer.role not in roles:
            return f"{peer.words} may not be used here; allowed: the certificate of {' or '.join(_WORDS[r] for r in roles)}"
        entry = next((entry for entry in self.entries if entry.serial == peer.serial), None)
        if entry is None or entry.peer != peer:
            return f"{peer.words} is not in the register of this vault"
        if entry.revoked_ns is not None:
            return f"{peer.words} was revoked at {rfc3339(entry.revoked_ns)}: {entry.reason}"
        return peer.time_problem(clock)

    def _store(self, entries: Sequence[IssuedCertificate]) -> None:
        store(self._path, register_text(entries))
        self.entries = tuple(entries)


def register_text(entries: Sequence[IssuedCertificate]) -> bytes:
    """Return the bytes of a register."""
    certificates = [asdict(entry) for entry in entries]
    return json.dumps({"format": FORMAT, "sha256": _digest(certificates), "certificates": certificates}).encode() + b"\n"


def read_register(data: bytes) -> tuple[IssuedCertificate, ...]:
    """Return the entries of a register.

    Raises:
        ValueError: the bytes are no register of this version; the text has the reason.
    """
    if len(data) > SMALL_FILE_BYTES_MAX:
        raise ValueError(f"it has more than {SMALL_FILE_BYTES_MAX} bytes")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    if not isinstance(found, dict) or not (type(found.get("format")) is int and found["format"] == FORMAT):
        shown = found.get("format") if isinstance(found, dict) else None
        raise ValueError(f"format: {shown!r:.50}; allowed: {FORMAT}")
    certificates = found.get("certificates")
    if set(found) != _KEYS or not isinstance(certificates, list) or found["sha256"] != _digest(certificates):
        raise ValueError("its checksum is wrong, or it has other keys")
    return tuple(_entry(number, each) for number, each in enumerate(certificates))


def _digest(certificates: object) -> str:
    return hashlib.sha256(json.dumps(certificates, sort_keys=True).encode()).hexdigest()


def _entry(number: int, fields: Any) -> IssuedCertificate:
    if not isinstance(fields, dict) or set(fields) != set(IssuedCertificate.__slots__):
        raise ValueError(f"certificate {number}: its fields must be {', '.join(IssuedCertificate.__slots__)}")
    times = [fields[key] for key in ("issued_ns", "not_before_ns", "not_after_ns")]
    is_right = (
        _is_hex(fields["serial"])
        and fields["role"] in get_args(PeerRole)
        and isinstance(fields["name"], str)
        and NAME_PATTERN.fullmatch(fields["name"])
        and all(_is_time(time) for time in times)
        and (fields["revoked_ns"] is None or _is_time(fields["revoked_ns"]))
        and (fields["reason"] is None or _is_reason(fields["reason"]))
    )
    if not is_right:
        raise ValueError(f"certificate {number}: a value has the wrong kind")
    return IssuedCertificate(**fields)


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_reason(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _REASON_CHARACTERS_MAX


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 40 and all(digit in "0123456789abcdef" for digit in value)
