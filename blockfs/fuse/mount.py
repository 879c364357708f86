"""Mounts a FUSE file system without libfuse, so that this program owns the descriptor with the kernel's requests.

It calls mount(2) if the process may, otherwise ``fusermount3``, the helper that lets ordinary users mount.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import structlog

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.guests import loop_devices
from siterig.cext import linux

_DEAD = {errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED, errno.EIO}
_SUBTYPE = "siterig"
_READ_AHEAD_KIB = 1024
_MAX_RATIO_PERCENT = 100
_FORBIDDEN = tuple(f"mount failed: {os.strerror(number)}" for number in (errno.EPERM, errno.EACCES))
_REMEDY = "mount as root; in a container: run it with --cap-add SYS_ADMIN --device /dev/fuse, or privileged"
_log = structlog.get_logger("siterig.blockfs.fuse.mount")


@dataclass(frozen=True, slots=True)
class MountOptions:
    """Options of a mount.  Its files are for their owner alone, no program in it is set-uid, and no file is a device.

    Attributes:
        source: the source that the table of mounts shows.
        read_only: the kernel refuses every write.
    """

    source: str
    read_only: bool = False

    def as_list(self) -> list[str]:
        """Return the options in the form of libfuse and ``fusermount3``."""
        source = self.source.replace("\\", "\\\\").replace(",", "\\,")
        options = [f"fsname={source}", f"subtype={_SUBTYPE}", "default_permissions", "nosuid", "nodev"]
        return [*options, "ro"] if self.read_only else options


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount: ``device_fd`` has the requests of the kernel, ``device`` (``MAJ:MIN``) is its number in mountinfo."""

    path: Path
    device_fd: int
    device: str


def clear_stale_mount(mountpoint: Path) -> bool:
    """Detach a FUSE mount whose server is dead; return True if there was one.

    Raises:
        RigError: ``StaleMount`` if it cannot be removed.
    """
    try:
        os.statvfs(mountpoint)  # stat could be answered from the kernel's attribute cache
    except OSError as exc:
        if exc.errno not in _DEAD:
            return False
    else:
        return False
    failed = _unmount(mountpoint, lazily=True)
    if failed is not None:
        raise RigError(Code.StaleMount, f"{mountpoint}: a dead mount is in the way and cannot be removed: {failed}")
    _log.info("stale_mount_removed", mountpoint=str(mountpoint))
    return True


def mount_filesystem(mountpoint: Path, options: MountOptions) -> Mount:
    """Mount at a folder, for this user alone.  A program that touches the mount hangs until ``device_fd`` is read.

    Raises:
        RigError: ``MountFailed``; ``NotPermitted`` or ``ToolMissing`` if this user may not mount here.
    """
    path = mountpoint.resolve()
    try:
        mode = path.stat().st_mode
    except OSError as exc:
        raise RigError(Code.MountFailed, f"{path}: cannot be mounted on: {reason(exc, path)}") from exc
    if not stat.S_ISDIR(mode):
        raise RigError(Code.MountFailed, f"{path}: cannot be mounted on: it is not a folder")
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise RigError(
            Code.MountFailed,
            f"{path}: cannot be mounted: /dev/fuse: {reason(exc, path)} (is the kernel module 'fuse' loaded?)",
        ) from exc
    kernel_options = (
        f"fd={fd},rootmode={stat.S_IFMT(mode):o},user_id={os.getuid()},group_id={os.getgid()},default_permissions"
    )
    try:
        linux.mount(options.source, path, f"fuse.{_SUBTYPE}", kernel_options, read_only=options.read_only)
    except OSError as exc:
        os.close(fd)
        if exc.errno != errno.EPERM:
            raise RigError(Code.MountFailed, f"{path}: cannot be mounted: {reason(exc, path)}") from exc
        fd = _mount_by_helper(path, options)
    device = _device_at(path)
    if device is None:
        os.close(fd)
        raise RigError(Code.MountFailed, f"{path}: was unmounted by another program while it was being mounted")
    return Mount(path, fd, device)


def _mount_by_helper(path: Path, options: MountOptions) -> int:
    """Mount with ``fusermount3``, which passes the descriptor back over the socket that ``_FUSE_COMMFD`` names."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        try:
            done = subprocess.run(
                ["fusermount3", "-o", ",".join(options.as_list()), "--", str(path)],
                env=os.environ | {"_FUSE_COMMFD": str(theirs.fileno()), "LC_ALL": "C"},
                pass_fds=[theirs.fileno()],
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            raise RigError(
                Code.ToolMissing,
                f"{path}: cannot be mounted: users other than root need fusermount3; on Debian: apt-get install fuse3",
            ) from None
        if done.returncode != 0:
            why = done.stderr.strip()
            if why.endswith(_FORBIDDEN):
                raise RigError(Code.NotPermitted, f"{path}: cannot be mounted: {why}: {_REMEDY}")
            raise RigError(Code.MountFailed, f"{path}: cannot be mounted: {why or done.returncode}")
        _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(array.array("i").itemsize))
    if not ancillary:
        raise RigError(Code.MountFailed, f"{path}: cannot be mounted: fusermount3 returned no descriptor")
    fd = array.array("i", ancillary[0][2])[0]
    os.set_inheritable(fd, False)
    return fd


def _device_at(path: Path) -> str | None:
    """Return ``MAJ:MIN`` of the topmost mount at ``path``, without a request to its server."""
    devices = [device for device, _, point in loop_devices.mounts() if point == str(path)]
    return devices[-1] if devices else None


def unmount(mount: Mount) -> None:
    """Unmount, if it is still mounted; lazily if files in it are open.  Its requests must be answered meanwhile.

    Raises:
        RigError: ``UnmountFailed``.
    """
    for lazily in (False, True):
        if _device_at(mount.path) != mount.device:
            return
        failed = _unmount(mount.path, lazily=lazily)
        if failed is None:
            return
    raise RigError(Code.UnmountFailed, f"mount {mount.path} cannot be unmounted: {failed}")


def _unmount(path: Path, *, lazily: bool) -> str | None:
    """Unmount; return why that failed, or None."""
    try:
        linux.unmount(path, lazily=lazily)
    except OSError as exc:
        if exc.errno != errno.EPERM:
            return exc.strerror
    else:
        return None
    command = ["fusermount3", "-uz" if lazily else "-u", "--", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    except FileNotFoundError:
        return "fusermount3 is not installed"
    return (done.stderr.strip() or f"exit status {done.returncode}") if done.returncode != 0 else None


def tune(mount: Mount) -> None:
    """Let the kernel read ahead as much as one request can hold, and cache writes through maps as for other disks.

    Only root may set this; without it the mount works, and is slower.
    """
    settings = Path("/sys/class/bdi") / mount.device
    for name, value in (("read_ahead_kb", _READ_AHEAD_KIB), ("max_ratio", _MAX_RATIO_PERCENT)):
        try:
            (settings / name).write_text(str(value))
        except OSError as exc:
            _log.info("not_tuned", setting=name, mountpoint=str(mount.path), reason=reason(exc))
