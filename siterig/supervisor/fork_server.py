"""The process whose forks become roles.

Command: ``python -m siterig.core.quick_start siterig.supervisor.fork_server DIR [OPTION ...] FD PARENT``.

To load modules is nearly all that a role does in its first second, and the roles load the same ones.  So this process loads
them once, and each role is a fork of it.  It has one thread and runs no event loop, because a fork copies only the thread
that forks.  :mod:`siterig.supervisor.forker` is the other side, and describes the messages.

Fault contract: it ends with its parent, and its roles end with it (PDEATHSIG).  If it is killed, the supervisor starts
another one, and with it the roles.  The process id of a role that has ended belongs to no other process until the
supervisor has closed the socket for its status: a limit that a fault puts on it cannot reach a stranger.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from siterig.cext import linux
from siterig.core import quick_start
from siterig.core.process_setup import die_with_parent

REQUEST_BYTES_MAX = 1 << 16
"""The longest request."""


@dataclass
class _ForkedRole:
    """The work of a process that was just forked."""

    module: str
    arguments: list[str]
    output_fd: int
    channel_fd: int
    parent_pid: int

    def run(self) -> None:
        """Become the process of the role: a session, descriptors and a command line of its own."""
        die_with_parent(self.parent_pid)
        os.setsid()
        for fd in (1, 2):
            os.dup2(self.output_fd, fd)
        for fd in _open_descriptors():
            if fd > 2 and fd != self.channel_fd:
                with contextlib.suppress(OSError):  # the one by which the folder was read
                    os.close(fd)
        words = [*self.arguments, str(self.channel_fd), str(self.parent_pid)]
        linux.set_command_line([*quick_start.command(self.module), *words])
        Path("/proc/self/comm").write_text(self.module.rpartition(".")[2])
        sys.argv[1:] = words
        quick_start.load(self.module).main()


@dataclass
class _Forked:
    """A role that runs, and the socket on which its end is reported."""

    pid: int
    pidfd: int
    status: socket.socket

    def detach(self) -> None:
        """Forget the descriptors; the fork that this runs in closes them."""
        self.status.detach()

    def report_end(self) -> None:
        """Send the exit code in the form of ``subprocess``."""
        ending = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert ending is not None  # noqa: S101 (without WNOHANG it waits)
        code = ending.si_status if ending.si_code == os.CLD_EXITED else -ending.si_status
        with contextlib.suppress(OSError):  # the supervisor may have closed it
            self.status.send(json.dumps({"returncode": code}).encode())

    def release(self) -> None:
        """Let the kernel give the process id to another process."""
        os.waitpid(self.pid, 0)
        self.status.close()
        os.close(self.pidfd)


def _open_descriptors() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]  # noqa: PTH208 (numbers, not paths)


def _load(module: str) -> None:
    with contextlib.suppress(Exception):  # the role that it belongs to meets the same error, and its log shows it
        quick_start.load(module)


def serve(control: socket.socket) -> _ForkedRole | None:
    """Fork roles until the supervisor closes the socket; return None then, and the work in each fork."""
    running: dict[int, _Forked] = {}
    ended: dict[int, _Forked] = {}
    modules: deque[str] = deque()
    poll = select.poll()
    poll.register(control, select.POLLIN)
    while True:
        events = poll.poll(0 if modules else None)
        if not events:
            _load(modules.popleft())
        for fd, _ in events:
            if fd in running:
                poll.unregister(fd)
                forked = running.pop(fd)
                forked.report_end()
                ended[forked.status.fileno()] = forked
                poll.register(forked.status, 0)  # until the supervisor closes its side
                continue
            if fd in ended:
                poll.unregister(fd)
                ended.pop(fd).release()
                continue
            data, fds, _, _ = socket.recv_fds(control, REQUEST_BYTES_MAX, 3)
            if not data:
                return None
            request = json.loads(data)
            if "load" in request:
                modules.extend(request["load"])
                continue
            output_fd, channel_fd, status_fd = fds
            role = _ForkedRole(request["module"], request["arguments"], output_fd, channel_fd, os.getpid())
            _load(role.module)
            try:
                pid = os.fork()
            except OSError as error:  # no memory or process ids: the roles that run are not affected
                with socket.socket(fileno=status_fd) as status, contextlib.suppress(OSError):
                    status.send(json.dumps({"error": os.strerror(error.errno or 0)}).encode())
                os.close(output_fd)
                os.close(channel_fd)
                continue
            if pid == 0:
                control.detach()
                for other in (*running.values(), *ended.values()):
                    other.detach()
                return role
            forked = _Forked(pid, os.pidfd_open(pid), socket.socket(fileno=status_fd))
            with contextlib.suppress(OSError):
                socket.send_fds(forked.status, [json.dumps({"pid": pid}).encode()], [forked.pidfd])
            os.close(output_fd)
            os.close(channel_fd)
            running[forked.pidfd] = forked
            poll.register(forked.pidfd, select.POLLIN)


def main() -> None:
    """Serve until the supervisor ends; a fork runs its role, and ends as a process of the role ends."""
    fd, parent_pid = int(sys.argv[-2]), int(sys.argv[-1])
    die_with_parent(parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    role = serve(socket.socket(fileno=fd))
    if role is not None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        role.run()


if __name__ == "__main__":
    main()
