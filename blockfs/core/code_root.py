"""The folder that this code was imported from: a checkout, or the site-packages of an installation."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

import siterig

CODE_ROOT = Path(siterig.__file__).resolve().parent.parent


def child_environment() -> dict[str, str]:
    """Return the environment for a Python child process that imports this code from any folder.

    An interpreter finds an installed package by itself.  Only a checkout is added to ``PYTHONPATH``: the folder of an
    installation would come before the standard library there, with all other packages that it holds.
    """
    environment = dict(os.environ)
    if sys.flags.ignore_environment:  # what this process did not read could lead the child to other code
        environment.pop("PYTHONPATH", None)
    if not _is_installed():
        paths = [str(CODE_ROOT), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    return environment


def _is_installed() -> bool:
    folders = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    return CODE_ROOT in (Path(folder).resolve() for folder in folders)
