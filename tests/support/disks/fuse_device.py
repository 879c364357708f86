"""``/dev/fuse`` for all users, independent of its mode on this machine: a device node that the test creates.

The node is mounted over the machine's node in a mount namespace of this thread and of the processes that it starts.  No
other process sees it, and it disappears with the namespace.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.disks.mount_namespace import UNMOUNT

DEVICE = Path("/dev/fuse")
_NEW_MOUNTS = 0x00020000  # CLONE_NEWNS
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def fuse_for_all() -> Iterator[None]:
    """Provide the device, or skip the test with the reason if that is not possible."""
    if not DEVICE.exists():
        pytest.skip(f"this machine has no {DEVICE}")
    if DEVICE.stat().st_mode & 0o006 == 0o006:
        yield
        return
    if os.geteuid() != 0:
        pytest.skip(f"{DEVICE} is not for all users here, and only root can make another one")
    folder = Path.cwd()
    before = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY)
    try:
        if _libc.unshare(_NEW_MOUNTS) != 0:
            pytest.skip(f"no mount namespace can be made here: {os.strerror(ctypes.get_errno())}")
        try:
            with tempfile.TemporaryDirectory() as node:
                _make_node(Path(node))
                yield
        finally:
            assert _libc.setns(before, _NEW_MOUNTS) == 0, os.strerror(ctypes.get_errno())
            os.chdir(folder)
    finally:
        os.close(before)


def _make_node(folder: Path) -> None:
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["sh", "-c", UNMOUNT], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "none", str(folder)], check=True)
    node = folder / "fuse"
    try:
        os.mknod(node, 0o020666, os.makedev(10, 229))
        os.close(os.open(node, os.O_RDWR))
    except OSError as exc:
        pytest.skip(f"no device node can be made here: {exc.strerror}")
    node.chmod(0o666)
    subprocess.run(["mount", "--bind", str(node), str(DEVICE)], check=True)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
