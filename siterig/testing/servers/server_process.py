"""A server of a workbench as a child process: it reports readiness or an error, and its log explains a failure.

Fault contract: the child has a session of its own, so a Ctrl-C at the terminal reaches only this process, which then ends
the child.  If this process is killed, the child notices it and releases everything by itself.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.core import quick_start

LINES_SHOWN = 20
"""The number of lines of a log that an error shows."""
END_S = 60.0
"""The longest wait for a child that was asked to end."""
_TAIL_BYTES = 16 << 10


def log_end(log: Path) -> str:
    """Return the name of a log and its last lines, in the form in which errors show it."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    shown = "\n".join(f"  {line}" for line in lines[-LINES_SHOWN:])
    return f"the end of its log {log}:\n{shown}" if lines else f"its log {log} is empty"


class ServerProcess:
    """A child that runs ``main()`` of a module, and has reported that it is ready.

    Its command line ends with the descriptor to which it writes one line of JSON when it is ready (:func:`report_ready`), or
    its error (:func:`report_error`).

    Attributes:
        ready: the values that it reported.
    """

    def __init__(
        self, what: str, module: str, words: Sequence[str], *, log: Path, limit_s: float, pass_fds: Sequence[int] = ()
    ) -> None:
        """Start the child and wait until it is ready.

        Args:
            what: the name of the server in errors.
            module: the module with ``main()``.
            words: its arguments.
            log: the file that takes its standard output and standard error.
            limit_s: the longest wait in seconds.
            pass_fds: descriptors that it inherits.

        Raises:
            RigError: the error that the child reported; ``TestServerFailed`` if it ended, or was not ready in time.
        """
        self.what, self.log = what, log
        log.parent.mkdir(parents=True, exist_ok=True)
        report_r, report_w = os.pipe2(os.O_CLOEXEC)
        try:
            with log.open("ab") as output:
                self._child = subprocess.Popen(
                    [*quick_start.command(module), *words, str(report_w)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[*pass_fds, report_w],
                    start_new_session=True,
                    cwd="/",
                    env=child_environment(),
                )
        except BaseException:
            os.close(report_r)
            raise
        finally:
            os.close(report_w)
        try:
            self.ready = self._await_ready(report_r, limit_s)
        except BaseException:
            self.end()
            raise
        finally:
            os.close(report_r)

    @property
    def pid(self) -> int:
        """The process id of the child."""
        return self._child.pid

    def _await_ready(self, report_fd: int, limit_s: float) -> dict[str, Any]:
        deadline_ns = SYSTEM_CLOCK.monotonic_ns() + int(limit_s * 1e9)
        data = b""
        while not data.endswith(b"\n"):
            left_ms = (deadline_ns - SYSTEM_CLOCK.monotonic_ns()) // 1_000_000
            poll = select.poll()
            poll.register(report_fd, select.POLLIN)
            if left_ms <= 0 or not poll.poll(left_ms):
                self._child.kill()
                raise self.failed(f"was not ready within {limit_s:g} s")
            more = os.read(report_fd, 1 << 16)
            if not more:
                status = self._child.wait()
                raise self.failed(f"ended while it started ({_ending(status)})")
            data += more
        report = json.loads(data)
        if "error" in report:
            raise RigError(Code.of(report["error"]["code"]), report["error"]["message"])
        ready: dict[str, Any] = report["ready"]
        return ready

    def failed(self, how: str) -> RigError:
        """Return the error for a failure of this server, with the end of its log."""
        return RigError(Code.TestServerFailed, f"{self.what} {how}; {log_end(self.log)}")

    def is_running(self) -> bool:
        """Return True if the child has not ended."""
        return self._child.poll() is None

    def detach(self) -> None:
        """Leave the child running: it ends by itself."""
        self._child.returncode = 0  # so that Popen neither waits for it nor warns about it

    def end(self) -> None:
        """End the child and wait for that; after ``END_S`` seconds it is killed.  Does nothing if it has ended."""
        if self._child.poll() is not None:
            return
        self._child.send_signal(signal.SIGTERM)
        try:
            self._child.wait(END_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"


def ignore_end_signals() -> None:
    """Ignore in the child the signals that end it, except while a receiver of trio is open: the end is not interrupted."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def report_ready(fd: int, **values: object) -> None:
    """Report in the child that it is ready, with values for the parent, and close the descriptor."""
    _report(fd, {"ready": values})


def report_error(fd: int, error: RigError) -> None:
    """Report in the child the error with which it fails."""
    _report(fd, {"error": {"code": str(error.code), "message": error.message}})


def _report(fd: int, what: dict[str, object]) -> None:
    try:
        os.write(fd, json.dumps(what).encode() + b"\n")
    except OSError:  # the parent has ended, or the readiness was reported before
        return
    os.close(fd)
