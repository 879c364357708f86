"""Runs a command of a shell that ends with this process's standard input: ``python -m ... COMMAND``.

At the end of the input the command and all its children get SIGTERM, after ``PATIENCE_S`` SIGKILL.  So no process is left
when the program that started this one is killed.  The exit status is the command's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

PATIENCE_S = 5.0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of the input, then end the process group."""
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def main(command: str) -> int:
    """Run the command, and return its exit status; 128 and the number of the signal that ended it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # only the parent decides
    process = subprocess.Popen(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, start_new_session=True)
    threading.Thread(target=_end, args=(process,), daemon=True).start()
    status = process.wait()
    with contextlib.suppress(ProcessLookupError):  # what the command left in the background
        os.killpg(process.pid, signal.SIGKILL)
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
