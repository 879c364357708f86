"""The guest's side of a disk: a loop device, a file system on it, and a tree of files."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

MKFS = {
    "ext4": ("mkfs.ext4", "-q", "-F"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
FSCK = {
    "ext4": ("e2fsck", "-fn"),
    "xfs": ("xfs_repair", "-n"),
    "btrfs": ("btrfs", "check", "--readonly", "--check-data-csum"),
}
"""Commands that check a file system without changing it; the exit status is not 0 if they find an error."""


def run(*command: str | Path) -> str:
    """Run a program and return its output; the test fails and shows the output if the exit status is not 0."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit status {done.returncode}: {done.stdout}"
    return done.stdout


def write_durably(path: Path, offset: int, data: bytes) -> None:
    """Write bytes to a file, and call fsync."""
    fd = os.open(path, os.O_RDWR)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def loop_device(disk: Path, *, direct_io: bool) -> Iterator[Path]:
    """Attach a loop device to a disk, and detach it afterwards."""
    device = Path(run("losetup", "--find", "--show", f"--direct-io={'on' if direct_io else 'off'}", disk).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: Path, folder: Path) -> Iterator[Path]:
    """Mount a file system, and unmount it afterwards."""
    folder.mkdir(exist_ok=True)
    run("mount", device, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def make_tree(folder: Path, rng: random.Random, *, files: int) -> None:
    """Create files in folders: empty and small ones, and some of several MiB with holes."""
    for number in range(files):
        path = folder / f"d{number % 7}" / f"e{number % 3}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        size = rng.choice([0, 1, rng.randrange(5_000), rng.randrange(200_000), rng.randrange(200_000)])
        with path.open("wb") as file:
            file.write(rng.randbytes(size))
            if number % 50 == 0:
                file.seek(3 << 20, os.SEEK_CUR)
                file.write(rng.randbytes(2 << 20))


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of a tree with its contents."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
