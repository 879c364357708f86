"""A new virtual environment with siterig installed by pip from a copy of the checkout; nothing is downloaded.

The dependencies are those of the environment that runs the tests: their folder is searched after the new one.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support.repo.rooms import ROOT

_OFFLINE = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")


class NewEnvironment:
    """A virtual environment in a folder.

    Attributes:
        python: its interpreter.
    """

    def __init__(self, folder: Path) -> None:
        """Make the environment, and install siterig."""
        self._folder = folder
        self.python = folder / "venv" / "bin" / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (site_packages,) = (folder / "venv").glob("lib/python*/site-packages")
        # A folder that a .pth file names is searched, but its own .pth files, the editable siterig among them, are not read.
        (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        copy = folder / "checkout"
        _copy_tracked(copy)
        self.install(copy)

    def install(self, project: Path) -> None:
        """Install a project from its folder, in which pip may leave files."""
        pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", self.python, "install", *_OFFLINE]
        done = subprocess.run([*pip, project], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def _copy_tracked(to: Path) -> None:
    """Copy the files of the checkout that git knows, and new ones that it does not ignore."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
