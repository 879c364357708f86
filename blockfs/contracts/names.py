"""The allowed names of VMs and disks."""

from __future__ import annotations

import re

from siterig.blockfs.core.errors import Code, RigError

NAME_CHARS_MAX = 63
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_CHARS_MAX - 1}}}")


def check_name(what: str, name: str) -> None:
    """Raise ``InvalidName`` unless ``name`` is usable as the name of a VM or disk, and so as a file name."""
    if not _NAME.fullmatch(name):
        raise RigError(
            Code.InvalidName,
            f"{what} is named {name!r}; allowed: 1 to 63 letters, digits, '-' and '_', not '-' or '_' first",
        )
