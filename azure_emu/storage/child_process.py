"""A child process that ends with this one, and the wait for its end."""

from __future__ import annotations

import os
import signal
import subprocess

import trio

KILLED_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--")
"""First words of a command line whose process is killed when the *thread* that starts it ends.

So start it with :class:`subprocess.Popen` on the trio thread: ``trio.run_process`` forks in a worker thread.  The signal is
SIGKILL, because a child that hangs in its clean-up must not remain either.
"""


async def wait(child: subprocess.Popen[bytes]) -> int:
    """Wait for the exit status, without polling and without a thread."""
    if (status := child.poll()) is not None:
        return status
    pidfd = os.pidfd_open(child.pid)
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    return child.wait()


def how_it_ended(status: int) -> str:
    """Return words for an exit status as :class:`subprocess.Popen` has it."""
    return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
