"""Is this machine fit for a rig?  Each check says what it found, and what to do if that is not enough."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import resource
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from siterig.azure_emu.storage.azurite_files import (
    AZURITE_REMEDY,
    NODE_MAJOR_MIN,
    NODE_REMEDY,
    find_node,
    find_script,
    version_of,
)
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason
from siterig.core.process_setup import FILES_MIN
from siterig.images.mountpoint import FUSE_DEVICE, open_fuse

FREE_BYTES_MIN = 6 << 30
"""A drill at its widest: two disks, their logs, spool, cache account, managed disks and a recovered VM."""
KERNEL_MIN = (5, 10)
PYTHON_MIN = (3, 11)
CAP_SYS_ADMIN = 21
CAP_SYS_RESOURCE = 24
UNFIT = Code.MachineUnfit
UP_BYTES_MIN = 64 << 20
"""A rig without VMs: logs, the cache account, the vault's database, and room to act."""

_PROGRAMS = {
    "losetup": "mount",
    "mount": "mount",
    "mkfs.ext4": "e2fsprogs",
    "e2fsck": "e2fsprogs",
    "mkfs.xfs": "xfsprogs",
    "xfs_repair": "xfsprogs",
    "fsfreeze": "util-linux",
    "setpriv": "util-linux",
}
"""Programs that a rig runs, each with its Debian package."""
TEST_PROGRAMS = {
    "fio": "fio",
    "mkfs.btrfs": "btrfs-progs",
    "qemu-img": "qemu-utils",
    "faketime": "faketime",
    "initdb": "postgresql",
}
"""The same for the project's own tests; a rig needs none of it."""
_FILESYSTEMS = ("fuse", "ext4", "xfs")
_TEST_FILESYSTEMS = ("btrfs",)
_LOOP_CONTROL = "/dev/loop-control"
_LOOP_CTL_GET_FREE = 0x4C82
_INITIAL_USER_NAMESPACE = 0xEFFFFFFD
"""The inode of ``/proc/self/ns/user`` in it (the kernel's ``PROC_USER_INIT_INO``)."""


@dataclass(frozen=True, slots=True)
class Prerequisite:
    """One prerequisite: ``remedy`` is what to do when it is not ``ok``."""

    name: str
    ok: bool
    found: str
    remedy: str
    code: Code = UNFIT
    """The code of the error with which a rig is refused for it."""


class Machine(Protocol):
    """The questions that the checks ask; a test answers them itself."""

    def fuse_error(self) -> str | None:
        """Return the reason why the FUSE device cannot be opened for reading and writing; None if it can."""
        ...

    def free_loop(self) -> str:
        """Return the path of a free loop device; ``OSError`` if there is none to be had."""
        ...

    def program(self, name: str) -> str | None:
        """Return the path of a program, also of an administrator's."""
        ...

    def node(self) -> tuple[str, str]:
        """Return the path and version of Node; ``RigError`` or ``OSError`` if there is none that runs."""
        ...

    def azurite(self) -> tuple[str, str]:
        """Return the path and version of Azurite; ``RigError`` if there is none, or none that runs."""
        ...

    def kernel_filesystems(self) -> frozenset[str]:
        """Return the file systems that the kernel has, or has a module for."""
        ...

    def free_bytes(self, folder: Path) -> int:
        """Return the bytes that this user can use on the file system of an existing folder."""
        ...

    def capabilities(self) -> int:
        """Return this process's effective capabilities on the machine, as bits; those of a user namespace do not count."""
        ...

    def files_max(self) -> int:
        """Return the hard limit of open files of a process."""
        ...

    def kernel(self) -> str:
        """Return the kernel's release."""
        ...

    def python(self) -> str:
        """Return the version of this Python."""
        ...


def _search_path() -> str:
    """Return PATH, then the folders of an administrator, then that of the newest PostgreSQL, which Debian keeps apart."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parts[-2].zfill(4), reverse=True)
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", *map(str, versions)])


@dataclass(frozen=True, slots=True)
class ThisMachine(Machine):
    """The answers of the machine that we run on."""

    search_path: str = field(default_factory=_search_path)

    def fuse_error(self) -> str | None:
        try:
            open_fuse()
        except OSError as e:
            return reason(e, FUSE_DEVICE)
        return None

    def free_loop(self) -> str:
        control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
        try:
            device = f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}"
        finally:
            os.close(control)
        if not Path(device).exists():  # a container with a /dev of its own
            raise FileNotFoundError(errno.ENOENT, f"no device node {device}")
        return device

    def program(self, name: str) -> str | None:
        return shutil.which(name, path=self.search_path)

    def node(self) -> tuple[str, str]:
        path = find_node()
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20, check=False)
        return path, answer.stdout.strip()

    def azurite(self) -> tuple[str, str]:
        script = find_script()
        return str(script), version_of(script) or _answered_version(script)

    def kernel_filesystems(self) -> frozenset[str]:
        names = {line.split()[-1] for line in Path("/proc/filesystems").read_text().splitlines() if line}
        for listing in ("modules.builtin", "modules.dep"):
            path = Path("/lib/modules", platform.release(), listing)
            if path.is_file():
                names |= set(re.findall(r"/fs/[^/\s]+/([^/\s.]+)\.ko", path.read_text()))
        return frozenset(names)

    def free_bytes(self, folder: Path) -> int:
        return shutil.disk_usage(folder).free

    def capabilities(self) -> int:
        if Path("/proc/self/ns/user").stat().st_ino != _INITIAL_USER_NAMESPACE:
            return 0
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
        return int(line.split()[1], 16)

    def files_max(self) -> int:
        return resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def kernel(self) -> str:
        return platform.release()

    def python(self) -> str:
        return platform.python_version()


def _answered_version(script: Path) -> str:
    """The version that a script outside of Azurite's package answers with; ``AzuriteMissing``: it is no Azurite."""
    problem = f"{script} is not Azurite's azurite-blob script"
    try:
        asked = [find_node(), str(script), "--version"]
        answer = subprocess.run(
            asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=20, check=False
        )
    except (OSError, subprocess.SubprocessError) as e:
        raise RigError(Code.AzuriteMissing, f"{problem}: {e}") from e
    version = answer.stdout.strip()
    if answer.returncode != 0 or not re.fullmatch(r"\d+\.\d+\.\d+\S*", version):
        raise RigError(Code.AzuriteMissing, f"{problem}: asked for its version, it ended with status {answer.returncode}")
    return version


def require_fit(state_dir: Path, machine: Machine | None = None, *, is_new: bool = True, needs_azurite: bool = True) -> None:
    """Raise if this machine cannot run a rig with its state in ``state_dir``: the code of the first lack, the text of all.

    A new rig needs less free space than a drill.  One that exists needs none: on a full disk it must start, so that its
    commands can free space.  Without ``needs_azurite`` it needs neither Azurite nor Node.  Changes nothing.
    """
    found = checks(state_dir, machine, free_bytes_min=UP_BYTES_MIN if is_new else 0)
    spared = () if needs_azurite else (Code.AzuriteMissing, Code.NodeMissing)
    require([check for check in found if check.code not in spared])


def require(prerequisites: list[Prerequisite]) -> None:
    """Raise if a check failed: the code of the first that did, the text of all."""
    lacks = [check for check in prerequisites if not check.ok]
    if lacks:
        text = "; ".join(f"{check.name}: {check.found} (remedy: {check.remedy})" for check in lacks)
        raise RigError(lacks[0].code, f"this machine cannot run a rig: {text}")


def checks(state_dir: Path, machine: Machine | None = None, *, free_bytes_min: int = FREE_BYTES_MIN) -> list[Prerequisite]:
    """Check everything that a rig with its state in ``state_dir`` needs; never raises, changes nothing."""
    machine = machine or ThisMachine()
    return [
        _rights(machine),
        _fuse(machine),
        _fusermount(machine),
        _loop(machine),
        _filesystems(machine, "file systems", _FILESYSTEMS),
        *(_program(machine, name, package) for name, package in _PROGRAMS.items()),
        _node(machine),
        _azurite(machine),
        _open_files(machine),
        _free_space(machine, state_dir, free_bytes_min),
        _release("kernel", machine.kernel(), KERNEL_MIN, "boot a newer kernel"),
        _release(
            "python",
            machine.python(),
            PYTHON_MIN,
            "install a newer Python and siterig for it (in a checkout: remove .venv and run ./rig)",
        ),
    ]


def test_checks(machine: Machine | None = None) -> list[Prerequisite]:
    """Check what the project's own tests need besides; without it some are skipped."""
    machine = machine or ThisMachine()
    return [
        _filesystems(machine, "file systems for tests", _TEST_FILESYSTEMS),
        *(_program(machine, name, package) for name, package in TEST_PROGRAMS.items()),
    ]


def _rights(machine: Machine) -> Prerequisite:
    ok = bool(machine.capabilities() >> CAP_SYS_ADMIN & 1)
    found = "CAP_SYS_ADMIN" if ok else "no CAP_SYS_ADMIN on this machine, which mounting and loop devices need"
    return Prerequisite(
        "rights", ok, found, "run it as root (sudo), or in a container that is privileged", Code.NotPermitted
    )


def _fuse(machine: Machine) -> Prerequisite:
    error = machine.fuse_error()
    remedy = "modprobe fuse; in a container: pass --device /dev/fuse; as a user: ask for access to it"
    return Prerequisite(FUSE_DEVICE, error is None, error or "can be opened", remedy, Code.FuseMissing)


def _fusermount(machine: Machine) -> Prerequisite:
    path = machine.program("fusermount3")
    return Prerequisite("fusermount3", path is not None, path or "not found", "apt-get install fuse3", Code.ToolMissing)


def _loop(machine: Machine) -> Prerequisite:
    remedy = "modprobe loop, as root; in a container: run it privileged, with the host's /dev"
    try:
        return Prerequisite("loop devices", True, f"{machine.free_loop()} is free", remedy)
    except OSError as e:
        return Prerequisite("loop devices", False, f"{_LOOP_CONTROL}: {reason(e, _LOOP_CONTROL)}", remedy)


def _filesystems(machine: Machine, name: str, needed: tuple[str, ...]) -> Prerequisite:
    missing = [kind for kind in needed if kind not in machine.kernel_filesystems()]
    found = f"the kernel lacks {', '.join(missing)}" if missing else ", ".join(needed)
    return Prerequisite(name, not missing, found, "boot a kernel that has them, or install its modules")


def _program(machine: Machine, name: str, package: str) -> Prerequisite:
    path = machine.program(name)
    return Prerequisite(name, path is not None, path or "not found", f"apt-get install {package}", Code.ToolMissing)


def _node(machine: Machine) -> Prerequisite:
    try:
        path, version = machine.node()
    except RigError:
        return Prerequisite("node", False, "not found", NODE_REMEDY, Code.NodeMissing)
    except (OSError, subprocess.SubprocessError) as e:
        return Prerequisite("node", False, f"does not run: {e}", NODE_REMEDY, Code.NodeMissing)
    major = re.match(r"v(\d+)\.", version)
    ok = major is not None and int(major[1]) >= NODE_MAJOR_MIN
    found = f"{version or 'no version'} at {path}" + ("" if ok else f", too old (at least {NODE_MAJOR_MIN})")
    return Prerequisite("node", ok, found, NODE_REMEDY, Code.NodeMissing)


def _azurite(machine: Machine) -> Prerequisite:
    try:
        path, version = machine.azurite()
    except RigError as e:
        return Prerequisite("azurite", False, e.message.partition(":")[0], AZURITE_REMEDY, Code.AzuriteMissing)
    return Prerequisite("azurite", True, f"{version} at {path}", AZURITE_REMEDY)


def _open_files(machine: Machine) -> Prerequisite:
    may_raise = bool(machine.capabilities() >> CAP_SYS_RESOURCE & 1)
    count = machine.files_max()
    found = f"{count}, which the rig may raise" if may_raise else str(count)
    remedy = f"raise the hard limit of open files to {FILES_MIN} or more (ulimit -Hn)"
    return Prerequisite("open files", may_raise or count >= FILES_MIN, found, remedy, Code.TooFewFiles)


def _free_space(machine: Machine, state_dir: Path, bytes_min: int) -> Prerequisite:
    there = state_dir.absolute()
    while not os.path.lexists(there):
        there = there.parent
    what = f"a drill needs {bytes_min >> 30} GiB" if bytes_min >= 1 << 30 else f"a rig needs {bytes_min >> 20} MiB"
    remedy = f"{what}: free some, or name a folder on a larger file system with --dir"
    try:
        free = machine.free_bytes(there)
    except OSError as e:
        return Prerequisite("free space", False, f"{there}: {reason(e, there)}", remedy)
    # Rounded down: the rest of a unit must not look like enough.
    found = f"{free * 10 // (1 << 30) / 10} GiB" if free >= 1 << 30 else f"{free >> 20} MiB"
    return Prerequisite("free space", free >= bytes_min, f"{found} at {there}", remedy)


def _release(name: str, version: str, least: tuple[int, int], remedy: str) -> Prerequisite:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    ok = numbers is not None and (int(numbers[1]), int(numbers[2])) >= least
    return Prerequisite(name, ok, version if ok else f"{version}, too old (at least {least[0]}.{least[1]})", remedy)
