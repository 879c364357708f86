"""Starts, asks, kills and cleans up after :mod:`tests.system.disk_server`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.system.disk_server import DISK_BYTES

VM = "web01"
FRONT_ENDS = ("pyfuse3",)
"""Who answers the kernel's requests on disks."""
CAN_MAKE_HOLES: frozenset[str] = frozenset()
"""Front ends that take a discard and tell what is a hole; pyfuse3 cannot."""


class DiskServer:
    """The process; ``mountpoint/web01/os.img`` is a disk."""

    def __init__(self, folder: Path, *, disk_bytes: int = DISK_BYTES, front_end: str = "pyfuse3") -> None:
        self.folder = folder
        self.front_end = front_end
        self.root = folder / "disks"
        self.mountpoint = folder / "mnt"
        self.disk_bytes = disk_bytes
        self.os_disk = self.disk("os")
        self.data_disk = self.disk("data")
        self._process: subprocess.Popen[str] | None = None

    def disk(self, name: str) -> Path:
        """The disk in the mount."""
        return self.mountpoint / VM / f"{name}.img"

    def backing(self, name: str) -> Path:
        """The same disk's file in the server's folder."""
        return self.root / VM / f"{name}.img"

    def logs(self, name: str) -> list[Path]:
        """The change logs that there are of a disk, oldest first."""
        return sorted((self.root / VM).glob(f"{name}.*.hrl"))

    def start(self) -> None:
        """Returns when the mount answers."""
        command = [sys.executable, "-m", "tests.system.disk_server", str(self.root), str(self.mountpoint)]
        self._process = subprocess.Popen(
            [*command, str(self.disk_bytes)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        while (line := self._line()) != "ready":
            assert line, "the disk server ended before it was ready"

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def call(self, method: str, **arguments: object) -> Any:
        """Ask the disk host (:class:`blockfs.control.DiskHostControl`); its answer as of JSON."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([method, arguments]) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def cut(self) -> int:
        """Take a cut over both disks; its position."""
        position = self.call("cut", vm=VM, kind="CrashConsistent", name="test")["position"]
        assert isinstance(position, int)
        return position

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
