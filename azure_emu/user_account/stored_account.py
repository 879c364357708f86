"""The file with the storage account of a user, in the folder of the rig's keys: mode 0600, replaced as a whole.

Format: docs/reference/formats/user-account.md.

Fault contract: the file is always one complete version, so a kill leaves a secret that was checked.  A damaged file is an
error that names the file, and nothing of it is used.
"""

from __future__ import annotations

import json
import os
import secrets
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, ValidationError

from siterig.azure_emu.user_account.secret import (
    ACCOUNT_PATTERN,
    CONTAINER_PATTERN,
    TEXT_CHARACTERS_MAX,
    AccountSecret,
    SecretKind,
    parse_secret,
)
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.wire_model import WireModel
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.checked_document import CheckedDocument
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.small_file import bounded

FILE_NAME = "user-account.json"
"""The name of the file, in the folder of the keys."""
DEFAULT_CONTAINER = "siterig"
"""The container of rigs whose users name none."""
AUTHORITY_BYTES_MAX = 1 << 18
_DOCUMENT = CheckedDocument(2, body_key="account")
_FORMAT_1 = 1
"""The format without a checksum: the keys of the account beside ``format``."""
_FILE_BYTES_MAX = 1 << 20
_PREFIX = r"^rig-[0-9a-f]{16}/$"


@dataclass(frozen=True, slots=True)
class UserAccount:
    """A storage account of a user, and the place in it that one rig has.

    Attributes:
        secret: the account and its secret, with the container.
        prefix: the names of all blobs of the rig begin with it; no other blob is read, written or deleted.
        authority: certificates of the authorities that may have signed the account's, as PEM; empty for those of the system.
    """

    secret: AccountSecret
    prefix: str
    authority: str = ""

    @property
    def where(self) -> str:
        """The place of the rig's blobs, for messages."""
        return f"container {self.secret.container!r} of the storage account {self.secret.account}"

    def tls(self) -> ssl.SSLContext | None:
        """Return the settings of TLS for a client of the account; None for plain HTTP on loopback."""
        if not self.secret.is_https:
            return None
        context = ssl.create_default_context(cadata=self.authority or None)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


class _Stored(WireModel):
    """The contents of the file."""

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: SecretKind
    account: Annotated[str, Field(pattern=f"^{ACCOUNT_PATTERN.pattern}$")]
    endpoint: Annotated[str, Field(max_length=1024)]
    container: Annotated[str, Field(max_length=63)]
    prefix: Annotated[str, Field(pattern=_PREFIX)]
    secret: Annotated[str, Field(max_length=TEXT_CHARACTERS_MAX, repr=False)]
    authority: Annotated[str, Field(max_length=AUTHORITY_BYTES_MAX)]


def new_place(secret: AccountSecret, authority: str = "") -> UserAccount:
    """Return the account with a place of its own for a new rig."""
    named = secret if secret.container else replace(secret, container=DEFAULT_CONTAINER)
    return UserAccount(named, f"rig-{secrets.token_hex(8)}/", authority)


def is_stored(keys_folder: Path) -> bool:
    """Return True if a rig has a storage account of a user."""
    return (keys_folder / FILE_NAME).exists()


def stamp_of(keys_folder: Path) -> tuple[int, int, int] | None:
    """Return device, inode and time of change of the file, which differ for each version; None without a file."""
    try:
        found = (keys_folder / FILE_NAME).stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def store(keys_folder: Path, account: UserAccount) -> None:
    """Replace the file durably."""
    found = account.secret
    stored = _Stored(
        kind=found.kind,
        account=found.account,
        endpoint=found.endpoint,
        container=found.container,
        prefix=account.prefix,
        secret=found.secret,
        authority=account.authority,
    )
    _DOCUMENT.save(keys_folder / FILE_NAME, stored.model_dump())


def load(keys_folder: Path) -> UserAccount:
    """Return the account.

    Raises:
        RigError: ``BadAccountSecret`` if the file is damaged; the message does not quote it.
    """
    path = keys_folder / FILE_NAME
    try:
        with os.fdopen(safe_files.open_file(path, os.O_RDONLY), "rb") as file:
            return parse_stored(bounded(file, _FILE_BYTES_MAX))
    except OSError as error:
        raise RigError(Code.BadAccountSecret, f"{path} cannot be read: {reason(error, path)}") from error
    except ValueError as error:
        raise RigError(
            Code.BadAccountSecret, f"{path} is damaged: {error}; restore it, or run siterig account set"
        ) from None


def parse_stored(data: bytes) -> UserAccount:
    """Return the account in the bytes of the file.

    Raises:
        ValueError: the text names the key that is wrong, without its value.
    """
    try:
        stored = _Stored.model_validate(_body(data), strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = ".".join(map(repr, first["loc"]))[:80] or "the document"  # an unknown key can have any length
        raise ValueError(f"{place}: {first['type']}; allowed: docs/reference/formats/user-account.md") from None
    if not CONTAINER_PATTERN.fullmatch(stored.container):
        raise ValueError("container: no name of a container")
    found = AccountSecret(stored.kind, stored.account, stored.endpoint, stored.container, stored.secret)
    text = found.connection_string if found.kind != "credential" else found.endpoint
    try:
        again = parse_secret(text, found.container)
    except RigError as error:
        raise ValueError(error.message) from None
    if (again.kind, again.account, again.endpoint, again.secret) != (
        found.kind,
        found.account,
        found.endpoint,
        found.secret,
    ):
        raise ValueError("kind, account, endpoint and secret do not fit together")
    return UserAccount(found, stored.prefix, stored.authority)


def _body(data: bytes) -> object:
    """Return the description of the account in a file of format 1 or 2.

    Raises:
        ValueError: the file is damaged, or has another format.
    """
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("it is not JSON") from None
    version = fields.get("format") if isinstance(fields, dict) else None
    if type(version) is not int or version not in (_FORMAT_1, _DOCUMENT.newest_format):
        raise ValueError(f"format: {version!r:.50}; allowed: {_FORMAT_1} and {_DOCUMENT.newest_format}")
    if version == _FORMAT_1:
        del fields["format"]
        return fields
    return _DOCUMENT.decode(data)[1]
