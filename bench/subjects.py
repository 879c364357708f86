"""The subjects of the comparison; they work in turn on the same file of the host, so the blocks are the same for each."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import trio

from bench.servers import passthrough_ll
from siterig.blockfs.host.disk_host import DiskHost

DISK_BYTES = 64 << 30
"""The size of the sparse disk: large enough that the unsent log of some seconds stays below half of it."""


@dataclass(frozen=True, slots=True)
class Place:
    """The folder of the subjects: the backing file is ``root/bench/os.img``, a disk of a disk host at ``root``."""

    folder: Path
    launcher: list[str]
    """Words before the command of each server, which pin it to a core."""

    @property
    def root(self) -> Path:
        """The folder of the disk host."""
        return self.folder / "root"

    @property
    def image(self) -> Path:
        """The backing file."""
        return self.root / "bench" / "os.img"

    @property
    def mountpoint(self) -> Path:
        """The mount point of a subject."""
        return self.folder / "mnt"

    def make(self) -> None:
        """Make the disk, all holes."""
        self.mountpoint.mkdir()

        async def create() -> None:
            host = DiskHost(self.root, self.mountpoint)
            await host.create_disk(vm="bench", name="os", size_bytes=DISK_BYTES)
            host.close()

        trio.run(create)


@contextlib.contextmanager
def bare_file(place: Place) -> Iterator[Path]:
    """Yield the host's file system, without a layer between."""
    yield place.image


@contextlib.contextmanager
def loop_device(place: Place) -> Iterator[Path]:
    """Return a loop device over the bare file, as ``losetup`` makes it: through the host's cache."""
    done = subprocess.run(["losetup", "--find", "--show", str(place.image)], stdout=subprocess.PIPE, text=True, check=True)
    device = done.stdout.strip()
    try:
        yield Path(device)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


@contextlib.contextmanager
def _served(place: Place, command: list[str], name: str, checkout: Path | None = None) -> Iterator[Path]:
    """A server process, in the folder of a checkout if one is given, and the file in its mount."""
    server = subprocess.Popen([*place.launcher, *command], cwd=checkout)
    disk = place.mountpoint / name
    try:
        while not disk.exists():
            if server.poll() is not None:
                raise SystemExit(f"{' '.join(command)}: ended with exit status {server.returncode}")
            time.sleep(0.05)
        yield disk
    finally:
        subprocess.run(["umount", str(place.mountpoint)], check=False)
        try:
            server.wait(timeout=60)
        finally:
            server.kill()
    if server.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: ended with exit status {server.returncode}")


def libfuse_example(place: Place) -> contextlib.AbstractContextManager[Path]:
    """Return the peer in C, with its defaults (multi-threaded, ``cache=auto``)."""
    program, _ = passthrough_ll.build()
    command = [str(program), "-f", "-o", f"source={place.image.parent}", str(place.mountpoint)]
    return _served(place, command, place.image.name)


def naive_pyfuse3(place: Place) -> contextlib.AbstractContextManager[Path]:
    """Return the peer in Python."""
    command = [sys.executable, "-m", "bench.servers.naive_passthrough", str(place.image), str(place.mountpoint)]
    return _served(place, command, "os.img")


@dataclass(frozen=True, slots=True)
class Ours:
    """A disk of a disk host, by one of the two paths."""

    log: str
    path: str
    checkout: Path | None = None
    """Another checkout of siterig with its environment, whose engine is measured."""

    def __call__(self, place: Place) -> contextlib.AbstractContextManager[Path]:
        """Serve it."""
        python = sys.executable if self.checkout is None else str(self.checkout / ".venv" / "bin" / "python")
        server = Path(__file__).parent / "servers" / "disk_server.py"  # with any engine
        command = [python, str(server), str(place.root), str(place.mountpoint), self.log, self.path]
        return _served(place, command, "bench/os.img", self.checkout)
