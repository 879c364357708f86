"""Finds the processes that hold a lock on a file, under any of its names."""

from __future__ import annotations

import os
from pathlib import Path


def lock_holders(path: Path, fd: int) -> list[str]:
    """Return ``name (pid)`` of each other process with a lock on the open file.

    If the process opened the file under another name, the text contains that name.  The search uses the file's inode, so it
    also finds hard links.  Processes that this process may not inspect are left out.
    """
    found = os.fstat(fd)
    mark = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino} "
    holders = []
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            for info in (process / "fdinfo").iterdir():
                if not _has_lock(info, mark):
                    continue
                comm = (process / "comm").read_text(errors="replace").strip()
                opened = (process / "fd" / info.name).readlink()
                holders.append(f"{comm} ({process.name}){'' if opened == path else f' as {opened}'}")
                break
        except OSError:
            continue  # it ended meanwhile, or this user may not inspect it
    return holders


def _has_lock(info: Path, mark: str) -> bool:
    return any(line.startswith("lock:") and mark in line for line in info.read_text(errors="replace").splitlines())
