"""One child process that reports when it is ready, answers health checks, and dies with its parent.

The channel between both is a pair of sockets made before the child starts.  So a health check needs no file descriptor,
no listening socket and no free place in a queue of the child: it is answered also when all these are used up.
Parent to child: one empty line, the question.  Child to parent: one line of JSON each, first :class:`Readiness`, then a
:class:`HealthAnswer` for each question.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import trio
from pydantic import BaseModel, ValidationError

from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Wait
from siterig.blockfs.files import safe_files
from siterig.supervisor.process_log import former_log

READY_TIMEOUT_S = 60.0
TERM_TIMEOUT_S = 10.0
LINE_BYTES_MAX = 1 << 20
"""The longest line that a child may write to the channel."""
_LOG_TAIL_BYTES = 4096


class Readiness(BaseModel):
    """A child's first line on the channel: it is ready, or why it is not."""

    code: str | None = None
    message: str = ""
    recoverable: bool = False


class HealthAnswer(BaseModel):
    """A child's answer to a health check: what it waits for, and why what it serves does not answer (None: it does)."""

    waits: list[Wait] = []
    problem: str | None = None


def open_log(log: Path) -> BinaryIO:
    """Open a log to append to it; it is made if it is missing, for this user alone."""
    return os.fdopen(safe_files.open_file(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab")


def last_line(log: Path) -> str:
    """The last line of a log that is not blank, also if the log was just rotated; empty if there is none."""
    for file in (log, former_log(log)):
        with contextlib.suppress(FileNotFoundError):
            for line in reversed(_tail(file)):
                if line.strip():
                    return line.strip()
    return ""


def last_lines(log: Path, count: int) -> list[str]:
    """The last lines of a log that are not blank, at most so many; none if there is no log."""
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


class Child:
    """A started process.  Made in the supervisor's main thread: PDEATHSIG follows the thread that forks."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._log = log
        ours, theirs = socket.socketpair()
        try:
            with open_log(log) as output:
                # Its own session: a Ctrl-C at the terminal is for the supervisor to handle, in order.
                self._popen = subprocess.Popen(
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
        finally:
            theirs.close()
        self._channel = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        self._received = b""
        self._asking = trio.Lock()
        self._asked = False
        """A question was sent and not answered yet: another one would only fill the channel."""
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)

    async def ready(self) -> None:
        """Wait until it reports so; else an error with its reason, or with how it ended and its log's last line."""
        line: bytes | None = None
        with trio.move_on_after(READY_TIMEOUT_S) as patience:
            line = await self._line()
        if patience.cancelled_caught:
            raise RigError(
                Code.RoleFailed, f"role {self.name} was not ready after {READY_TIMEOUT_S:g} s: {last_line(self._log)}"
            )
        try:
            said = Readiness.model_validate_json(line or b"")
        except ValidationError:
            ending = _ending(await self.wait())
            raise RigError(Code.RoleFailed, f"role {self.name} did not start ({ending}): {last_line(self._log)}") from None
        if said.code is not None:
            raise RigError(
                Code.of(said.code), f"role {self.name} did not start: {said.message}", recoverable=said.recoverable
            )

    async def health(self) -> HealthAnswer:
        """Ask how it is; waits for as long as it does not answer, so give it a deadline.  A child that ends never answers.

        It may be cancelled at any time: the answer is then taken by the next call.
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
        """The next line that it wrote; None if it closed the channel."""
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
        """Wait for its end; the return code as of ``subprocess``."""
        if self._popen.returncode is None:
            await trio.lowlevel.wait_readable(self._pidfd)
        return self._popen.wait()

    async def ending(self) -> str:
        """Wait for its end, and say in words how it was, with the last line of the log."""
        how = _ending(await self.wait())
        return f"{how}: {last_line(self._log)}".removesuffix(": ")

    def send(self, number: signal.Signals) -> None:
        """Send a signal; nothing happens if it has ended."""
        self._popen.send_signal(number)

    async def end(self) -> None:
        """SIGTERM, and SIGKILL if it has not ended in time.  Not to be cancelled: a child must not be left behind."""
        with trio.CancelScope(shield=True):
            self.send(signal.SIGTERM)
            with trio.move_on_after(TERM_TIMEOUT_S):
                await self.wait()
            self.send(signal.SIGKILL)
            await self.wait()

    async def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        with trio.CancelScope(shield=True):
            self.send(signal.SIGKILL)
            await self.wait()

    async def close(self) -> None:
        """Give back the descriptors; the process has ended."""
        await self._channel.aclose()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
