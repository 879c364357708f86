"""The vault's key-encryption keys: versions in one file, which only this user can read.

Fault contract: the file is replaced atomically and durably.  A version is durable before it encrypts anything, and is never
removed: a copy of the database that is restored can need it.  Layout: docs/reference/formats/vault-keys.md.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import ConfigDict, Field, ValidationError

from siterig.blockfs.core.clock import Clock, rfc3339
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import Whole, WireModel
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.checked_document import (
    CheckedDocument,
    CorruptDocumentError,
    UnknownFormatError,
    validation_problem,
)
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.safe_files import FILE_MODE
from siterig.blockfs.files.small_file import FileTooLongError, bounded
from siterig.blockfs.transfer.envelope import KEY_BYTES, NONCE_BYTES, DataKey

_DOCUMENT = CheckedDocument(1, body_key="keys")

KeyState = Literal["Enabled", "Revoked"]
VERSIONS_MAX = 1000
"""The most versions that the file has; none is ever removed."""


class KeyVersion(WireModel):
    """One version of the vault's key; ``repr`` and errors do not show the secret."""

    model_config = ConfigDict(hide_input_in_errors=True)

    version: int = Field(ge=1, lt=1 << 31)
    secret_hex: str = Field(pattern=r"^[0-9a-f]{64}$", repr=False)
    state: KeyState
    created_ns: Whole
    changed_ns: Whole


class _Body(WireModel):
    model_config = ConfigDict(hide_input_in_errors=True)

    versions: list[KeyVersion] = Field(min_length=1, max_length=VERSIONS_MAX)


class KeyFile:
    """The key-encryption keys of a vault, oldest first; the newest encrypts new data keys."""

    def __init__(self, path: Path, clock: Clock, versions: list[KeyVersion]) -> None:
        self._path = path
        self._clock = clock
        self._versions = versions

    @classmethod
    def create(cls, path: Path, clock: Clock) -> KeyFile:
        """Draw version 1 and make it durable."""
        file = cls(path, clock, [])
        file.add()
        return file

    @classmethod
    def load(cls, path: Path, clock: Clock) -> KeyFile:
        """Read the file.

        Raises:
            RigError: ``KeysUnreadable``; ``StateVersion`` for another format.
            FileNotFoundError: there is no file.
        """
        try:
            with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
                mode = os.fstat(file.fileno()).st_mode & 0o777
                if mode & ~FILE_MODE:
                    raise _unreadable(path, f"other users can open it (mode {mode:04o}): it must have mode {FILE_MODE:04o}")
                _, body = _DOCUMENT.decode(bounded(file))
            versions = _Body.model_validate(body, strict=True).versions
        except FileNotFoundError:
            raise
        except UnknownFormatError as exc:
            raise RigError(Code.StateVersion, f"{path}: {exc}") from None
        except ValidationError as exc:
            raise _unreadable(path, validation_problem(exc)) from None
        except (CorruptDocumentError, FileTooLongError) as exc:
            raise _unreadable(path, str(exc)) from None
        except OSError as exc:
            raise _unreadable(path, reason(exc, path)) from exc
        if [each.version for each in versions] != list(range(1, len(versions) + 1)):
            raise _unreadable(path, "the numbers of its versions are not 1, 2, 3, ...")
        return cls(path, clock, versions)

    @property
    def versions(self) -> list[KeyVersion]:
        """All versions, oldest first."""
        return list(self._versions)

    @property
    def current(self) -> KeyVersion:
        """The newest version."""
        return self._versions[-1]

    def add(self) -> int:
        """Draw a new version, durably, and return its number.

        Raises:
            RigError: ``KeyVersionsFull``; ``KeysUnreadable`` if the file cannot be written.
        """
        if len(self._versions) >= VERSIONS_MAX:
            text = f"the vault's key has {len(self._versions)} versions, and {self._path} can have {VERSIONS_MAX}"
            raise RigError(Code.KeyVersionsFull, text)
        now_ns = self._clock.wall_ns()
        new = KeyVersion(
            version=len(self._versions) + 1,
            secret_hex=secrets.token_hex(KEY_BYTES),
            state="Enabled",
            created_ns=now_ns,
            changed_ns=now_ns,
        )
        self._save([*self._versions, new])
        return new.version

    def set_state(self, version: int, state: KeyState) -> bool:
        """Revoke or restore a version, durably; return False if it was in that state already.

        Raises:
            RigError: ``KeyNotFound``.
        """
        known = self._find(version)
        if known is None:
            raise RigError(
                Code.KeyNotFound, f"the vault's key has no version {version}: its versions are 1 to {len(self._versions)}"
            )
        if known.state == state:
            return False
        changed = known.model_copy(update={"state": state, "changed_ns": self._clock.wall_ns()})
        self._save([changed if each.version == version else each for each in self._versions])
        return True

    def wrap(self, key: DataKey, use: str) -> tuple[int, bytes]:
        """Encrypt a data key with the newest version.

        Args:
            key: the data key.
            use: names the data that the key is for; it is authenticated.
        Returns:
            The version, and nonce, ciphertext and tag.
        Raises:
            RigError: ``KeyRevoked``.
        """
        version = self._enabled(self.current.version)
        nonce = secrets.token_bytes(NONCE_BYTES)
        sealed = AESGCM(bytes.fromhex(version.secret_hex)).encrypt(nonce, key.secret, _associated(key, use, version.version))
        return version.version, nonce + sealed

    def unwrap(self, key: DataKey, use: str, version: int) -> DataKey:
        """Decrypt a data key: ``key.secret`` is what :meth:`wrap` returned.

        Raises:
            RigError: ``KeyRevoked``, ``KeyMissing``.
        """
        found = self._enabled(version)
        nonce, sealed = key.secret[:NONCE_BYTES], key.secret[NONCE_BYTES:]
        try:
            secret = AESGCM(bytes.fromhex(found.secret_hex)).decrypt(nonce, sealed, _associated(key, use, version))
        except (InvalidTag, ValueError):
            raise RigError(
                Code.KeyMissing,
                f"data key {key.key_id} of {use} does not open with version {version} of the vault's key in {self._path}: "
                "restore the file and the vault's database from the same time",
            ) from None
        return DataKey(key.key_id, secret)

    def is_revoked(self, version: int) -> bool:
        """Return True if a version is known and revoked."""
        known = self._find(version)
        return known is not None and known.state == "Revoked"

    def _find(self, version: int) -> KeyVersion | None:
        return self._versions[version - 1] if 1 <= version <= len(self._versions) else None

    def _enabled(self, version: int) -> KeyVersion:
        found = self._find(version)
        if found is None:
            raise RigError(
                Code.KeyMissing,
                f"version {version} of the vault's key is needed, and {self._path} has versions 1 to "
                f"{len(self._versions)}: restore the file",
            )
        if found.state == "Revoked":
            raise RigError(
                Code.KeyRevoked,
                f"version {version} of the vault's key was revoked at {rfc3339(found.changed_ns)}: "
                f"siterig key restore {version} enables it again",
            )
        return found

    def _save(self, versions: list[KeyVersion]) -> None:
        try:
            _DOCUMENT.save(self._path, {"versions": [each.model_dump() for each in versions]})
        except OSError as exc:
            raise _unreadable(self._path, f"it cannot be written: {reason(exc, self._path)}") from exc
        self._versions = versions


def _associated(key: DataKey, use: str, version: int) -> bytes:
    return f"{use} {key.key_id} {version}".encode()


def _unreadable(path: Path, why: str) -> RigError:
    return RigError(Code.KeysUnreadable, f"the file of the vault's keys {path}: {why}")
