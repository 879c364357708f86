"""Calls the script of an application-consistent point: the child process of ``replication.guests.app_scripts``.

Usage: ``python -m siterig.blockfs.guests.script_guard RECORD SCRIPT LIMIT_S HOLD_S MODE``, MODE ``both`` or ``post``.  It
locks the file RECORD and calls ``SCRIPT --pre``.  After success it waits for a line or the end of its standard input, for
SIGTERM, or for HOLD_S seconds.  Then, in any case, it calls ``SCRIPT --post`` and deletes RECORD.  With ``post`` it does
only the latter, once it has the lock, and if RECORD still exists.  It is a process of its own because nothing else
guarantees the call with ``--post``: if the parent is killed, this process sees the end of the pipe.  If this process is
killed, RECORD remains, and its parent, or the next agent, starts another with ``post``.

It writes a line of JSON after each step: ``{"step": "pre" | "post", "status": N, "timed_out": BOOL, "output": TEXT,
"more_bytes": N}``, and before it waits ``{"step": "hold", "until_ns": N}`` with a time on CLOCK_MONOTONIC.

The script runs with the variables :data:`ENVIRONMENT`, in the folder ``/``, without standard input, in a session of its own.
A call that lasts for more than LIMIT_S seconds is ended with its process group, by SIGTERM and, two seconds later, SIGKILL.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys

from siterig.blockfs.core.clock import SYSTEM_CLOCK

OUTPUT_BYTES_MAX = 16 << 10
"""The bytes of the output of one call that are kept: its first ones."""
END_S = 2.0
"""Time between SIGTERM and SIGKILL for a call that is ended."""
NOT_STARTED = 127
ENVIRONMENT = ("PATH", "HOME", "USER", "LANG", "SITERIG_VM", "SITERIG_POINT")
"""The whole environment of the script."""
_READ_BYTES = 1 << 16


def _say(**values: object) -> None:
    # The parent may have ended; the call with --post matters more than the message.
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(values).encode() + b"\n")


def _now_s() -> float:
    return SYSTEM_CLOCK.monotonic_ns() / 1e9


class _Output:
    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd: int | None = fd
        self.kept = b""
        self.more_bytes = 0

    def read(self) -> None:
        """Read what there is; keep the first bytes and count the others."""
        while self.fd is not None:
            try:
                data = os.read(self.fd, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                self.fd = None
                return
            room = OUTPUT_BYTES_MAX - len(self.kept)
            self.kept += data[:room]
            self.more_bytes += max(0, len(data) - room)


def call(step: str, script: str, limit_s: float) -> bool:
    """Call the script with ``--STEP``, write the result, and return True if it succeeded in time."""
    try:
        child = subprocess.Popen(
            [script, f"--{step}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd="/",
            env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
        )
    except OSError as error:
        _say(step=step, status=NOT_STARTED, timed_out=False, output=f"{script}: {error.strerror}", more_bytes=0)
        return False
    assert child.stdout is not None  # noqa: S101 (for the type checker)
    output = _Output(child.stdout.fileno())
    ended = os.pidfd_open(child.pid)
    timed_out = not _wait(ended, output, limit_s)
    for number in (signal.SIGTERM, signal.SIGKILL) if timed_out else ():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        if _wait(ended, output, END_S):
            break
    os.close(ended)
    with contextlib.suppress(subprocess.TimeoutExpired):  # a call in the kernel may not end; the guard must not wait for it
        child.wait(timeout=END_S)
    text = output.kept.decode(errors="replace")
    _say(step=step, status=child.returncode, timed_out=timed_out, output=text, more_bytes=output.more_bytes)
    return not timed_out and child.returncode == 0


def _wait(ended: int, output: _Output, limit_s: float) -> bool:
    """Read output until the process has ended; return False if the limit has passed before."""
    deadline = _now_s() + limit_s
    while True:
        watched = [ended] if output.fd is None else [ended, output.fd]
        ready, _, _ = select.select(watched, [], [], max(0.0, deadline - _now_s()))
        output.read()
        if ended in ready:
            return True
        if not ready:
            return False


def main(record: str, script: str, limit_s: float, hold_s: float, mode: str) -> int:
    """Do the steps of the module's docstring; return 0."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wakeup, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os.write(waker, b"t") and None)
    lock = os.open(record, os.O_RDONLY | os.O_CLOEXEC) if mode == "both" else _opened(record)
    if lock is None:
        return 0
    fcntl.flock(lock, fcntl.LOCK_EX)
    if mode == "both":
        if call("pre", script, limit_s):
            until_ns = SYSTEM_CLOCK.monotonic_ns() + int(hold_s * 1e9)
            _say(step="hold", until_ns=until_ns)
            select.select([0, wakeup], [], [], hold_s)
    elif not os.path.exists(record):  # noqa: PTH110 (another guard has called the script; few modules are imported)
        return 0
    call("post", script, limit_s)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(record)  # noqa: PTH108
    return 0


def _opened(record: str) -> int | None:
    try:
        return os.open(record, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5]))
