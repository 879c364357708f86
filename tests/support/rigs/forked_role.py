"""A role for tests of the fork server: it prints what it sees of itself, reports that it is ready, and does as told."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path


def main() -> None:
    """Run with the arguments ``wait`` or ``exit CODE``, then ``CHANNEL_FD PARENT_PID``."""
    order, channel = sys.argv[1:-2], int(sys.argv[-2])
    facts = {
        "pid": os.getpid(),
        "parents": [os.getppid(), int(sys.argv[-1])],
        "session": os.getsid(0),
        "name": Path("/proc/self/comm").read_text().strip(),
        "words": Path("/proc/self/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")[4:],
        "others": sorted(
            os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 (a pipe is no path)
            for name in os.listdir("/proc/self/fd")  # noqa: PTH208
            if int(name) > 2 and int(name) != channel and Path(f"/proc/self/fd/{name}").exists()
        ),
    }
    print(json.dumps(facts), flush=True)
    os.write(channel, b"{}\n")
    if order[0] == "wait":
        signal.pause()
    sys.exit(int(order[1]))
