"""Finds the installed Azurite and the Node that runs it, and their versions; the module imports almost nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

from siterig.blockfs.core.code_root import CODE_ROOT
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.small_file import read_small_file

NODE_MAJOR_MIN = 20
BINARY_VARIABLE = "SITERIG_AZURITE"


def find_script() -> Path:
    """Return Azurite's script: the one that ``SITERIG_AZURITE`` names, otherwise the checkout's, otherwise one on ``PATH``.

    Raises:
        RigError: ``AzuriteMissing``.
    """
    named = os.environ.get(BINARY_VARIABLE)
    if named is not None:
        if not Path(named).is_file():
            raise RigError(
                Code.AzuriteMissing, f"{BINARY_VARIABLE} names {named}, which is no file: name Azurite's azurite-blob script"
            )
        return Path(named)
    beside = CODE_ROOT / "node_modules" / ".bin" / "azurite-blob"
    if beside.is_file():
        return beside
    on_path = shutil.which("azurite-blob")
    if on_path is None:
        raise RigError(
            Code.AzuriteMissing,
            f"Azurite is not installed: no {beside} and no azurite-blob on PATH;"
            f" run ./rig in a checkout, or npm install -g azurite, or name it in {BINARY_VARIABLE}",
        )
    return Path(on_path)


def find_node() -> str:
    """Return the path of Node: the one that ``./rig`` installed beside this Python, otherwise the one on ``PATH``.

    Raises:
        RigError: ``NodeMissing``.
    """
    ours = Path(sys.executable).parent / "node"
    node = str(ours) if os.access(ours, os.X_OK) else shutil.which("node")
    if node is None:
        raise RigError(
            Code.NodeMissing,
            f"Azurite needs Node.js {NODE_MAJOR_MIN} or newer and no node is on PATH: run ./rig, or install it",
        )
    return node


def version_of(script: Path) -> str | None:
    """Return the version of the package that ``script`` belongs to; None if it cannot be read."""
    for folder in script.resolve().parents:
        try:
            about = json.loads(read_small_file(folder / "package.json"))
        except (OSError, ValueError):
            continue
        if isinstance(about, dict) and about.get("name") == "azurite":
            version = about.get("version")
            return version if isinstance(version, str) else None
    return None
