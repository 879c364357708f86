"""Checks that open files are still the files that their names lead to, and that they are complete.

A file can be deleted, replaced, renamed or truncated while it is open.  Bytes that are then written to the descriptor are
lost with the file, or end up under another name.  A folder that is renamed, or unmounted lazily, changes nothing: names are
looked up in the folder's own descriptor.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

Identity = tuple[int, int]
"""Device and inode of a file."""


class OwnFiles:
    """The file that takes a disk's writes, open as ``fd`` (owned by the caller), and its maps, all in one folder."""

    def __init__(self, path: Path, fd: int, maps: Sequence[Path] = ()) -> None:
        self.path = path
        self.fd = fd
        self._folder_fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._maps = {path.name: self._named(path.name) for path in maps}
        except BaseException:
            self.close()
            raise

    def renamed(self, path: Path) -> None:
        """Record that the file has another name in the same folder from now on, and no maps."""
        self.path, self._maps = path, {}

    def trouble(self, excess_bytes: int) -> str | None:
        """Return the change of the files by another program as a sentence; None if there is none.

        Args:
            excess_bytes: difference between the first file's size and its expected size; negative if it is too short.
        """
        held = os.fstat(self.fd)
        if (became := self._became(self.path.name, _identity(held))) is not None:
            if held.st_nlink == 0:
                return f"{self.path} {became} while its disk was open: what was written since is lost"
            return f"{self.path} {became} while its disk was open: what was written since is in {self.where}"
        if excess_bytes < 0:
            return f"{self.path} was truncated by another program: the last {-excess_bytes} bytes of its disk are lost"
        if excess_bytes > 0:
            return f"{self.path} was made longer by another program, by {excess_bytes} bytes"
        for name, identity in self._maps.items():
            if (became := self._became(name, identity)) is not None:
                return f"{self.path.with_name(name)} {became} while its disk was open"
        return None

    @property
    def identity(self) -> Identity:
        """Identity of the first file."""
        return opened(self.fd)

    @property
    def where(self) -> Path:
        """Return the current path of the first file, as far as the kernel knows it."""
        found = Path(f"/proc/self/fd/{self.fd}").readlink()
        return Path("a file with another name (a hard link)") if found.name.endswith(" (deleted)") else found

    def close(self) -> None:
        """Close the folder's descriptor."""
        if self._folder_fd >= 0:
            os.close(self._folder_fd)
            self._folder_fd = -1

    def _became(self, name: str, identity: Identity | None) -> str | None:
        return became(self._named(name), identity)

    def _named(self, name: str) -> Identity | None:
        return named(name, folder_fd=self._folder_fd)


def named(path: Path | str, *, folder_fd: int | None = None) -> Identity | None:
    """Return the identity of the file with that name; None if there is none.

    Args:
        path: the file, or its name in the folder that is open as ``folder_fd``.
    """
    try:
        return _identity(os.stat(path, dir_fd=folder_fd, follow_symlinks=False))
    except FileNotFoundError:
        return None


def opened(fd: int) -> Identity:
    """Return the identity of the file that is open as ``fd``."""
    return _identity(os.fstat(fd))


def became(now: Identity | None, before: Identity | None) -> str | None:
    """Return how the target of a name changed from ``before`` to ``now``, as the end of a sentence.

    None means that it has not changed.
    """
    if now == before:
        return None
    return "was deleted, or renamed," if now is None else "was replaced by another file"


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino
