"""The folders in which siterig's npm packages may be: Azurite, and the chart libraries of the report.

A checkout has them in its own ``node_modules``.  ``siterig setup azurite`` installs the versions of ``package-lock.json``
into a folder of the user's data.  The name of that folder has a digest of the lock: after an upgrade of siterig, packages
of an older lock are not found, and a rig that still runs keeps them.
"""

from __future__ import annotations

import hashlib
import os
import pwd
from pathlib import Path

import siterig
from siterig.blockfs.core.code_root import CODE_ROOT

MANIFESTS = tuple(Path(siterig.__file__).with_name(name) for name in ("package.json", "package-lock.json"))
"""The files from which npm installs the packages; an installation of siterig contains them."""
_DIGEST_CHARACTERS = 12


def data_folder(home: Path | None = None) -> Path:
    """Return the folder for siterig's data of a user: below ``XDG_DATA_HOME``, or ``~/.local/share/siterig``.

    Args:
        home: the home of another user; the variable is that of the current user.
    """
    base = None if home else os.environ.get("XDG_DATA_HOME")
    if base and Path(base).is_absolute():  # the XDG base directory specification: a relative path is ignored
        return Path(base) / "siterig"
    return (home or _home()) / ".local" / "share" / "siterig"


def setup_folder(data: Path | None = None) -> Path:
    """Return the folder of ``siterig setup azurite`` for the lock of this siterig; it exists only when it is complete."""
    digest = hashlib.sha256(MANIFESTS[-1].read_bytes()).hexdigest()
    return (data or data_folder()) / f"npm-{digest[:_DIGEST_CHARACTERS]}"


def node_modules() -> list[Path]:
    """Return the folders ``node_modules`` with packages of this siterig's lock, which need not exist; best first."""
    folders = [CODE_ROOT, setup_folder()]
    if (user := sudo_user()) is not None:
        folders.append(setup_folder(data_folder(Path(user.pw_dir))))
    return [folder / "node_modules" for folder in folders]


def sudo_user() -> pwd.struct_passwd | None:
    """Return the user who became root by ``sudo`` for this command; None for any other command."""
    number = os.environ.get("SUDO_UID", "")
    if os.geteuid() != 0 or not number.isdecimal() or int(number) == 0:
        return None
    try:
        return pwd.getpwuid(int(number))
    except KeyError:
        return None


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # a user without an entry, in a container
        return Path("/")
