"""Start, call, kill and clean up the process of :mod:`tests.support.disks.disk_server`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.disks.disk_server import DISK_BYTES
from tests.support.warm_command import start_program

SERVER = "tests.support.disks.disk_server"
VM = "web01"

CAN_MAKE_HOLES = frozenset({"server", "io_uring"})
"""The front ends that accept discards and report holes; pyfuse3 cannot."""


ENABLE_URING = Path("/sys/module/fuse/parameters/enable_uring")


def skip_unless_possible(front_end: str) -> None:
    """Skip a test of FUSE over io_uring if the machine does not allow it; the test does not change the setting."""
    if front_end == "io_uring" and (not ENABLE_URING.exists() or ENABLE_URING.read_text() != "Y\n"):
        pytest.skip(f"FUSE over io_uring is not enabled: {ENABLE_URING}")


class DiskServer:
    """A disk server's process; ``mountpoint/web01/os.img`` is a disk."""

    def __init__(
        self, folder: Path, *, disk_bytes: int = DISK_BYTES, front_end: str = "server", uid: int | None = None
    ) -> None:
        self.folder = folder
        self.front_end = front_end
        self._uid = uid
        self.root = folder / "disks"
        self.mountpoint = folder / "mnt"
        self.disk_bytes = disk_bytes
        self.os_disk = self.disk("os")
        self.data_disk = self.disk("data")
        self._process: subprocess.Popen[str] | None = None

    def disk(self, name: str) -> Path:
        """Return the path of a disk in the mount."""
        return self.mountpoint / VM / f"{name}.img"

    def backing(self, name: str) -> Path:
        """Return the path of the disk's file in the server's folder."""
        return self.root / VM / f"{name}.img"

    def logs(self, name: str) -> list[Path]:
        """Return the segments of a disk, oldest first."""
        return sorted((self.root / VM).glob(f"{name}.*.hrl"))

    def start(self) -> None:
        """Start the server, and wait until the mount answers."""
        self.launch()
        assert self._line() == "ready", "the disk server ended before it was ready"

    def launch(self) -> None:
        """Start the server, and do not wait for it."""
        words = [self.root, self.mountpoint, self.disk_bytes, self.front_end, *([] if self._uid is None else [self._uid])]
        self._process = start_program(SERVER, words)

    def _line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def _tell(self, line: str) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def call(self, method: str, **arguments: object) -> Any:
        """Call the disk host (:class:`siterig.blockfs.contracts.control.DiskHostControl`), and return its decoded answer."""
        self.ask(method, **arguments)
        return json.loads(self._line())

    def ask(self, method: str, **arguments: object) -> None:
        """Send a call, and do not wait for the answer."""
        self._tell(json.dumps([method, arguments]))

    def counters(self, name: str) -> dict[str, dict[str, int]]:
        """Return the number (``ops``) and ``bytes`` of the disk's requests by kind."""
        requests = self.call("counters", vm=VM, disk=name)["requests"]
        return {kind: {key: found[key] for key in ("ops", "bytes")} for kind, found in requests.items()}

    def stall(self) -> None:
        """Block Python in the server until :meth:`go_on`."""
        assert self.call("stall") == "stalled"

    def go_on(self) -> None:
        """End :meth:`stall`."""
        self._tell("")
        assert json.loads(self._line()) == "back"

    def cut(self) -> int:
        """Take a cut over both disks, and return its position."""
        position = self.call("cut", vm=VM, kind="CrashConsistent", name="test")["position"]
        assert isinstance(position, int)
        return position

    def kill(self) -> None:
        """Kill the process with SIGKILL, and wait for its end."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> None:
        """End the process cleanly."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert self.wait() == 0

    def wait(self) -> int:
        """Wait for the end of the process, and return its exit status."""
        assert self._process is not None
        status = self._process.wait(timeout=60)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None
        return status

    def clean_up(self) -> None:
        """Kill the process if it runs, and remove the mount."""
        if self._process is not None:
            self.kill()
        subprocess.run(["umount", "-l", str(self.mountpoint)], check=False, capture_output=True)


StartServer = Callable[[int], DiskServer]
"""A function that starts a disk server whose disks have this many bytes."""


def message_of_failed_server(root: Path, mountpoint: Path, disk_bytes: int) -> str:
    """Start a server that cannot start, and return its error output."""
    done = subprocess.run(
        [sys.executable, "-m", SERVER, str(root), str(mountpoint), str(disk_bytes), "server"],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode != 0
    return done.stderr
