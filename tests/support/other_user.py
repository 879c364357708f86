"""A second user, in whose name a test makes files; only root can."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

UID = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make files that belong to another user")


def folder_of_other_user(path: Path) -> Path:
    """Create a folder that belongs to the other user."""
    path.mkdir(mode=0o755)
    os.chown(path, UID, UID)
    return path


def file_of_other_user(path: Path, data: bytes) -> Path:
    """Create a file that belongs to the other user."""
    path.write_bytes(data)
    os.chown(path, UID, UID)
    return path


def link_of_other_user(path: Path, target: Path) -> None:
    """Create a symbolic link that belongs to the other user."""
    path.symlink_to(target)
    os.lchown(path, UID, UID)
