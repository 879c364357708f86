"""Freezes file systems for the time of a pipe: the child process of ``loop_devices.frozen``.

Usage: ``python -m siterig.blockfs.guests.freezer TIMEOUT_S MOUNTPOINT...``.  It freezes the file systems in the order
given, writes the line ``frozen``, and waits for a line or the end of its standard input, for SIGTERM, or for the time limit;
then it thaws all of them in reverse order.  It is a process of its own because nothing else guarantees a thaw: if the parent
is killed, this process sees the end of the pipe.

The freeze of a file system whose disk does not answer cannot be interrupted.  So a thread freezes, and at the time limit the
others are thawed, the line ``expired`` is written, and this process stays until that freeze has ended, to thaw it, too.

Between freeze and thaw it allocates nothing on a file system and writes only to its pipe.  It reads CLOCK_MONOTONIC itself,
because it must import as little as possible.

Exit status: 0 thawed in time, 1 could not freeze, 3 the time limit passed, 4 stopped by SIGTERM.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import threading

from siterig.blockfs.core.clock import SYSTEM_CLOCK

FIFREEZE = 0xC0045877
FITHAW = 0xC0045878
EXIT_THAWED, EXIT_FAILED, EXIT_EXPIRED, EXIT_STOPPED = 0, 1, 3, 4


def _say(line: str) -> None:
    # The parent may have ended; the thaw matters more than the message.
    with contextlib.suppress(OSError):
        os.write(1, line.encode() + b"\n")


def _now_s() -> float:
    return SYSTEM_CLOCK.monotonic_ns() / 1e9


def _wait(wakeup: int, deadline: float) -> int:
    """Wait for a line, the end of the input, SIGTERM or the deadline (by the monotonic clock); return the exit status."""
    readable, _, _ = select.select([0, wakeup], [], [], max(0.0, deadline - _now_s()))
    if wakeup in readable:
        return EXIT_STOPPED
    # If both happened, the parent was late and must learn that the time limit had passed.
    return EXIT_THAWED if readable and _now_s() < deadline else EXIT_EXPIRED


class _Freeze:
    """Freezes file systems one after the other in a thread of its own, until all are frozen, one refuses, or it is ended."""

    def __init__(self, mountpoints: list[str]) -> None:
        self._mountpoints = mountpoints
        self._lock = threading.Lock()
        self._held: list[int] = []
        self._is_over = False
        self.refusal: str | None = None
        self.done, self._write_done = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        for mountpoint in self._mountpoints:
            try:
                fd = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                if self._is_over:
                    break
                fcntl.ioctl(fd, FIFREEZE, 0)
            except OSError as error:
                self.refusal = f"{mountpoint}: {error.strerror}"
                break
            with self._lock:
                self._held.append(fd)
                if self._is_over:
                    self._thaw()
                    break
        os.write(self._write_done, b"d")

    def end(self) -> None:
        """Thaw what is frozen now, in reverse order; what is being frozen is thawed by the thread."""
        with self._lock:
            self._is_over = True
            self._thaw()

    def wait(self) -> None:
        """Wait until the thread has ended: then nothing is frozen."""
        self._thread.join()

    def _thaw(self) -> None:
        while self._held:
            # If another program thawed it, nothing is left to do.
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._held.pop(), FITHAW, 0)


def main(timeout_s: float, mountpoints: list[str]) -> int:
    """Freeze, wait and thaw, as the module's docstring describes; return the exit status."""
    # SIGINT reaches the whole process group of the terminal; the parent decides on it.  SIGTERM only ends the wait.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wakeup, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.signal(signal.SIGTERM, lambda _number, _frame: os.write(waker, b"t") and None)
    deadline = _now_s() + timeout_s
    freeze = _Freeze(mountpoints)
    try:
        select.select([freeze.done, 0, wakeup], [], [], max(0.0, deadline - _now_s()))
        is_done = bool(select.select([freeze.done], [], [], 0)[0])
        if is_done and freeze.refusal is not None:
            _say(f"failed {freeze.refusal}")
            return EXIT_FAILED
        if not is_done or _now_s() >= deadline:
            freeze.end()
            _say("expired")
            return EXIT_EXPIRED
        _say("frozen")
        return _wait(wakeup, deadline)
    finally:
        freeze.end()
        freeze.wait()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
