"""Use of a rig or an Azurite that several test processes may share; its keeper ends it after the last one.

Each user holds a shared lock on the file ``users``; :mod:`siterig.testing.servers.keeper` waits for the exclusive lock.
Users come and go one at a time, with the lock ``turn``.

Fault contract: all locks are the kernel's, so a user that is killed leaves no wrong count.  The last user that leaves waits
until everything has ended.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.testing.servers.server_process import ServerProcess, log_end

MODULE = "siterig.testing.servers.keeper"
KEEP = "keep"
"""The name of the file that forbids the keeper to remove the files of its server."""
_POLL_S = 0.02


class SharedServer:
    """One use of the server in a folder; the first user starts it.

    Attributes:
        values: the values that the server reported: ``folder`` of a rig, ``connection_string`` of an Azurite.
        shared: other processes may use it, too.
    """

    def __init__(self, kind: Literal["rig", "azurite"], folder: Path, *, limit_s: float, shared: bool) -> None:
        """Use the server, and start it if it is not up.

        Args:
            kind: the kind of server.
            folder: its folder; all users name the same one.
            limit_s: the longest wait in seconds.
            shared: other processes may use it, too.

        Raises:
            RigError: the error with which it did not start, or ``TestServerFailed``.
        """
        self.folder, self.shared, self._limit_s = folder, shared, limit_s
        self._log = folder / "log" / f"{kind}.log"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._turn():
            self._users = self._open("users")
            try:
                # After the last user, the lock is the keeper's until its process has ended.
                self._wait_for(self._users, fcntl.LOCK_SH, "did not end")
                self.values = self._values() or self._start(kind)
            except BaseException:
                os.close(self._users)
                raise

    def _start(self, kind: str) -> dict[str, Any]:
        words = [kind, str(self.folder)]
        keeper = ServerProcess(f"the keeper of the {kind}", MODULE, words, log=self._log, limit_s=self._limit_s)
        keeper.detach()
        return keeper.ready

    def _values(self) -> dict[str, Any] | None:
        """Return the values of a server that is up."""
        if not self.is_up():
            return None
        try:
            values: dict[str, Any] = json.loads((self.folder / "ready.json").read_text())
        except FileNotFoundError:
            return None
        return values

    def is_up(self) -> bool:
        """Return True if the keeper of the server runs."""
        return not self._is_free("alive")

    def keep_files(self) -> None:
        """Keep the files of the server when its last user has left: a test that used it failed."""
        (self.folder / KEEP).touch()

    def leave(self) -> None:
        """End the use; the last user waits until the server has ended, and has removed its files.

        Raises:
            RigError: ``TestServerFailed`` with the end of its log if it does not end in time.
        """
        with self._turn():
            os.close(self._users)
            if self._is_last():
                alive = self._open("alive")
                try:
                    self._wait_for(alive, fcntl.LOCK_SH, "did not end")
                finally:
                    os.close(alive)

    def _is_last(self) -> bool:
        """Return True if no process uses the server any more: the lock is free, or the keeper has it."""
        if self._is_free("users"):
            return True
        fd = self._open("users")
        try:
            return not _try(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)

    def _is_free(self, name: str) -> bool:
        fd = self._open(name)
        try:
            return _try(fd, fcntl.LOCK_EX)
        finally:
            os.close(fd)

    def _open(self, name: str) -> int:
        return os.open(self.folder / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        fd = self._open("turn")
        try:
            self._wait_for(fd, fcntl.LOCK_EX, "is being started or ended by another process and did not get ready")
            yield
        finally:
            os.close(fd)

    def _wait_for(self, fd: int, lock: int, what: str) -> None:
        # Polled: the kernel's own wait for a lock has no limit.
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(self._limit_s * 1e9)
        while not _try(fd, lock):
            if SYSTEM_CLOCK.monotonic_ns() > deadline_ns:
                raise RigError(
                    Code.TestServerFailed,
                    f"the server in {self.folder} {what} within {self._limit_s:g} s; {log_end(self._log)}",
                )
            SYSTEM_CLOCK.sleep_thread(_POLL_S)


def _try(fd: int, lock: int) -> bool:
    try:
        fcntl.flock(fd, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
