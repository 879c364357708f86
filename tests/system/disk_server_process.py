"""Starts, kills and cleans up after :mod:`tests.system.disk_server`."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


class DiskServer:
    """The process; ``mountpoint/web01/os.img`` is a disk."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "disks"
        self.mountpoint = folder / "mnt"
        self.os_disk = self.mountpoint / "web01" / "os.img"
        self.data_disk = self.mountpoint / "web01" / "data.img"
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Returns when the mount answers."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.system.disk_server", str(self.root), str(self.mountpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while (line := self._line()) != "ready":
            assert line, "the disk server ended before it was ready"

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def cut(self) -> int:
        """Take a cut over both disks; its position."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write("cut\n")
        self._process.stdin.flush()
        return int(self._line())

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._end()

    def stop(self) -> None:
        """End in order."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._end()

    def _end(self) -> None:
        assert self._process is not None
        self._process.wait(timeout=30)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def clean_up(self) -> None:
        """Leave no process and no mount."""
        if self._process is not None:
            self.kill()
        subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, capture_output=True)
