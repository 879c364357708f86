"""The folder that this code was imported from: a checkout, or the site-packages of an installation."""

from __future__ import annotations

import os
from pathlib import Path

import siterig

CODE_ROOT = Path(siterig.__file__).resolve().parent.parent


def child_environment() -> dict[str, str]:
    """Return the environment for a Python child process that imports this code from any folder."""
    paths = [str(CODE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
