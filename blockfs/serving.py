"""Mounts a tree of disks and serves it until told to end.

Fault contract: a mount whose server died (``ENOTCONN``) is cleared before a new one is made at the same place.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pyfuse3
import structlog
import trio

from blockfs.errors import RigError
from blockfs.filesystem import DiskFileSystem
from blockfs.tree import DiskTree
from cext.kernel import set_io_flusher

_log = structlog.get_logger("blockfs.serving")


def clear_stale_mount(mountpoint: Path) -> bool:
    """Detach a FUSE mount whose server is dead; True if there was one."""
    try:
        os.statvfs(mountpoint)  # stat could be answered from the kernel's attribute cache
    except FileNotFoundError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.ENOTCONN, errno.EIO):
            raise
    else:
        return False
    found = subprocess.run(["umount", "-l", str(mountpoint)], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        found = subprocess.run(["fusermount3", "-uz", str(mountpoint)], capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise RigError(
            "StaleMount", f"{mountpoint}: a dead mount is in the way and cannot be removed: {found.stderr.strip()}"
        )
    _log.info("stale_mount_removed", mountpoint=str(mountpoint))
    return True


async def serve(
    tree: DiskTree,
    mountpoint: Path,
    *,
    source: str = "siterig:disks",
    read_only: bool = False,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount and answer requests until cancelled or unmounted; unmounts, and leaves the disks open.

    ``source`` is what the table of mounts shows.  ``read_only``: the kernel refuses every write.
    One mount a process (libfuse's session is global in pyfuse3).  ``RigError('MountFailed')`` if it cannot be made.
    """
    clear_stale_mount(mountpoint)
    mountpoint.mkdir(parents=True, exist_ok=True)
    if mountpoint.is_mount():
        raise RigError("MountFailed", f"{mountpoint}: something is mounted here already")
    try:
        set_io_flusher()
    except OSError as exc:  # only the superuser may; others cannot put a loop device on the mount either
        _log.info("not_an_io_flusher", reason=exc.strerror)
    options = set(pyfuse3.default_options) | {f"fsname={_escaped(source)}", "subtype=siterig"}
    if read_only:
        options.add("ro")
    try:
        pyfuse3.init(DiskFileSystem(tree), str(mountpoint), options)
    except RuntimeError as exc:
        raise RigError("MountFailed", f"{mountpoint}: cannot be mounted: {exc}") from exc
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer, nursery.cancel_scope)
            nursery.start_soon(tree.tend)
            task_status.started()
    finally:
        pyfuse3.close(unmount=True)


def _escaped(value: str) -> str:
    """As libfuse reads options: separated by commas."""
    return value.replace("\\", "\\\\").replace(",", "\\,")


async def _answer(scope: trio.CancelScope) -> None:
    await pyfuse3.main()
    scope.cancel()  # unmounted from outside
