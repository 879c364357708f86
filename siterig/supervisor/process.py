"""A child process that reports when it is ready, answers health checks, and dies with its parent.

Parent and child share a pair of sockets that is made before the child starts.  A health check therefore needs no free file
descriptor, listening socket or queue of the child: it is answered also when all of these are exhausted.  The parent sends
one empty line, the question.  The child sends lines of JSON: first :class:`Readiness`, then a :class:`HealthAnswer` for each
question.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

import trio
from pydantic import BaseModel, ValidationError

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Wait
from siterig.blockfs.files import safe_files
from siterig.core import quick_start
from siterig.supervisor.process_log import former_log

READY_TIMEOUT_S = 60.0
TERM_TIMEOUT_S = 10.0
LINE_BYTES_MAX = 1 << 20
"""The longest line that a child may write to the channel."""
_LOG_TAIL_BYTES = 4096


class Readiness(BaseModel):
    """The first line of a child: it is ready, or the error with which it failed."""

    code: str | None = None
    message: str = ""
    recoverable: bool = False


class HealthAnswer(BaseModel):
    """The answer of a child to a health check: its waits, and the problem of the program that it serves, if any."""

    waits: list[Wait] = []
    problem: str | None = None


def open_log(log: Path) -> BinaryIO:
    """Open a log to append to it; a missing log is made, readable for this user only."""
    return os.fdopen(safe_files.open_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def last_line(log: Path) -> str:
    """Return the last line of a log that is not blank, also right after a rotation; empty if there is none."""
    for file in (log, former_log(log)):
        with contextlib.suppress(FileNotFoundError):
            for line in reversed(_tail(file)):
                if line.strip():
                    return line.strip()
    return ""


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last ``count`` lines of a log that are not blank; an empty list if there is no log."""
    try:
        return [line.strip() for line in _tail(log) if line.strip()][-count:]
    except FileNotFoundError:
        return []


def _tail(log: Path) -> list[str]:
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - _LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()


def _ending(returncode: int) -> str:
    if returncode >= 0:
        return f"exit status {returncode}"
    try:
        return f"killed by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"killed by signal {-returncode}"


class Process(Protocol):
    """A process that was started."""

    pid: int

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if the process has ended."""

    async def wait(self) -> int:
        """Wait for the end of the process; return its code in the form of ``subprocess``."""

    def close(self) -> None:
        """Close the descriptors of a process that has ended."""


class _Executed:
    """A process that runs a program."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)

    def send_signal(self, number: signal.Signals) -> None:
        self._popen.send_signal(number)

    async def wait(self) -> int:
        if self._popen.returncode is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return self._popen.wait()

    def close(self) -> None:
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def start_module(
    module: str,
    words: Sequence[str],
    *,
    log: Path,
    fd: int,
    stdin: int = subprocess.DEVNULL,
    variables: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process that runs ``main()`` of a module in a session of its own, in the folder ``/``.

    Args:
        module: loaded by :mod:`siterig.core.quick_start`.
        words: the arguments of the process.
        log: gets its output.
        fd: a descriptor that the process inherits under the same number.
        stdin: ``subprocess.DEVNULL`` or ``subprocess.PIPE``.
        variables: of its environment, beside those of this process.
    """
    with open_log(log) as output:
        return subprocess.Popen(
            [*quick_start.command(module), *words],
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[fd],
            start_new_session=True,
            cwd="/",
            env=child_environment() | (variables or {}),
        )


async def execute(name: str, command: Sequence[str], log: Path) -> Child:
    """Start a program as a child of this thread, to which PDEATHSIG is bound."""
    ours, theirs = socket.socketpair()
    try:
        with theirs, open_log(log) as output:
            # A session of its own: only the supervisor handles a Ctrl-C at the terminal.
            popen = subprocess.Popen(  # noqa: ASYNC220 (it returns at once)
                [*command, str(theirs.fileno()), str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                env=child_environment(),
            )
    except BaseException:
        ours.close()
        raise
    return Child(name, _Executed(popen), ours, log)


class Child:
    """A started process of a role, with the channel to it; :func:`execute` and the forker make it."""

    def __init__(self, name: str, process: Process, channel: socket.socket, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._log = log
        self._process = process
        self._channel = trio.SocketStream(trio.socket.from_stdlib_socket(channel))
        self._received = b""
        self._asking = trio.Lock()
        self._asked = False
        """True while a question has no answer; another question would only fill the channel."""

    async def ready(self) -> None:
        """Wait until the child reports that it is ready.

        Raises:
            RigError: the error that it reported, or ``RoleFailed`` with its exit status and the last line of its log.
        """
        line: bytes | None = None
        with SYSTEM_CLOCK.move_on_after(READY_TIMEOUT_S) as patience:
            line = await self._line()
        if patience.cancelled_caught:
            raise RigError(
                Code.RoleFailed, f"role {self.name} was not ready after {READY_TIMEOUT_S:g} s: {last_line(self._log)}"
            )
        try:
            report = Readiness.model_validate_json(line or b"")
        except ValidationError:
            ending = _ending(await self.wait())
            raise RigError(Code.RoleFailed, f"role {self.name} did not start ({ending}): {last_line(self._log)}") from None
        if report.code is not None:
            raise RigError(
                Code.of(report.code), f"role {self.name} did not start: {report.message}", recoverable=report.recoverable
            )

    async def health(self) -> HealthAnswer:
        """Ask for the health of the child; the caller sets a deadline, because a hung or ended child never answers.

        The call can be cancelled at any time; the next call then receives the answer.
        """
        async with self._asking:
            if not self._asked:
                self._asked = True
                try:
                    await self._channel.send_all(b"\n")
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    await trio.sleep_forever()
            line = await self._line()
            if line is None:
                await trio.sleep_forever()
            self._asked = False
        try:
            return HealthAnswer.model_validate_json(line or b"")
        except ValidationError:
            return HealthAnswer(problem="its answer to the health check cannot be read")

    async def _line(self) -> bytes | None:
        """Return the next line of the child; None if it closed the channel."""
        while b"\n" not in self._received:
            try:
                data = await self._channel.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return None
            if not data or len(self._received) > LINE_BYTES_MAX:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    async def wait(self) -> int:
        """Wait for the end of the child; return its code in the form of ``subprocess``."""
        return await self._process.wait()

    async def ending(self) -> str:
        """Wait for the end of the child; return its exit status or signal in words, with the last line of the log."""
        how = _ending(await self.wait())
        return f"{how}: {last_line(self._log)}".removesuffix(": ")

    def send(self, number: signal.Signals) -> None:
        """Send a signal; do nothing if the child has ended."""
        self._process.send_signal(number)

    async def end(self) -> None:
        """End the child with SIGTERM, after ``TERM_TIMEOUT_S`` with SIGKILL; cannot be cancelled, so no child is left."""
        with trio.CancelScope(shield=True):
            self.send(signal.SIGTERM)
            self.send(signal.SIGCONT)  # a fault may have stopped it
            with SYSTEM_CLOCK.move_on_after(TERM_TIMEOUT_S):
                await self.wait()
            self.send(signal.SIGKILL)
            await self.wait()

    async def kill(self) -> None:
        """Kill the child with SIGKILL and wait for its end."""
        with trio.CancelScope(shield=True):
            self.send(signal.SIGKILL)
            await self.wait()

    async def close(self) -> None:
        """Close the descriptors of a child that has ended."""
        await self._channel.aclose()
        self._process.close()
