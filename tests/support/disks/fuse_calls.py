"""Calls of the file system's operations without a mount."""

from __future__ import annotations

import os
from typing import Any

import pyfuse3
import pytest

from siterig.blockfs.fuse.filesystem import DiskFileSystem

NOBODY: Any = None
"""The context of a request; nothing uses it, because the mount is private."""


async def inode_of(files: DiskFileSystem, vm: str, name: str) -> pyfuse3.InodeT:
    """Look up a file of a VM, and return its inode."""
    folder = await files.lookup(pyfuse3.ROOT_INODE, vm.encode(), NOBODY)
    return (await files.lookup(folder.st_ino, name.encode(), NOBODY)).st_ino


async def listed(files: DiskFileSystem, folder: pyfuse3.InodeT, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the names in a folder with the inodes that readdir reports."""
    found = {}

    def reply(_token: object, name: bytes, entry: pyfuse3.EntryAttributes, _next: int) -> bool:
        found[os.fsdecode(name)] = entry.st_ino
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    await files.readdir(await files.opendir(folder, NOBODY), 0, NOBODY)
    return found
