"""A process that holds a lease of a mounted point or a copy."""

from __future__ import annotations

import subprocess
import sys

from siterig.blockfs.core.host_process import HostProcess

SAY = (
    "import sys; from siterig.blockfs.core.host_process import HostProcess; "
    "print(HostProcess.own().model_dump_json(), flush=True);"
)


class Borrower:
    """A process that lives until it is killed."""

    def __init__(self) -> None:
        self.popen = subprocess.Popen([sys.executable, "-c", SAY + "sys.stdin.read()"], stdin=-1, stdout=-1)
        assert self.popen.stdout is not None
        self.process = HostProcess.model_validate_json(self.popen.stdout.readline())

    def kill(self) -> None:
        """Kill the process, and wait for its end."""
        self.popen.kill()
        self.popen.communicate()
