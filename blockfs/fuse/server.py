"""Mounts a tree of disks and serves it.

There are two ways.  With the *FUSE server* (:mod:`siterig.cext.fuse_server`), C threads answer all requests on open disks
and only names and attributes come to pyfuse3.  Without it pyfuse3 answers everything, which is slower and needs only FUSE
of the kernel.

Fault contract: a mount whose server died (``ENOTCONN``) is removed before a new one is made at the same place.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from pathlib import Path

import pyfuse3
import structlog
import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.fuse.filesystem import DiskFileSystem
from siterig.blockfs.fuse.mount import Mount, MountOptions, clear_stale_mount, mount_filesystem, tune, unmount
from siterig.blockfs.host.disk_tree import DiskTree, all_disks
from siterig.cext.fuse_server import FuseServer, FuseServerOptions
from siterig.cext.linux import set_io_flusher

FUSE_SERVER = FuseServerOptions()
_log = structlog.get_logger("siterig.blockfs.fuse.server")


async def serve(
    tree: DiskTree,
    mountpoint: Path,
    *,
    source: str = "siterig:disks",
    read_only: bool = False,
    fuse_server: FuseServerOptions | None = FUSE_SERVER,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mount and answer requests until cancelled or unmounted; then unmount, and leave the disks open.

    A process can serve one mount, because libfuse's session is global in pyfuse3.

    Args:
        tree: the disks.
        mountpoint: the folder to mount at; it is created if it does not exist.
        source: the source that the table of mounts shows.
        read_only: the kernel refuses every write.
        fuse_server: options of the FUSE server; None: pyfuse3 answers everything.
        task_status: reports that the mount is ready.

    Raises:
        RigError: ``MountFailed``; ``MountLost`` if requests could not be read from the kernel.
    """
    clear_stale_mount(mountpoint)
    try:
        mountpoint.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise RigError(
            Code.MountFailed, f"{mountpoint}: cannot be created as a mount point: {reason(exc, mountpoint)}"
        ) from exc
    if mountpoint.is_mount():
        raise RigError(Code.MountFailed, f"{mountpoint}: something is mounted here already")
    try:
        set_io_flusher()  # before any thread is started, because threads inherit it
    except OSError as exc:  # only root may set it; other users cannot attach a loop device to the mount either
        _log.info("not_an_io_flusher", reason=reason(exc))
    mount_options = MountOptions(source, read_only=read_only)
    if fuse_server is None:
        await _serve_by_pyfuse3(tree, mountpoint, mount_options, task_status)
    else:
        await _serve_by_fuse_server(tree, mountpoint, mount_options, fuse_server, task_status)


async def _serve_by_pyfuse3(
    tree: DiskTree, mountpoint: Path, mount_options: MountOptions, task_status: trio.TaskStatus[None]
) -> None:
    opened = _fuse_devices()
    try:
        pyfuse3.init(DiskFileSystem(tree), str(mountpoint), set(mount_options.as_list()))
    except RuntimeError as exc:
        raise RigError(Code.MountFailed, f"{mountpoint}: cannot be mounted: {exc}") from exc
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_answer, nursery.cancel_scope)
            nursery.start_soon(tree.run_maintenance)
            nursery.start_soon(_end_waits_after_unmount, tree, _fuse_devices() - opened)
            task_status.started()
    finally:
        _end_waits(tree)
        pyfuse3.close(unmount=True)


async def _serve_by_fuse_server(
    tree: DiskTree,
    mountpoint: Path,
    mount_options: MountOptions,
    options: FuseServerOptions,
    task_status: trio.TaskStatus[None],
) -> None:
    mount = await trio.to_thread.run_sync(mount_filesystem, mountpoint, mount_options)
    try:
        fuse_server = _start_fuse_server(tree, mount, options)
    except BaseException:
        os.close(mount.device_fd)  # no request can be answered any more
        unmount(mount)
        raise
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(tree.run_maintenance)
            names = trio.CancelScope(shield=True)
            nursery.start_soon(_answer_names, names, nursery.cancel_scope)
            try:
                tune(mount)
                _log_way(fuse_server, mount)
                task_status.started()
                await trio.lowlevel.wait_readable(fuse_server.ended_fd)
            finally:
                _end_waits(tree)
                try:
                    with trio.CancelScope(shield=True):  # meanwhile the kernel may send writes and upcalls
                        await trio.to_thread.run_sync(unmount, mount)
                finally:
                    names.cancel()
    finally:
        pyfuse3.close(unmount=False)
        _end_waits(tree)  # of disks and rules that came in the meantime
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(_stop, fuse_server, mount)


def _start_fuse_server(tree: DiskTree, mount: Mount, options: FuseServerOptions) -> FuseServer:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        try:
            # With a name like this libfuse uses the descriptor for its session, and closes it at the end.
            pyfuse3.init(DiskFileSystem(tree), f"/dev/fd/{theirs.fileno()}", set())
        except RuntimeError as exc:
            raise RigError(Code.MountFailed, f"{mount.path}: cannot be served: {exc}") from exc
        theirs.detach()
        try:
            fuse_server = FuseServer(mount.device_fd, ours.fileno(), options)
        except OSError as exc:
            pyfuse3.close(unmount=False)
            raise RigError(Code.MountFailed, f"{mount.path}: cannot be served: {reason(exc, mount.path)}") from exc
        ours.detach()
    return fuse_server


def _log_way(fuse_server: FuseServer, mount: Mount) -> None:
    try:
        way = "io_uring" if fuse_server.over_io_uring() else "/dev/fuse"
    except OSError as exc:
        _log.warning("no_io_uring", mountpoint=str(mount.path), reason=reason(exc))
        way = "/dev/fuse"
    _log.info("mounted", mountpoint=str(mount.path), requests_over=way)


def _end_waits(tree: DiskTree) -> None:
    """Let no request wait for a fault rule any more: neither the end of the mount nor that of its server could come."""
    for disk in all_disks(tree):
        disk.faults.end_waits()


def _fuse_devices() -> set[int]:
    """Return the descriptors of this process that have the requests of a FUSE mount."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the descriptor of this folder is closed again
            if link.readlink() == Path("/dev/fuse"):
                found.add(int(link.name))
    return found


async def _end_waits_after_unmount(tree: DiskTree, devices: set[int]) -> None:
    """End the waits when the mount is gone: pyfuse3 ends only after the requests that it has begun."""
    with select.epoll() as poll:
        for device in devices:
            poll.register(device, 0)  # the kernel reports EPOLLERR for a mount that is gone
        await trio.lowlevel.wait_readable(poll.fileno())
    _end_waits(tree)


def _stop(fuse_server: FuseServer, mount: Mount) -> None:
    try:
        fuse_server.stop()
    except OSError as exc:
        raise RigError(
            Code.MountLost, f"{mount.path}: requests could not be taken from the kernel: {reason(exc, mount.path)}"
        ) from exc


async def _answer_names(names: trio.CancelScope, whole: trio.CancelScope) -> None:
    with names:
        await pyfuse3.main()
    whole.cancel()


async def _answer(scope: trio.CancelScope) -> None:
    await pyfuse3.main()
    scope.cancel()  # unmounted from outside
