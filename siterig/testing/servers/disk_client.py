"""The connection of a workbench to its disk server (:mod:`siterig.testing.servers.disk_server`).

Its calls block, and several threads may make them.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import loop_devices
from siterig.cext import linux
from siterig.testing.servers.server_process import ServerProcess

MODULE = "siterig.testing.servers.disk_server"


class PendingCall:
    """A call that was sent to the disk server.

    Attributes:
        method: the name of the call.
        value: the result as JSON, if the call succeeded.
        error: its error, if it failed.
        is_answered: the call succeeded.
    """

    def __init__(self, client: DiskClient, method: str) -> None:
        """Describe a call that ``client`` sends."""
        self._client, self.method = client, method
        self.value: Any = None
        self.error: RigError | None = None
        self.is_answered = False

    @property
    def is_pending(self) -> bool:
        """The answer was not read yet."""
        return not self.is_answered and self.error is None

    def result(self) -> Any:
        """Wait for the answer, and return the result as JSON.

        Raises:
            RigError: the error of the call; ``TestServerFailed``, with the end of the server's log, if it does not answer.
        """
        self._client.read_until(self)
        if self.error is not None:
            raise self.error
        return self.value


class DiskClient:
    """Starts the disk server of a folder, and makes its calls.

    Attributes:
        folder: the folder of the server.
        mount: the mount with the disks: ``mount/VM/NAME.img``.
    """

    def __init__(self, folder: Path, *, limit_s: float) -> None:
        """Start the server and wait until its mount answers.

        Args:
            folder: an existing folder of this user.
            limit_s: the longest wait in seconds, also for the answer to a call.

        Raises:
            RigError: ``MountFailed`` and others if the disks cannot be served; ``TestServerFailed``.
        """
        self.folder, self._limit_s = folder, limit_s
        self.mount = folder / "mnt"
        self._lock = threading.Lock()
        self._pending: deque[PendingCall] = deque()
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                words = [str(folder), str(theirs.fileno()), str(os.getpid())]
                self._server = ServerProcess(
                    "the disk server",
                    MODULE,
                    words,
                    log=folder / "log" / "disks.log",
                    limit_s=limit_s,
                    pass_fds=[theirs.fileno()],
                )
        except BaseException:
            ours.close()
            raise
        ours.settimeout(limit_s)
        self._control = ours
        self._answers = ours.makefile("rb")

    @property
    def pid(self) -> int:
        """The process id of the server."""
        return self._server.pid

    @property
    def log(self) -> Path:
        """The log of the server."""
        return self._server.log

    def is_running(self) -> bool:
        """Return True if the server has not ended."""
        return self._server.is_running()

    def begin(self, method: str, /, **arguments: object) -> PendingCall:
        """Send one call of the contract of disk hosts; the server executes the calls in their order.

        The answer is read later, so the server works while this process does something else.
        """
        pending = PendingCall(self, method)
        with self._lock:
            try:
                self._control.sendall(json.dumps({"call": method, "arguments": arguments}).encode() + b"\n")
            except OSError:
                pending.error = self.failed(f"ended before the call {method}")
            else:
                self._pending.append(pending)
        return pending

    def call(self, method: str, /, **arguments: object) -> Any:
        """Make one call, and return its result as JSON.

        Raises:
            RigError: the error of the call; ``TestServerFailed``, with the end of the server's log, if it does not answer.
        """
        return self.begin(method, **arguments).result()

    def failed(self, how: str) -> RigError:
        """Return the error for a failure of the server, with the end of its log."""
        return self._server.failed(how)

    def read_until(self, call: PendingCall) -> None:
        """Read the answers to the oldest calls, up to the one to ``call``."""
        with self._lock:
            while call.is_pending:
                oldest = self._pending.popleft()
                try:
                    line = self._answers.readline()
                except TimeoutError:
                    oldest.error = self.failed(f"did not answer the call {oldest.method} within {self._limit_s:g} s")
                    continue
                except OSError:
                    line = b""
                if not line:
                    oldest.error = self.failed(f"ended, and the call {oldest.method} has no answer")
                    continue
                answer = json.loads(line)
                if "error" in answer:
                    error = answer["error"]
                    oldest.error = RigError(Code.of(error["code"]), error["message"], recoverable=error["recoverable"])
                else:
                    oldest.value = answer["result"]
                    oldest.is_answered = True

    def end(self) -> None:
        """End the server; it releases everything that uses its disks.  Does nothing the second time."""
        with self._lock:
            self._answers.close()
            self._control.close()
        self._server.end()
        self._release_after_kill()

    def _release_after_kill(self) -> None:
        """Remove the mounts that a server left because it was killed."""
        folder = self.folder.resolve()
        for _, _, point in reversed(loop_devices.mounts()):
            if Path(point) == folder / "mnt":
                from siterig.blockfs.fuse.mount import clear_stale_mount  # noqa: PLC0415 (it loads structlog)

                clear_stale_mount(Path(point))
            elif Path(point).is_relative_to(folder / "fs"):
                with suppress(OSError):
                    linux.unmount(Path(point), lazily=True)
