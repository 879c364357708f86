"""Starts roles as forks of a server that has loaded their modules (:mod:`siterig.supervisor.fork_server`).

The first message, ``{"load"}``, has the modules that the server loads when it has nothing else to do.  Each other one is
a request ``{"module", "arguments"}`` with three descriptors: the log, the role's end of the channel, and
a socket for the status.  The answer comes on that socket: ``{"pid"}`` with a pidfd, or ``{"error"}``; and at the end of the
process ``{"returncode"}``.  If the server ends, its roles end with it, and the socket is closed without that message.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.core import quick_start
from siterig.core.paths import Layout
from siterig.supervisor import process
from siterig.supervisor.process import Child, open_log

SERVER = "siterig.supervisor.fork_server"
FORK_TIMEOUT_S = 60.0
"""The server loads the modules of a role before it forks; one that takes longer is killed, and another one is started."""
_STATUS_BYTES_MAX = 1024


class _ForkedProcess:
    """A process that the server forked."""

    def __init__(self, pid: int, pidfd: int, status: socket.socket) -> None:
        self.pid = pid
        self._pidfd = pidfd
        self._status = status
        self._returncode: int | None = None

    def send_signal(self, number: signal.Signals) -> None:
        if self._returncode is None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return  # it has ended

    async def wait(self) -> int:
        if self._returncode is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            await trio.lowlevel.wait_readable(self._status)
            data = self._status.recv(_STATUS_BYTES_MAX)
            self._returncode = json.loads(data)["returncode"] if data else -signal.SIGKILL
        return self._returncode

    def close(self) -> None:
        self._status.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


class Forker:
    """The supervisor's side of the server, which is started when it is needed first, and again after it was killed.

    ``modules`` are those of the roles that will be started.  ``options`` are those of the rig: the server gets them, too,
    because the command line that ps shows of a role takes the place of the server's.
    """

    def __init__(self, layout: Layout, options: Sequence[str], modules: Sequence[str]) -> None:
        self._layout = layout
        self._modules = modules
        self._options = options
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._starting = trio.Lock()

    async def start(self, name: str, command: Sequence[str], log: Path) -> Child:
        """Start a role; ``command`` is one of :func:`siterig.core.quick_start.command` with arguments.

        The call cannot be cancelled, so that no process is left without an owner.

        Raises:
            RigError: ``RoleFailed``: the server did not fork.
        """
        module, arguments = quick_start.parse(command)
        channel, theirs = socket.socketpair()
        status, their_status = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs, their_status, open_log(log) as output, trio.CancelScope(shield=True):
                fds = [output.fileno(), theirs.fileno(), their_status.fileno()]
                request = json.dumps({"module": module, "arguments": arguments}).encode()
                async with self._starting:
                    self._send(request, fds)
            forked = await self._forked(name, status)
        except BaseException:
            channel.close()
            status.close()
            raise
        return Child(name, forked, channel, log)

    async def _forked(self, name: str, status: socket.socket) -> _ForkedProcess:
        with trio.CancelScope(shield=True), SYSTEM_CLOCK.move_on_after(FORK_TIMEOUT_S) as patience:
            await trio.lowlevel.wait_readable(status)
        if patience.cancelled_caught:
            self.close()
            raise RigError(Code.RoleFailed, f"role {name} was not forked within {FORK_TIMEOUT_S:g} s", recoverable=True)
        data, fds, _, _ = socket.recv_fds(status, _STATUS_BYTES_MAX, 1)
        if not data:
            raise RigError(Code.RoleFailed, f"role {name} was not started: the fork server ended", recoverable=True)
        answer = json.loads(data)
        if "error" in answer:
            raise RigError(Code.RoleFailed, f"role {name} was not forked: {answer['error']}", recoverable=True)
        return _ForkedProcess(answer["pid"], fds[0], status)

    def _send(self, request: bytes, fds: list[int]) -> None:
        if self._control is not None and self._server is not None and self._server.poll() is None:
            try:
                socket.send_fds(self._control, [request], fds)
            except BrokenPipeError:
                pass  # it has just ended
            else:
                return
        socket.send_fds(self._start_server(), [request], fds)

    def _start_server(self) -> socket.socket:
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            words = [str(self._layout.root), *self._options, str(theirs.fileno()), str(os.getpid())]
            self._server = process.start_module(SERVER, words, log=self._layout.log("supervisor"), fd=theirs.fileno())
        self._control = ours
        ours.send(json.dumps({"load": self._modules}).encode())
        return ours

    def close(self) -> None:
        """End the server, and the roles that it forked and that still run."""
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            self._server = None
