"""Finds the processes that hold a lock on a file, under any of its names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class LockHolder:
    """A process with a lock on a file.

    Attributes:
        pid: its process id.
        name: ``name (pid)`` and, if it opened the file under another name, that name.
    """

    pid: int
    name: str

    def command_line(self) -> list[str]:
        """Return the words of its command line; none if it has ended, or this process may not inspect it."""
        try:
            return os.fsdecode(Path(f"/proc/{self.pid}/cmdline").read_bytes()).split("\0")
        except OSError:
            return []

    def mountinfo(self) -> str:
        """Return the table of the mounts that it sees (proc(5)); the empty text like :meth:`command_line`."""
        try:
            return os.fsdecode(Path(f"/proc/{self.pid}/mountinfo").read_bytes())
        except OSError:
            return ""


def lock_holders(path: Path, fd: int) -> list[LockHolder]:
    """Return each other process with a lock on the open file.

    The search uses the file's inode, so it also finds hard links.  Processes that this process may not inspect are left
    out.
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
                name = f"{comm} ({process.name}){'' if opened == path else f' as {opened}'}"
                holders.append(LockHolder(int(process.name), name))
                break
        except OSError:
            continue  # it ended meanwhile, or this user may not inspect it
    return holders


def _has_lock(info: Path, mark: str) -> bool:
    return any(line.startswith("lock:") and mark in line for line in info.read_text(errors="replace").splitlines())
