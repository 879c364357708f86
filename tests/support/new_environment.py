"""A new virtual environment with siterig, by pip; nothing is downloaded, and the C part is compiled once in a session.

The dependencies are those of the environment that runs the tests: their folder is searched after the new one.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.repo.rooms import ROOT

_OFFLINE = ("--quiet", "--no-deps", "--no-index", "--disable-pip-version-check")


def built_wheel(temporary: pytest.TempPathFactory) -> Path:
    """Return the wheel of this checkout; the first test of a session builds it, for all workers of pytest-xdist."""
    base = temporary.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "wheel"
    with (shared / "wheel.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (wheels := list(folder.glob("*.whl"))):
            _run_pip([sys.executable, "-m", "pip"], "wheel", "--no-build-isolation", "-w", folder, ROOT)
            wheels = list(folder.glob("*.whl"))
    (wheel,) = wheels
    return wheel


class NewEnvironment:
    """A virtual environment in a folder, with siterig.

    Attributes:
        bin: its programs.
        python: its interpreter.
    """

    def __init__(self, folder: Path, wheel: Path) -> None:
        """Make the environment, and install the wheel."""
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        _run_pip([sys.executable, "-m", "pip", "--python", self.python], "install", wheel)
        (site_packages,) = folder.glob("lib/python*/site-packages")
        # A folder that a .pth file names is searched, but its own .pth files, the editable siterig among them, are not read.
        (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")


def _run_pip(pip: list[str | Path], command: str, *words: str | Path) -> None:
    done = subprocess.run([*pip, command, *_OFFLINE, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
