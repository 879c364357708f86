"""``siterig`` commands, rigs and servers of tests as processes that need not load their modules.

To load them is two thirds of the processor time of a short command, and most system tests run many.  One process of each
test process has loaded them, and forks: a program has its own process id, environment, working directory and streams.  Tests
of the start itself, and those that put another program in front, start ``python -m siterig``.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from siterig.supervisor import main as supervisor_main
from siterig.supervisor import process
from siterig.supervisor.forker import SERVER
from tests.support.forked_program import close_ends, options_of_module, program_of
from tests.support.warm_server import MESSAGE_BYTES_MAX

ROOT = Path(__file__).parents[2]
COMMAND_LINE_BYTES_MAX = 4096
SUPERVISOR = "siterig.supervisor.main"
OF_A_RIG = [SUPERVISOR, SERVER, *(f"siterig.roles.{role}" for role in supervisor_main.ROLES)]
"""The modules of the processes of a rig."""
_STARTS_A_RIG = ("up", "drill")


class _Server:
    """The process that forks, and the socket to it."""

    def __init__(self) -> None:
        self.socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm_server", str(theirs.fileno()), "-" * COMMAND_LINE_BYTES_MAX],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def ask(self, request: dict[str, Any], descriptors: Sequence[int] = ()) -> Any:
        """Send a request, and return the answer."""
        socket.send_fds(self.socket, [json.dumps(request).encode()], descriptors)
        answer = self.socket.recv(MESSAGE_BYTES_MAX)
        assert answer, f"the process that forks ended: {self.process.wait()}"
        return json.loads(answer)

    def close(self) -> None:
        """End the process; commands that run are left alone."""
        self.socket.close()
        self.process.wait()


_lock = threading.Lock()
_servers: dict[int, _Server] = {}
"""The server of this process; a process that was forked from it must not use it."""


def _ask(request: dict[str, Any], descriptors: Sequence[int] = ()) -> Any:
    with _lock:
        if os.getpid() not in _servers:
            _servers[os.getpid()] = _Server()
        return _servers[os.getpid()].ask(request, descriptors)


def _mount_namespace() -> int:
    return Path("/proc/thread-self/ns/mnt").stat().st_ino


_NAMESPACE = _mount_namespace()
"""The mount namespace of the tests."""


def start_siterig(
    words: Sequence[object], *, environment: Mapping[str, str] | None = None, new_session: bool = False
) -> subprocess.Popen[str]:
    """Start a ``siterig`` command with its output in pipes.

    In another mount namespace, which a test has made for its thread, the command is started in the usual way: the process
    that forks would not see the mounts there, or would keep them.
    """
    if _mount_namespace() == _NAMESPACE:
        loads = OF_A_RIG if words and str(words[0]) in _STARTS_A_RIG else ()
        return WarmProgram("siterig.__main__", words, loads, **_popen_options(environment, new_session))
    return subprocess.Popen([sys.executable, "-m", "siterig", *map(str, words)], **_popen_options(environment, new_session))


def start_program(module: str, words: Sequence[object]) -> subprocess.Popen[str]:
    """Start ``main()`` of a module of the tests, with pipes as standard input and output."""
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    if _mount_namespace() == _NAMESPACE:
        return WarmProgram(module, words, **options, env=os.environ)
    return subprocess.Popen([sys.executable, "-m", module, *map(str, words)], **options)


def _popen_options(environment: Mapping[str, str] | None, new_session: bool) -> dict[str, Any]:
    return {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "env": os.environ | (environment or {}),
        "cwd": ROOT,
        "start_new_session": new_session,
    }


class WarmProgram(subprocess.Popen[str]):
    """A program that runs; used like :class:`subprocess.Popen`, whose options it takes.

    Args:
        module: its ``main()`` runs.
        words: the arguments of the program.
        loads: modules that are loaded before the fork.
    """

    _waitpid_lock: threading.Lock
    """Popen's: one thread waits at a time."""

    def __init__(self, module: str, words: Sequence[object], loads: Sequence[str] = (), **options: Any) -> None:
        self._module, self._loads = module, [module, *loads]
        self._pidfd = -1
        super().__init__([*map(str, words)], **options)

    # Popen does the rest: these three methods are all of it that starts and awaits a process (CPython 3.11 to 3.13).

    def _execute_child(self, words: list[str], *given: Any) -> None:
        """Start the program."""
        program, descriptors = program_of(self, self._module, words, *given)
        program.loads = self._loads
        self.pid = _ask(asdict(program), descriptors)["pid"]
        self._pidfd = os.pidfd_open(self.pid)  # the process that forks keeps its id until its status was asked for
        self._child_created = True
        close_ends(self, words, *given)

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """Wait for the end, or look for it; returns the same as :func:`os.waitpid`."""
        ended = select.poll()
        ended.register(self._pidfd, select.POLLIN)
        if not ended.poll(0 if wait_flags else None):
            return 0, 0
        status = _ask({"status_of": self.pid})["status"]
        os.close(self._pidfd)
        return self.pid, status

    def _internal_poll(self, **_: Any) -> int | None:
        """Look for the end."""
        if self.returncode is None and self._waitpid_lock.acquire(blocking=False):  # else another thread waits for it
            try:
                pid, status = (0, 0) if self.returncode is not None else self._try_wait(os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
            finally:
                self._waitpid_lock.release()
        return self.returncode


def start_module(
    module: str,
    words: Sequence[str],
    *,
    log: Path,
    fd: int,
    stdin: int = subprocess.DEVNULL,
    variables: dict[str, str] | None = None,
) -> subprocess.Popen[Any]:
    """Start the supervisor of a rig; the arguments are those of :func:`siterig.supervisor.process.start_module`.

    A fork server is started in the usual way: it ends unless it is a child of this process.
    """
    if module != SUPERVISOR or _mount_namespace() != _NAMESPACE:
        return _start_module_usually(module, words, log=log, fd=fd, stdin=stdin, variables=variables)
    with process.open_log(log) as output:
        return WarmProgram(module, words, OF_A_RIG, **options_of_module(output.fileno(), fd, stdin, variables))


_start_module_usually = process.start_module


def run_warm(
    *words: object, environment: Mapping[str, str] | None = None, timeout_s: float | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, and return its status and its output."""
    with start_siterig(words, environment=environment) as command:
        try:
            stdout, stderr = command.communicate(timeout=timeout_s)
        except BaseException:
            command.kill()
            raise
    return subprocess.CompletedProcess(command.args, command.returncode, stdout, stderr)
