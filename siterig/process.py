"""One child process that says when it is ready, and dies with its parent."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import trio
from pydantic import BaseModel, ValidationError

from blockfs.errors import RigError
from siterig.cleanup import python_environment

READY_TIMEOUT_S = 60.0
TERM_TIMEOUT_S = 10.0
_LOG_TAIL_BYTES = 4096


class Readiness(BaseModel):
    """What a child writes, once and as one line of JSON, to the pipe it was given: ready, or why not."""

    code: str | None = None
    message: str = ""
    recoverable: bool = False


def last_line(log: Path) -> str:
    """The last line of a log that is not blank; empty if there is none."""
    try:
        with log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - _LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


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
        ready_r, ready_w = os.pipe2(os.O_CLOEXEC)
        try:
            with log.open("ab") as output:
                # Its own session: a Ctrl-C at the terminal is for the supervisor to handle, in order.
                self._popen = subprocess.Popen(
                    [*command, str(ready_w), str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[ready_w],
                    start_new_session=True,
                    env=python_environment(),
                )
        except BaseException:
            os.close(ready_r)
            raise
        finally:
            os.close(ready_w)
        self._ready = trio.lowlevel.FdStream(ready_r)
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)

    async def ready(self) -> None:
        """Wait until it says so; else an error with its reason, or with how it ended and its log's last line."""
        line = b""
        async with self._ready:
            with trio.move_on_after(READY_TIMEOUT_S) as patience:
                while not line.endswith(b"\n"):
                    data = await self._ready.receive_some()
                    if not data:
                        break
                    line += data
        if patience.cancelled_caught:
            raise RigError(
                "RoleFailed", f"role {self.name} was not ready after {READY_TIMEOUT_S:g} s: {last_line(self._log)}"
            )
        try:
            said = Readiness.model_validate_json(line)
        except ValidationError:
            ending = _ending(await self.wait())
            raise RigError("RoleFailed", f"role {self.name} did not start ({ending}): {last_line(self._log)}") from None
        if said.code is not None:
            raise RigError(said.code, f"role {self.name} did not start: {said.message}", recoverable=said.recoverable)

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
        await self._ready.aclose()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
