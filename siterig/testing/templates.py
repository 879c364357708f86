"""The images from which the disks of tests begin: made once, then shared read-only by all tests and workers of a session.

Fault contract: an image appears under its name complete or not at all.  Its file system is mounted below the folder of the
disk server meanwhile, which releases it if this process is killed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests.loop_devices import BYTES_MIN
from siterig.cli.doctor import ThisMachine
from siterig.testing.crash_states import copy_sparse
from siterig.testing.disk_handles import DiskHandle, FileSystemHandle
from siterig.testing.servers.disk_client import DiskClient
from siterig.testing.settings import Setup

_OPTIONS = {
    # No lazy initialization: a kernel thread would write during the test.
    "ext4": ["-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=1"],
    "xfs": ["-f", "-K"],
}
_PACKAGES = {"ext4": "e2fsprogs", "xfs": "xfsprogs"}
_functions: list[Callable[[Path], object]] = []
"""The functions that have filled templates of this process.  They stay here, so that no other one gets the id of one."""


class Templates:
    """Makes and finds templates in a folder that all workers of a session share."""

    def __init__(self, folder: Path, client: Callable[[], DiskClient], mounts: Path, remove: Callable[[str], None]) -> None:
        """Use a folder.

        Args:
            folder: the folder of the templates.
            client: starts the disk server if necessary.
            mounts: the folder of the mount points of the disk server.
            remove: removes a disk of the server.
        """
        self._folder, self._client, self._mounts, self._remove = folder, client, mounts, remove

    def find(self, *, size_bytes: int, fs: str, setup: Setup) -> Path:
        """Return the template for these settings, and make it if there is none.

        Args:
            size_bytes: the size of the disk.
            fs: ``ext4`` or ``xfs``.
            setup: fills the file system: a shell command, or a function, whose template is of this process only.

        Raises:
            RigError: ``DiskTooSmall``, ``ToolMissing``, ``MkfsFailed``; ``TemplateFailed`` with the output of the setup.
        """
        own = f"{os.getpid()}:{number_of(setup)}" if callable(setup) else setup or ""
        key = hashlib.blake2b(f"{size_bytes}\0{fs}\0{own}".encode(), digest_size=8).hexdigest()
        image = self._folder / f"{fs}-{key}.img"
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / f"{fs}-{key}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not image.exists():
                self._make(image, f"template-{os.getpid()}-{key}", size_bytes, fs, setup)
        return image

    def _make(self, image: Path, name: str, size_bytes: int, fs: str, setup: Setup) -> None:
        if fs == "xfs" and size_bytes < BYTES_MIN["xfs"]:
            raise RigError(Code.DiskTooSmall, f"size={size_bytes}: an xfs needs at least {BYTES_MIN['xfs']} bytes (300MiB)")
        mkfs = ThisMachine().program(f"mkfs.{fs}")
        if mkfs is None:
            raise RigError(
                Code.ToolMissing, f"program mkfs.{fs} is not installed; on Debian: apt-get install {_PACKAGES[fs]}"
            )
        client = self._client()
        client.call("create_disk", vm=name, name="disk", size_bytes=size_bytes)
        disk = DiskHandle(client, name, size_bytes=size_bytes, template=None, fs=fs, logged=False, states=self._folder)
        try:
            done = subprocess.run([mkfs, "-q", *_OPTIONS[fs], str(disk.path)], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RigError(Code.MkfsFailed, f"cannot create the file system {fs}: {done.stderr.strip()}")
            if setup is not None:
                self._fill(FileSystemHandle(disk, self._mounts / name, fs), setup)
            fresh = image.with_suffix(".new")
            copy_sparse(disk.path, fresh)
            fresh.chmod(0o400)
            fresh.rename(image)
        finally:
            self._remove(name)

    def _fill(self, fs: FileSystemHandle, setup: Setup) -> None:
        fs.mount()
        filled = False
        try:
            if callable(setup):
                setup(fs.path)
            else:
                self._run(str(setup), fs.path)
            filled = True
        finally:
            fs.unmount(even_if_used=not filled)
            if filled:
                fs.path.rmdir()

    def _run(self, setup: str, where: Path) -> None:
        done = subprocess.run(
            ["/bin/sh", "-c", setup], cwd=where, capture_output=True, text=True, errors="replace", check=False
        )
        if done.returncode != 0:
            output = "\n".join(f"  {line}" for line in (done.stdout + done.stderr).splitlines()[-20:]) or "  (none)"
            raise RigError(
                Code.TemplateFailed,
                f"setup {setup!r} ended with exit status {done.returncode}; the end of its output:\n{output}",
            )


def number_of(setup: Callable[[Path], object]) -> int:
    """Return a number that only this function has."""
    if setup not in _functions:
        _functions.append(setup)
    return _functions.index(setup)
