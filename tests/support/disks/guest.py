"""A guest's side of a disk: a loop device on it, a file system on that, a tree of files in there."""

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
"""Each changes nothing, and ends with a status other than 0 for anything that is wrong."""


def run(*command: str | Path) -> str:
    """Return the output; the test fails, and shows the output, if the program exits with another status than 0."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: exit status {done.returncode}: {done.stdout}"
    return done.stdout


def write_durably(path: Path, offset: int, data: bytes) -> None:
    """Write, and fsync."""
    fd = os.open(path, os.O_RDWR)
    try:
        assert os.pwrite(fd, data, offset) == len(data)
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def loop_device(disk: Path, *, direct_io: bool) -> Iterator[Path]:
    """A loop device on a disk."""
    device = Path(run("losetup", "--find", "--show", f"--direct-io={'on' if direct_io else 'off'}", disk).strip())
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextlib.contextmanager
def mounted(device: Path, folder: Path) -> Iterator[Path]:
    """A file system, mounted."""
    folder.mkdir(exist_ok=True)
    run("mount", device, folder)
    try:
        yield folder
    finally:
        run("umount", folder)


def make_tree(folder: Path, rng: random.Random, *, files: int) -> None:
    """Files in folders: empty ones, small ones, some that have holes, some of several MiB."""
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
