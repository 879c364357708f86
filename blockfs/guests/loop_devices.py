"""Uses of disk files on this host: loop devices, file systems, mounts, freezing, and the release of all of them.

The uses are never remembered here.  They are read from the kernel (sysfs ``backing_file``, ``/proc/self/mountinfo``), so
they are right after any kill, and also for loop devices and mounts that a user made by hand.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.core.code_root import child_environment
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.guests import freezer

MIB = 1024 * 1024
BYTES_MIN = {"ext4": 0, "xfs": 300 * MIB, "btrfs": 128 * MIB}
"""The least size of a disk for each file system; that of mkfs.btrfs is 109 MiB."""
_PACKAGES = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs"}
_DEAD = {errno.ENOTCONN, errno.EIO, errno.ENOENT, errno.ESTALE, errno.ECONNABORTED, errno.ECANCELED}
_DETACH_TIMEOUT_S = 10.0
_STAT_TIMEOUT_S = 3.0
_FREEZE_GRACE_S = 5.0
_LOOP_GET_STATUS64, _LOOP_INFO64_BYTES = 0x4C05, 232  # <linux/loop.h>


@dataclass(frozen=True)
class DiskUse:
    """One use of a disk file.

    Attributes:
        disk: path of the disk file.
        loop: the loop device; None if only processes have the file open.
        mountpoints: the mounts of the loop device and of its partitions, in the order of mounting.
        processes: the processes that have the file open (``name (pid)``).
    """

    disk: str
    loop: str | None
    mountpoints: tuple[str, ...]
    processes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Result:
    returncode: int
    out: str
    err: str


async def _run(*command: str) -> _Result:
    """Run a program to its end, even if cancelled; ``ToolMissing`` names the program and its Debian package."""
    program = command[0]
    if shutil.which(program) is None:
        package = _PACKAGES.get(program, "util-linux")
        raise RigError(Code.ToolMissing, f"program {program} is not installed; on Debian: apt-get install {package}")
    # A losetup or mount that is killed half-way leaves a device or mount that no record shows.
    with trio.CancelScope(shield=True):
        done = await trio.run_process(
            command,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=os.environ | {"LC_ALL": "C"},
            start_new_session=True,
        )
    return _Result(done.returncode, done.stdout.decode().strip(), done.stderr.decode(errors="replace").strip())


def _reason(result: _Result) -> str:
    return result.err or result.out or f"exit status {result.returncode}"


async def attach(disk: Path, *, read_only: bool = False, sector_bytes: int = 512) -> str:
    """Attach a loop device to a disk file.

    Direct I/O is on if the backing file allows it, so that no page is cached twice, and flushed bytes do not wait in the
    cache of the loop device.

    Args:
        disk: the disk file.
        read_only: the device refuses writes.
        sector_bytes: the logical sector size that the device declares.

    Returns:
        The name of the device (``/dev/loopN``).

    Raises:
        RigError: ``AttachFailed``, ``ToolMissing``.
    """
    base = ["losetup", "--find", "--show", "--sector-size", str(sector_bytes), *(["--read-only"] if read_only else [])]
    result = await _run(*base, "--direct-io=on", str(disk))
    if not result.out.startswith("/dev/"):
        result = await _run(*base, str(disk))
    # losetup prints the device before it turns on direct I/O: a name with a failure means attached without direct I/O.
    if not result.out.startswith("/dev/"):
        raise RigError(Code.AttachFailed, f"disk {disk} cannot be attached to a loop device: {_reason(result)}")
    return result.out.splitlines()[0]


async def detach(loop: str, *, clock: Clock = SYSTEM_CLOCK) -> None:
    """Detach a loop device and wait for that; do nothing if it is detached.

    Raises:
        RigError: ``VmBusy`` names the processes that keep it open, or in whose mount namespace it is mounted.
    """
    if _backing_file(loop) is None:
        return
    attached = _attachment(loop)
    result = await _run("losetup", "--detach", loop)
    with trio.CancelScope(shield=True), clock.move_on_after(_DETACH_TIMEOUT_S):
        # Another process may attach a file of its own to a free device at once.
        while _backing_file(loop) is not None and _attachment(loop) == attached:
            await clock.sleep(0.01)
        return
    holders = await trio.to_thread.run_sync(_processes_at, loop)
    elsewhere = [f"{process}, in its mount namespace" for process in await copies_of_loop(loop)]
    by = _named(holders + elsewhere) or _reason(result)
    raise RigError(Code.VmBusy, f"loop device {loop} is still open: {by}", recoverable=True)


async def mkfs(device: str, filesystem: str, label: str) -> None:
    """Make a file system, ``ext4``, ``xfs`` or ``btrfs``, on a device.

    Raises:
        RigError: ``UnknownFilesystem``, ``DiskTooSmall``, ``MkfsFailed``.
    """
    least = BYTES_MIN.get(filesystem)
    if least is None:
        allowed = ", ".join(BYTES_MIN)
        raise RigError(Code.UnknownFilesystem, f"file system {filesystem!r} is not supported; allowed: {allowed}")
    if least and (size := await trio.to_thread.run_sync(_size_bytes, device)) < least:
        text = f"{device} has {size} bytes: {filesystem} needs at least {least} ({least // MIB} MiB)"
        raise RigError(Code.DiskTooSmall, text)
    if filesystem == "ext4":
        # No lazy initialization: a kernel thread would write zeros for minutes, which would be replicated as guest load.
        command = ["mkfs.ext4", "-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=1", "-L", label[:16]]
    elif filesystem == "xfs":
        command = ["mkfs.xfs", "-q", "-f", "-K", "-L", label[:12]]
    else:
        command = ["mkfs.btrfs", "-q", "-f", "-K", "-L", label]
    result = await _run(*command, device)
    if result.returncode != 0:
        raise RigError(Code.MkfsFailed, f"cannot create the file system {filesystem} on {device}: {_reason(result)}")


async def mount(device: str, where: Path, filesystem: str, *, read_only: bool = False) -> None:
    """Mount a device privately (nothing propagates to other mount namespaces); the folder is created.

    Raises:
        RigError: ``MountFailed``.
    """
    await trio.Path(where).mkdir(parents=True, exist_ok=True)
    options = ["ro" if read_only else "rw"]
    if filesystem == "xfs":
        # A failed-over copy has the UUID of its source, which may be mounted on the same machine.
        options.append("nouuid")
    result = await _run("mount", "--make-private", "-t", filesystem, "-o", ",".join(options), device, str(where))
    if result.returncode != 0:
        raise RigError(Code.MountFailed, f"{device} ({filesystem}) cannot be mounted at {where}: {_reason(result)}")


async def unmount(where: Path) -> None:
    """Unmount; raise ``VmBusy``, with the processes that use the mount, if that fails."""
    await _unmount(await _resolved(where), lazy=False)


async def _unmount(where: str, *, lazy: bool) -> None:
    # No canonicalization: it would access a file system whose disk may be dead.
    result = await _run("umount", "--no-canonicalize", where)
    if result.returncode == 0:
        return
    if lazy:
        result = await _run("umount", "--no-canonicalize", "--lazy", where)
        if result.returncode == 0:
            return
    holders = await trio.to_thread.run_sync(_processes_at, where)
    by = f" by {_named(holders)}" if holders else ""
    raise RigError(Code.VmBusy, f"{where} cannot be unmounted, it is held{by}: {_reason(result)}", recoverable=True)


async def uses(disk: Path) -> list[DiskUse]:
    """Return the uses of a disk file: loop devices with their mounts, then processes that have the file open."""
    wanted = await _resolved(disk)
    found = await loops(disk)
    holders = await trio.to_thread.run_sync(_processes_at, wanted)
    if holders:
        found.append(DiskUse(wanted, None, (), tuple(holders)))
    return found


async def holders(disk: Path) -> list[str]:
    """Return, as text for people, everything that uses a disk file: file systems, and processes that have it open.

    A loop device over it that no file system and no process uses is none of them.
    """
    found = []
    for use in await uses(disk):
        found += [f"{use.loop} (mounted at {where})" for where in use.mountpoints]
        found += use.processes
        if use.loop is not None and not use.mountpoints:
            found += await trio.to_thread.run_sync(_processes_at, use.loop)
        if use.loop is not None:
            elsewhere = await trio.to_thread.run_sync(_loop_mounted_elsewhere, use.loop)
            found += [f"{use.loop} (mounted in the mount namespace of {process})" for process in elsewhere]
    return found


async def loops(disk: Path) -> list[DiskUse]:
    """Return the loop devices over a disk file, with their mounts."""
    wanted = await _resolved(disk)
    return [use for use in loop_uses() if use.disk == wanted]


async def loops_on(identity: tuple[int, int], path: str) -> list[str]:
    """Return the writable loop devices over a file, which may have other names than ``path``.

    Only the file system of the file is accessed.

    Args:
        identity: device number and inode number of the file.
        path: one name of the file.
    """
    return await trio.to_thread.run_sync(_loops_on, identity, path, abandon_on_cancel=True)


def loop_text(loop: str, path: Path | str) -> str:
    """Return the message that a loop device is attached to a file that only this program may change."""
    return f"loop device {loop} is attached to {path}, and can change it unseen; detach it: losetup -d {loop}"


def _loops_on(identity: tuple[int, int], path: str) -> list[str]:
    number = f"{os.major(identity[0])}:{os.minor(identity[0])}"
    mounted = mounts()
    found = []
    for entry in sorted(Path("/sys/block").glob("loop*"), key=lambda path: int(path.name[4:])):
        backing = _backing_file(entry.name)
        if backing is None or _text(entry / "ro") == "1":
            continue
        loop = f"/dev/{entry.name}"
        if backing == path or (_mounted_device(mounted, backing) == number and _loop_identity(loop) == identity):
            found.append(loop)
    return found


def _mounted_device(mounted: list[tuple[str, str, str]], path: str) -> str | None:
    """Return the number of the device whose mount contains a path, found by comparing names only."""
    around = [(len(point), number) for number, _, point in mounted if path.startswith(point.rstrip("/") + "/")]
    return max(around)[1] if around else None


def _loop_identity(loop: str) -> tuple[int, int] | None:
    """Return device and inode number of the file under a loop device; None if this process may not read them."""
    try:
        fd = os.open(loop, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        status = fcntl.ioctl(fd, _LOOP_GET_STATUS64, bytes(_LOOP_INFO64_BYTES))
    except OSError:
        return None
    finally:
        os.close(fd)
    device, inode = struct.unpack_from("=QQ", status)
    return device, inode


async def processes_at(where: Path) -> list[str]:
    """Return ``name (pid)`` of every other process with its working folder or an open file in the folder or below."""
    return await trio.to_thread.run_sync(_processes_at, await _resolved(where))


def users_of(where: Path) -> list[str]:
    """Return what :func:`processes_at` returns, for callers without trio; ``where`` has no links."""
    return _processes_at(str(where))


async def mounted_elsewhere(number: str) -> list[str]:
    """Return ``name (pid)`` of one process of each other mount namespace in which a device (``MAJ:MIN``) is mounted.

    A new mount namespace begins with a copy of every mount.  The copies keep the device open, and no file shows it.
    """
    return await trio.to_thread.run_sync(_mounted_elsewhere, number)


async def copies_of_loop(loop: str) -> list[str]:
    """Return :func:`mounted_elsewhere` of a loop device, by its name."""
    return await trio.to_thread.run_sync(_loop_mounted_elsewhere, loop)


def ends_at_last_close(loop: str) -> bool:
    """Return whether a loop device is detached when its last user closes it (``losetup --detach`` of an open device)."""
    return _text(Path("/sys/block", Path(loop).name, "loop/autoclear")) == "1"


async def shutdown(disks: list[Path]) -> None:
    """Unmount and detach all uses of the disks; raise ``VmBusy``, with the processes, if something keeps one open."""
    for disk in disks:
        wanted = await _resolved(disk)
        for use in loop_uses():
            if use.disk == wanted:
                await _release(use, lazy=not await _answers(wanted))
        for use in await uses(disk):
            raise RigError(
                Code.VmBusy, f"disk {disk} is open in {_named(list(use.processes)) or use.loop}", recoverable=True
            )


async def check_shutdown(disks: list[Path]) -> None:
    """Raise ``VmBusy`` if :func:`shutdown` would fail because a process has a disk, or a file on it, open."""
    for disk in disks:
        for use in await uses(disk):
            busy = [*use.processes, *[name for where in use.mountpoints for name in await processes_at(Path(where))]]
            if busy:
                where = ", ".join(use.mountpoints) or use.loop or "directly"
                raise RigError(
                    Code.VmBusy,
                    f"disk {disk} is in use ({where}) by {_named(busy)}; end these processes first",
                    recoverable=True,
                )


async def release_below(prefix: Path) -> list[str]:
    """Unmount and detach every loop device whose backing file is below ``prefix``; return a line for each action.

    A file system whose disk does not answer any more (its FUSE server was killed) is unmounted lazily if needed.  All are
    tried before the first ``VmBusy`` is raised.
    """
    root = (await _resolved(prefix)).rstrip("/") + "/"
    done: list[str] = []
    busy: RigError | None = None
    for use in reversed(loop_uses()):
        if not use.disk.startswith(root):
            continue
        try:
            done += await _release(use, lazy=not await _answers(use.disk))
        except RigError as error:
            busy = busy or error
    if busy is not None:
        raise busy
    return done


async def _release(use: DiskUse, *, lazy: bool) -> list[str]:
    done = []
    for where in reversed(use.mountpoints):
        try:
            await _unmount(where, lazy=lazy)
        except RigError:
            if any(point == where for *_, point in mounts()):
                raise
            continue  # another process released it meanwhile, such as the supervisor that starts a disk host again
        done.append(f"unmounted {where}")
    if use.loop is not None:
        try:
            await detach(use.loop)
            done.append(f"detached {use.loop} from {use.disk}")
        except RigError:
            if not lazy:
                raise
            # The kernel detaches it when the last process closes it.
            done.append(f"{use.loop} is detached when the last process that holds it ends")
    return done


@asynccontextmanager
async def frozen(mountpoints: list[str], *, timeout_s: float) -> AsyncIterator[None]:
    """Freeze file systems (FIFREEZE) for the time of the block.

    They are thawed at its end, if this process ends, and in any case after ``timeout_s`` seconds.

    Raises:
        RigError: ``FreezeFailed`` with the mount point that refused; ``FreezeTimedOut`` if the time limit passed before the
            end of the block, so that the file systems were not frozen all the time.
    """
    # cwd: the working folder of the child must not be on a file system that it freezes.
    child = await trio.lowlevel.open_process(
        [sys.executable, "-P", "-m", "siterig.blockfs.guests.freezer", str(timeout_s), *mountpoints],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
        env=child_environment(),
    )
    assert child.stdin is not None  # noqa: S101 (for the type checker)
    assert child.stdout is not None  # noqa: S101
    finished = False
    try:
        message = ""
        with trio.move_on_after(timeout_s + _FREEZE_GRACE_S):
            message = await _line(child.stdout)
        if message == "frozen":
            yield
            finished = True
        elif message.startswith("failed "):
            raise RigError(Code.FreezeFailed, f"cannot freeze {message.removeprefix('failed ')}", recoverable=True)
        else:
            raise RigError(Code.FreezeTimedOut, _late(mountpoints, timeout_s), recoverable=True)
    finally:
        with trio.CancelScope(shield=True):
            await child.stdin.aclose()
            await child.stdout.aclose()
            # A freeze may hang in the kernel on a disk that hangs; the child thaws that file system when the call returns.
            with trio.move_on_after(_FREEZE_GRACE_S):
                await child.wait()
            if child.returncode is None:
                trio.lowlevel.spawn_system_task(child.wait)
        if finished and child.returncode != freezer.EXIT_THAWED:
            raise RigError(Code.FreezeTimedOut, _late(mountpoints, timeout_s), recoverable=True)


def _late(mountpoints: list[str], timeout_s: float) -> str:
    return f"{', '.join(mountpoints)} had to be thawed after {timeout_s:g} s, before the recovery point was taken"


async def _line(stream: trio.abc.ReceiveStream) -> str:
    data = b""
    while b"\n" not in data:
        more = await stream.receive_some()
        if not more:
            break
        data += more
    return data.decode().split("\n", 1)[0]


async def _resolved(path: Path) -> str:
    # In a thread: the path may be in a file system that this process serves.
    return await trio.to_thread.run_sync(os.path.realpath, path)


async def _answers(disk: str) -> bool:
    """Return False if the server of the disk file is dead, or does not answer within seconds."""
    with trio.move_on_after(_STAT_TIMEOUT_S):
        try:
            # Not stat: the kernel answers it from its cache for a while, also for a dead server.
            await trio.to_thread.run_sync(os.statvfs, disk, abandon_on_cancel=True)
        except OSError as error:
            return error.errno not in _DEAD
        return True
    return False


def _size_bytes(device: str) -> int:
    fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


def _backing_file(loop: str) -> str | None:
    try:
        text = os.fsdecode(Path("/sys/block", Path(loop).name, "loop/backing_file").read_bytes())
    except OSError:
        return None
    return text.rstrip("\n").removesuffix(" (deleted)") or None


def _attachment(loop: str) -> str:
    """Return the kernel's number of the attached file: each attach has a new one (``diskseq``, Linux 5.15)."""
    try:
        return Path("/sys/block", Path(loop).name, "diskseq").read_text("ascii")
    except OSError:
        return ""


def loop_uses() -> list[DiskUse]:
    """Return every attached loop device, by number, with its mounts in the order of mounting."""
    mounted = mounts()
    found = []
    for entry in sorted(Path("/sys/block").glob("loop*"), key=lambda path: int(path.name[4:])):
        backing = _backing_file(entry.name)
        if backing is None:
            continue
        # Some file systems (btrfs) show an anonymous device number; then the name of the source identifies the device.
        numbers = {_text(path) for path in [entry / "dev", *entry.glob(f"{entry.name}p*/dev")]}
        named = re.compile(rf"/dev/{entry.name}(p\d+)?")
        where = tuple(point for number, source, point in mounted if number in numbers or named.fullmatch(source))
        found.append(DiskUse(backing, f"/dev/{entry.name}", where))
    return found


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def mounts() -> list[tuple[str, str, str]]:
    """Return (device number, source, mount point) of each mount in this process's namespace, in the order of mounting."""
    return parse_mountinfo(os.fsdecode(Path("/proc/self/mountinfo").read_bytes()))


def parse_mountinfo(text: str) -> list[tuple[str, str, str]]:
    """Return (device number, source, mount point) of each line of a ``mountinfo`` file; see proc(5)."""
    found = []
    for line in text.rstrip("\n").split("\n"):  # not splitlines: a name may have characters that it treats as line ends
        left, _, right = line.partition(" - ")
        fields, source = left.split(" "), right.split(" ")[1]
        found.append((fields[2], _unescape(source), _unescape(fields[4])))
    return found


def _unescape(field: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def _named(processes: list[str]) -> str:
    shown = ", ".join(processes[:5])
    return shown + (f" and {len(processes) - 5} more" if len(processes) > 5 else "")


def _processes_at(where: str) -> list[str]:
    """Return ``name (pid)`` of every other process with its folder, root, program or an open file at or below a path."""
    found = []
    below = where.rstrip("/") + "/"
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        try:
            links = [process / "cwd", process / "root", process / "exe", *(process / "fd").iterdir()]
            targets = [_link(link) for link in links]
            if any(target == where or target.startswith(below) for target in targets):
                found.append(f"{(process / 'comm').read_text(errors='replace').strip()} ({process.name})")
        except OSError:
            continue  # it ended meanwhile, or this process may not look at it
    return found


def _loop_mounted_elsewhere(loop: str) -> list[str]:
    return _mounted_elsewhere(_text(Path("/sys/block", Path(loop).name, "dev")))


def _mounted_elsewhere(number: str | None) -> list[str]:
    found: dict[str, str] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        namespace = _link(process / "ns/mnt")
        if namespace in found or namespace in ("", _link(Path("/proc/self/ns/mnt"))):
            continue
        try:
            if any(device == number for device, *_ in parse_mountinfo(os.fsdecode((process / "mountinfo").read_bytes()))):
                found[namespace] = f"{(process / 'comm').read_text(errors='replace').strip()} ({process.name})"
        except (OSError, IndexError):
            continue  # it ended meanwhile: its list is then empty
    return list(found.values())


def _link(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
