"""Starts a program that reads hostile input: it can open the files that it was given, and no others.

:mod:`siterig.blockfs.images.helper_process` runs it as a program (``confined.py SPEC PROGRAM ARGUMENT...``) with the
standard library only.  If the kernel has Landlock (Linux 5.13 and newer, unless it is turned off), the program can open the
descriptors of ``SPEC`` (as ``/dev/fd/N``) and its own libraries, and nothing else, and it can neither connect to nor listen
on TCP ports.  Memory, CPU time, the size of files and core dumps are limited in any case.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH, _NO_NEW_PRIVS = 1, 1, 38
_EXECUTE, _WRITE, _READ, _READ_FOLDER, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_FILE_RIGHTS_V1, _REFER, _IOCTL_DEVICE = (1 << 13) - 1, 1 << 13, 1 << 15
_TCP = 0b11
_LIBRARIES = ("/usr", "/lib", "/lib32", "/lib64", "/bin", "/nix/store", "/gnu/store")
_FILES = ("/etc/ld.so.cache", "/dev/null", "/dev/zero", "/dev/urandom")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def _syscall(number: int, *arguments: int | bytes | None) -> int:
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _rights(version: int) -> tuple[int, bytes]:
    """Return all rights on files that a version of Landlock can restrict, and the attributes of a ruleset."""
    rights = _FILE_RIGHTS_V1
    for since, right in ((2, _REFER), (3, _TRUNCATE), (5, _IOCTL_DEVICE)):
        rights |= right if version >= since else 0
    return rights, struct.pack("=QQ", rights, _TCP) if version >= 4 else struct.pack("=Q", rights)


def landlock_version() -> int:
    """Return the version of Landlock in this kernel; 0 if it has none, or it is turned off."""
    try:
        return _syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def restrict(reads: Iterable[int], writes: Iterable[int], folders: Iterable[str]) -> bool:
    """Allow this process only these descriptors and folders; return False if the kernel has no Landlock."""
    version = landlock_version()
    if version == 0:
        return False
    rights, attributes = _rights(version)
    ruleset = _syscall(_CREATE_RULESET, attributes, len(attributes), 0)

    def allow(fd: int, access: int) -> None:
        rule = struct.pack("=Qi", access & rights, fd)
        try:
            _syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0)
        except OSError as error:
            if error.errno != errno.EBADFD:  # a file in memory has no path, and is not restricted
                raise

    for fd in reads:
        allow(fd, _READ | _IOCTL_DEVICE)
    for fd in writes:
        allow(fd, _READ | _WRITE | _TRUNCATE | _IOCTL_DEVICE)
    for names, access in ((folders, _READ | _EXECUTE | _READ_FOLDER), (_FILES, _READ | _WRITE)):
        for name in names:
            try:
                fd = os.open(name, os.O_PATH | os.O_CLOEXEC)
            except OSError:
                continue  # this machine does not have it
            allow(fd, access)
            os.close(fd)
    _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    _syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)
    return True


def _limit(what: int, limit: int) -> None:
    """Lower a limit; a lower limit that exists stays."""
    soft, hard = resource.getrlimit(what)
    found = [each for each in (limit, soft, hard) if each != resource.RLIM_INFINITY]
    resource.setrlimit(what, (min(found), min(found)))


def main() -> None:
    """Confine this process, then run the program (the module's docstring has the details)."""
    spec = json.loads(sys.argv[1])
    command = sys.argv[2:]
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_CPU, spec["cpu_s"])
    _limit(resource.RLIMIT_FSIZE, spec["file_bytes"])
    _limit(resource.RLIMIT_AS, spec["memory_bytes"])
    restrict(spec["reads"], spec["writes"], (*_LIBRARIES, str(Path(command[0]).resolve().parent)))
    os.execv(command[0], command)  # noqa: S606 (a shell would be one program more that reads hostile words)


if __name__ == "__main__":
    main()
