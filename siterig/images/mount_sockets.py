"""The socket of a mount's process, and the way from a mount point to it.

The socket is ``mount.sock`` in a private folder (0700) of the user of the mount, which is named by the device number of the
mount: ``/run/user/UID/siterig/mount-0-57``.  The table of mounts has device number and user of each mount point, so that
every process of this host finds the socket, and no access to the mount is needed.

Fault contract: a killed process leaves the folder.  A command finds that nothing answers there, and reports a dead mount.
The next mount of this user removes the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.blockfs.guests import loop_devices
from siterig.images.mountpoint import SOURCE_PREFIX

SOCKET = "mount.sock"
RIG_SOURCE = "siterig:disks"
"""The source that the table of mounts shows for the disks of a rig."""
_NEW = "new.sock"
_OWN = "siterig"
_BACKLOG = 64


@dataclass(frozen=True, slots=True)
class FoundMount:
    """A siterig mount in the table of mounts."""

    point: Path
    device: str
    uid: int


def folder_name(device: str) -> str:
    """Return the name of the folder of a mount with this device number (``MAJ:MIN``)."""
    return f"mount-{device.replace(':', '-')}"


def _bases(uid: int) -> list[Path]:
    """Return the folders in which a user's sockets may be, best first."""
    found = [Path(f"/run/user/{uid}")]
    if uid == os.geteuid() and (own := os.environ.get("XDG_RUNTIME_DIR")):
        found.insert(0, Path(own))
    shared = [Path(tempfile.gettempdir()), Path("/tmp")]  # noqa: S108 (the folder in it is checked to be private)
    return [base / _OWN for base in found] + [base / f"{_OWN}-{uid}" for base in dict.fromkeys(shared)]


def _is_private(folder: Path, uid: int) -> bool:
    """Return True if only this user can have put anything there."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == uid and not found.st_mode & 0o077


@contextmanager
def listening(device: str) -> Iterator[tuple[socket.socket, Path]]:
    """Yield a socket that listens for calls to this process, and its path; remove both at the end.

    Args:
        device: the device number of the mount.
    Raises:
        RigError: ``FolderUnusable`` if there is no folder for it.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        path, inode = _listen(listener, device)
        try:
            yield listener, path
        finally:
            _remove(path, inode)
    finally:
        listener.close()


def _listen(listener: socket.socket, device: str) -> tuple[Path, int]:
    """Let a socket listen in the first folder that can be used; return its path and inode number."""
    uid, problem = os.geteuid(), "none"
    for base in _bases(uid):
        if not base.parent.is_dir():
            continue
        try:
            base.mkdir(mode=0o700, exist_ok=True)
            if not _is_private(base, uid):
                problem = f"{base} is not a private folder of this user"
                continue
            with _locked(base):
                _remove_dead(base)
                folder = base / folder_name(device)
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            problem = f"{base}: {reason(error, base)}"
            continue
        path = folder / SOCKET
        try:
            with _locked(base):
                folder.mkdir(mode=0o700, exist_ok=True)  # the process of a mount that ended may have removed it
                new = path.with_name(_NEW)
                new.unlink(missing_ok=True)
                listener.bind(str(new))
                new.chmod(0o600)
                listener.listen(_BACKLOG)
                listener.setblocking(False)
                new.rename(path)  # in place of that of a killed process; a socket with this name always listens
                return path, path.stat().st_ino
        except OSError as error:
            raise RigError(Code.FolderUnusable, f"{path}: no socket can be made: {reason(error, path)}") from error
    raise RigError(Code.FolderUnusable, f"there is no folder for the socket of the mount: {problem}; set XDG_RUNTIME_DIR")


@contextmanager
def _locked(base: Path) -> Iterator[None]:
    """Hold the lock of a folder of sockets during the block.

    A device number is used again as soon as its mount has ended.  So without the lock a socket that is to be removed may be
    that of a new mount.
    """
    fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove(path: Path, inode: int) -> None:
    """Remove the socket of this process, unless a new mount with the same device number has another one there."""
    with contextlib.suppress(OSError), _locked(path.parent.parent):
        if path.stat().st_ino == inode:
            path.unlink()
            path.parent.rmdir()


def _remove_dead(base: Path) -> None:
    """Remove the sockets of killed processes."""
    for path in base.glob(f"{folder_name('*')}/{SOCKET}"):
        if not _listens(path):
            with contextlib.suppress(OSError):
                path.unlink()
                path.parent.rmdir()


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.setblocking(False)  # a process that is stopped does not take the connections that wait
        try:
            asking.connect(str(path))
        except ConnectionRefusedError:
            return False
        except OSError:
            return True
    return True


# --- from a mount point to the socket --------------------------------------------------------------------------------


def mount_lines() -> list[str]:
    """Return the lines of the table of mounts."""
    return os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).rstrip("\n").split("\n")


def find_mount(where: Path) -> FoundMount:
    """Return the siterig mount at a folder.

    Raises:
        RigError: ``NotAMount`` names the siterig mounts that there are.
    """
    point = _point(where)
    at_point, ours = "", dict[str, FoundMount]()
    for line in mount_lines():
        (device, source, mounted), *_ = loop_devices.parse_mountinfo(line)
        if mounted == point:
            at_point = source
            ours.pop(mounted, None)  # something is mounted over it
        if source.startswith(SOURCE_PREFIX) and source != RIG_SOURCE:
            uid = re.search(r"(?:^|,)user_id=(\d+)", line.rpartition(" ")[2])
            ours[mounted] = FoundMount(Path(mounted), device, int(uid[1]) if uid else 0)
    if point in ours:
        return ours[point]
    there = ", ".join(ours) or "none"
    now = f"{at_point} is mounted there" if at_point else "nothing is mounted there"
    if at_point == RIG_SOURCE:
        now = "the disks of a rig are mounted there, whose folder --dir names"
    raise RigError(Code.NotAMount, f"{where}: is no mount of siterig: {now}; the mounts of siterig are: {there}")


def _point(where: Path) -> str:
    """Return the path of a mount point; the file system there is not asked, for its process may be stopped."""
    absolute = where.absolute()
    point = str(Path(os.path.realpath(absolute.parent)) / absolute.name)
    is_known = ".." not in where.parts and any(loop_devices.parse_mountinfo(line)[0][2] == point for line in mount_lines())
    return point if is_known else os.path.realpath(where)


def is_mount(where: Path) -> bool:
    """Return True if there is a siterig mount at a folder."""
    with contextlib.suppress(RigError):
        return bool(find_mount(where))
    return False


def socket_of(mount: FoundMount) -> Path:
    """Return the socket of a mount's process.

    Raises:
        RigError: ``DeadMount`` if the process was killed; ``NotPermitted`` if it belongs to another user.
    """
    for base in _bases(mount.uid):
        path = base / folder_name(mount.device) / SOCKET
        with contextlib.suppress(PermissionError):  # it belongs to another user
            if _is_private(base, mount.uid) and path.exists():
                _check_answers(mount, path)
                return path
    if os.geteuid() not in (0, mount.uid):
        raise RigError(Code.NotPermitted, f"{mount.point}: belongs to the user with the number {mount.uid}")
    raise lost(mount)


def _check_answers(mount: FoundMount, path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        asking.setblocking(False)
        try:
            asking.connect(str(path))
        except BlockingIOError:  # the process is stopped, and as many connections wait as may
            return
        except OSError as error:
            raise lost(mount) from error


def lost(mount: FoundMount) -> RigError:
    """Return the error that nothing serves a mount any more."""
    return RigError(
        Code.DeadMount,
        f"{mount.point}: its process does not answer: it was killed; unmount it: fusermount3 -u {mount.point}",
    )
