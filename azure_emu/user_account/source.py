"""The secret of a storage account as a user gives it: from a file of mode 0600, or from an environment variable.

It is never an argument of a command, because every user of the machine can read the arguments of all processes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from siterig.azure_emu.user_account.secret import TEXT_CHARACTERS_MAX, bad
from siterig.azure_emu.user_account.stored_account import AUTHORITY_BYTES_MAX
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files import safe_files
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.files.ownership import user_text

ENVIRONMENT = "env:"
ALLOWED = "a file of mode 0600 that is yours, or env:NAME with the name of an environment variable"
_BLOCK = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")


def read_source(source: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return the text that a user has put into a file, or into an environment variable.

    Args:
        source: the path of the file, or ``env:NAME``.
        environment: the variables of the process.

    Raises:
        RigError: ``BadAccountSecret`` names the file or the variable, never its contents.
    """
    if source.startswith(ENVIRONMENT):
        name = source.removeprefix(ENVIRONMENT)
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise bad(
                "is to be in an environment variable without a valid name; allowed: env:NAME, such as env:SITERIG_ACCOUNT"
            )
        if not environment.get(name):
            raise bad(f"is to be in the environment variable {name}, which is not set or empty")
        return environment[name]
    if looks_like_secret(source):
        raise bad(f"was given as an argument, which other users can read: change it, and give {ALLOWED}")
    return _read_private(Path(source).expanduser())


def looks_like_secret(source: str) -> bool:
    """Return True for an argument that is no file but a secret, which must not be quoted."""
    return bool(re.search(r"AccountKey=|SharedAccessSignature=|://", source, re.IGNORECASE))


def _read_private(path: Path) -> str:
    """Return the text of a file that only this user can read."""
    try:
        fd = safe_files.open_named(path, os.O_RDONLY | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise bad(f"is to be in {path}, which is no regular file; allowed: {ALLOWED}")
            if found.st_uid != os.geteuid():
                raise bad(f"is to be in {path}, which belongs to {user_text(found.st_uid)}; allowed: {ALLOWED}")
            if (mode := stat.S_IMODE(found.st_mode)) & 0o177:
                raise bad(f"is in {path} of mode {mode:04o}, which others may read: run chmod 600 {path}")
            data = file.read(TEXT_CHARACTERS_MAX + 3)
    except OSError as error:
        raise bad(f"cannot be read from {path}: {reason(error, path)}; allowed: {ALLOWED}") from error
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise bad(f"in {path} has a character outside ASCII") from None


def read_authority(path: Path) -> str:
    """Return the certificates in a file, as PEM.

    Raises:
        RigError: ``BadCertificate`` if it has none.
    """
    try:
        with os.fdopen(safe_files.open_named(path.expanduser(), os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            data = file.read(AUTHORITY_BYTES_MAX + 1)
    except OSError as error:
        raise RigError(Code.BadCertificate, f"--account-authority {path}: cannot be read: {reason(error, path)}") from error
    blocks = _BLOCK.findall(data.decode("latin-1"))
    if not blocks or len(data) > AUTHORITY_BYTES_MAX:
        allowed = f"certificates as PEM, at most {AUTHORITY_BYTES_MAX} bytes"
        raise RigError(
            Code.BadCertificate, f"--account-authority {path}: has no certificate, or is too long; allowed: {allowed}"
        )
    return "\n".join(blocks) + "\n"
