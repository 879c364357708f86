"""The disk of a host is full: calls that need room fail, as the operating system would let them fail."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from typing_extensions import Buffer

from siterig.blockfs.files import host_calls
from siterig.blockfs.files.host_calls import HostCalls


class FullDisk(HostCalls):
    """Host calls that fail with ``ENOSPC`` for the files of a host, between :meth:`begin` and :meth:`end`.

    The calls are those that Python makes; the C core writes into space that was allocated before.
    """

    def __init__(self, folders: dict[str, tuple[Path, ...]]) -> None:
        """Let no disk be full yet; ``folders`` has the folders of each host."""
        self._folders = folders
        self._full: dict[str, int] = {}

    def begin(self, host: str) -> None:
        """Let the disk of a host be full from now on."""
        if not self._full:
            host_calls.install(self)
        self._full[host] = self._full.get(host, 0) + 1

    def end(self, host: str) -> None:
        """End one :meth:`begin`; do nothing if there is none."""
        if host in self._full:
            self._full[host] -= 1
            if not self._full[host]:
                del self._full[host]
            if not self._full:
                host_calls.uninstall()

    def end_all(self) -> None:
        """Let there be room everywhere."""
        for host in list(self._full):
            self._full[host] = 1
            self.end(host)

    def pwritev(self, fd: int, pieces: Sequence[Buffer], offset: int) -> int:
        self._check(fd)
        return super().pwritev(fd, pieces, offset)

    def allocate(self, fd: int, offset: int, length: int) -> None:
        self._check(fd)
        super().allocate(fd, offset, length)

    def _check(self, fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if any(path.is_relative_to(folder) for host in self._full for folder in self._folders[host]):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
