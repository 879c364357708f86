"""The programs that keep recovery points: siterig, a chain of qcow2 files, and btrfs snapshots.

Each receives the same writes and points.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, cast

from bench.site_history import BLOCK_BYTES, SiteHistory
from siterig.azure_emu.disks.store import ManagedDiskStore

WAIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Opened:
    """A point that can be read: the options for fio, and the seconds from the request to the first block."""

    fio: tuple[str, ...]
    took_s: float


class Subject(Protocol):
    """A program that keeps points of one disk, whose first ``data_bytes`` are written before the first point."""

    def write(self, blocks: int) -> None:
        """Change this number of random blocks."""
        ...

    def create(self, index: int) -> float:
        """Create point ``index``, and return the duration in seconds."""
        ...

    def opened(self, index: int) -> contextlib.AbstractContextManager[Opened]:
        """Open a point read-only for the duration of the block."""
        ...

    def close(self) -> None:
        """Remove everything that the subject created."""
        ...


def run(*command: object) -> str:
    """Run a program to its end, and return its output."""
    return subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=True).stdout


class Siterig(Subject):
    """A managed disk, its points read through a recovery mount.  ``create`` is the applier's part with a TAG alone."""

    def __init__(self, folder: Path, size_bytes: int, data_bytes: int) -> None:
        self._folder = folder
        self._data_bytes = data_bytes
        self._history = SiteHistory(size_bytes, seed=1)
        store = folder / "stores" / self._history.disk_id
        store.parent.mkdir()
        self._store = ManagedDiskStore.create(store, disk_id=self._history.disk_id, size_bytes=size_bytes, created_ns=1)
        for part, data in self._history.initial(data_bytes):
            self._store.apply_part(part, data)
        self._positions: list[int] = []
        self._server = PointServer(folder / "host", folder / "mnt", store.parent)

    def write(self, blocks: int) -> None:
        self._store.apply_part(*self._history.log_part(blocks, within_bytes=self._data_bytes))

    def create(self, index: int) -> float:
        part, data = self._history.log_part(0, tag=f"point {index}")
        began = time.perf_counter()
        self._store.apply_part(part, data)
        took = time.perf_counter() - began
        self._positions.append(self._history.position)
        return took

    @contextlib.contextmanager
    def opened(self, index: int) -> Iterator[Opened]:
        began = time.perf_counter()
        path = self._server.mount(f"p{index}", self._history.disk_id, self._positions[index])
        _read_first(path)
        took = time.perf_counter() - began
        try:
            yield Opened(_file(path), took)
        finally:
            self._server.unmount(f"p{index}")

    def close(self) -> None:
        self._server.close()
        self._store.close()
        self._history.forget()


class PointServer:
    """``python -m bench.servers.point_server``: a disk host of the recovery side."""

    def __init__(self, root: Path, mountpoint: Path, stores: Path) -> None:
        command = [sys.executable, "-m", "bench.servers.point_server", str(root), str(mountpoint), str(stores)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._to, self._from = cast("IO[str]", self._process.stdin), cast("IO[str]", self._process.stdout)
        self._answer()

    def _answer(self) -> Any:
        line = self._from.readline()
        if not line:
            raise SystemExit("the server of recovery points has ended")
        return json.loads(line)

    def _ask(self, *words: object) -> Any:
        self._to.write(json.dumps(words) + "\n")
        self._to.flush()
        return self._answer()

    def mount(self, name: str, disk_id: str, position: int) -> Path:
        """Mount a point, and return the path of its file."""
        return Path(self._ask("mount", name, disk_id, position))

    def unmount(self, name: str) -> None:
        """Unmount a point."""
        self._ask("unmount", name)

    def plain(self, size_bytes: int) -> Path:
        """Create a raw disk, and return the path of its file."""
        return Path(self._ask("plain", size_bytes))

    def close(self) -> None:
        """End the server."""
        self._to.close()
        self._process.wait(timeout=WAIT_S)


class QcowChain(Subject):
    """Each point is a qcow2 file over the one before; it is read through ``qemu-nbd``."""

    def __init__(self, folder: Path, size_bytes: int, data_bytes: int) -> None:
        self._folder = folder
        self._blocks = data_bytes // BLOCK_BYTES
        self._dice = SiteHistory(size_bytes, seed=1)
        base = folder / "base.raw"
        with base.open("xb") as file:
            file.truncate(size_bytes)
            for _ in range(data_bytes >> 20):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", self._file(0))

    def _file(self, index: int) -> Path:
        return self._folder / f"{index:04d}.qcow2"

    def write(self, blocks: int) -> None:
        newest = max(self._folder.glob("*.qcow2"))
        commands = [
            f"write -q -P {1 + number % 255} {block * BLOCK_BYTES} {BLOCK_BYTES}"
            for number, block in enumerate(self._dice.blocks(blocks, self._blocks))
        ]
        run("qemu-io", "-f", "qcow2", *(word for command in commands for word in ("-c", command)), newest)

    def create(self, index: int) -> float:
        began = time.perf_counter()
        run("qemu-img", "create", "-q", "-f", "qcow2", "-b", self._file(index), "-F", "qcow2", self._file(index + 1))
        return time.perf_counter() - began

    @contextlib.contextmanager
    def opened(self, index: int) -> Iterator[Opened]:
        path = self._folder / "nbd.sock"
        began = time.perf_counter()
        server = subprocess.Popen(
            ["qemu-nbd", "--read-only", "--persistent", "--shared=8", "-f", "qcow2", "-k", str(path), str(self._file(index))]
        )
        try:
            _read_first_by_nbd(path, server)
            took = time.perf_counter() - began
            yield Opened(("--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}"), took)
        finally:
            server.terminate()
            server.wait(timeout=WAIT_S)

    def close(self) -> None:
        self._dice.forget()


class Btrfs(Subject):
    """A file on btrfs on a loop device; each point is a read-only snapshot of its subvolume."""

    def __init__(self, folder: Path, size_bytes: int, data_bytes: int) -> None:
        self._folder = folder
        self._blocks = data_bytes // BLOCK_BYTES
        self._dice = SiteHistory(size_bytes, seed=1)
        self._mnt = folder / "btrfs"
        self._mnt.mkdir()
        device = folder / "btrfs.img"
        with device.open("xb") as file:
            file.truncate(2 * size_bytes)
        run("mkfs.btrfs", "-q", device)
        run("mount", "-o", "loop", device, self._mnt)
        run("btrfs", "subvolume", "create", self._mnt / "disk")
        with (self._mnt / "disk" / "os.img").open("xb") as file:
            file.truncate(size_bytes)
            for _ in range(data_bytes >> 20):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())

    def write(self, blocks: int) -> None:
        with (self._mnt / "disk" / "os.img").open("r+b", buffering=0) as file:
            for block in self._dice.blocks(blocks, self._blocks):
                os.pwrite(file.fileno(), os.urandom(BLOCK_BYTES), block * BLOCK_BYTES)

    def create(self, index: int) -> float:
        # Earlier writes must be on stable storage in the snapshot, as in the points of the other subjects.
        began = time.perf_counter()
        run("btrfs", "subvolume", "snapshot", "-r", self._mnt / "disk", self._mnt / f"p{index}")
        run("sync", "-f", self._mnt)
        return time.perf_counter() - began

    @contextlib.contextmanager
    def opened(self, index: int) -> Iterator[Opened]:
        path = self._mnt / f"p{index}" / "os.img"
        began = time.perf_counter()
        _read_first(path)
        yield Opened(_file(path), time.perf_counter() - began)

    def close(self) -> None:
        run("umount", self._mnt)
        self._dice.forget()


def _file(path: Path) -> tuple[str, ...]:
    return ("--ioengine=psync", "--direct=1", f"--filename={path}")


def _read_first(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        file.read(BLOCK_BYTES)


def _read_first_by_nbd(path: Path, server: subprocess.Popen[bytes]) -> None:
    """Read the first block as soon as the server listens (NBD protocol, doc/proto.md: fixed newstyle, default export)."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError), socket.socket(socket.AF_UNIX) as peer:
            peer.connect(str(path))
            _received(peer, 8 + 8 + 2)  # two magic numbers, flags
            fixed_newstyle_without_zeros, export_name = 3, 1
            peer.sendall(struct.pack(">I8sII", fixed_newstyle_without_zeros, b"IHAVEOPT", export_name, 0))
            _received(peer, 8 + 2)  # size, flags
            peer.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, 0, 0, BLOCK_BYTES))
            _received(peer, 4 + 4 + 8 + BLOCK_BYTES)
            return
        time.sleep(0.0005)
    raise SystemExit(f"qemu-nbd does not answer (exit status {server.poll()})")


def _received(peer: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        some = peer.recv(count - len(found))
        if not some:
            raise SystemExit("qemu-nbd ended the connection")
        found += some
    return found
