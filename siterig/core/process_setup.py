"""Settings that a process of a rig makes at its start: its end with its parent, its limits, and no core dumps."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence

from siterig.blockfs.core.errors import Code, RigError
from siterig.cext import linux

FILES_MIN = 64
"""The least number of open files that a process of a rig needs."""
FILES_WANTED = 1 << 16
"""A view of a long journal holds many segments open."""
ARENAS_MAX = 2
"""The most arenas of the allocator; by default each thread has one."""
RETURNED_BYTES_MIN, KEPT_BYTES_MAX = 1 << 20, 4 << 20
"""The least size of a block of memory that is returned when it is freed, and the most memory that an arena keeps at its end
for smaller blocks."""
REUSED_BYTES_MAX = 32 << 20
"""Both of them, in a role that uses the memory of large blocks again."""
TRIMMED_BYTES_MIN = 16 << 20
"""So much free memory in the arenas is returned by :class:`MemoryTrimmer`."""
GROWN_BYTES_MIN = 4 << 20
"""So much more memory than after the last time makes it look again."""
FILES_MAX = "--files-max"
"""The option of a role with the limit that a fault rule puts on its open files, after ``=``."""


def die_with_parent(parent_pid: int) -> None:
    """Let the kernel kill this process with SIGKILL when its parent ends for any reason."""
    linux.set_parent_death_signal(signal.SIGKILL)
    if os.getppid() != parent_pid:  # it ended before the call
        os._exit(1)


def allow_many_files(words: Sequence[str] = ()) -> None:
    """Raise the limits of open files as far as this process may, or limit them by the option ``FILES_MAX``.

    Args:
        words: the command line of the role.
    Raises:
        RigError: ``TooFewFiles`` if this process may not open enough files.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(hard, FILES_WANTED)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))
    except (OSError, ValueError):  # only an administrator raises the hard limit, and not above the kernel's own
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        wanted = hard
    for word in words:
        option, _, value = word.partition("=")
        if option == FILES_MAX:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(int(value), wanted), wanted))
    if wanted < FILES_MIN:
        raise RigError(
            Code.TooFewFiles,
            f"this process may open {wanted} files, and a process of a rig needs {FILES_MIN}: "
            "raise the hard limit (ulimit -Hn)",
        )


def limit_free_memory(*, reuse: bool) -> None:
    """Let the C library return the memory of parts that are done to the kernel.

    By default it keeps blocks of up to 32 MiB once such a block was freed, in an arena for each thread: then the memory of
    a role grows with the number of parts that it has sent or applied.

    Args:
        reuse: keep large blocks for others, in few arenas, until :class:`MemoryTrimmer` returns them.  Fresh pages for each
            block of a part cost more time than its decryption; a role that uses buffers of its own again does not need it.
    """
    returned, kept = (REUSED_BYTES_MAX, REUSED_BYTES_MAX) if reuse else (RETURNED_BYTES_MIN, KEPT_BYTES_MAX)
    linux.return_freed_memory(bytes_min=returned, kept_bytes_max=kept, arenas_max=ARENAS_MAX)


class MemoryTrimmer:
    """Returns free memory of this process to the kernel, now and then.

    Memory that was returned still counts as free in the C library.  So it is asked again only after the process grew.  A
    context manager: it has a file open, because later there may be no free descriptor.
    """

    def __init__(self) -> None:
        self._fd = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self._used_bytes = 0
        """The memory of the process after the last time."""

    def __enter__(self) -> MemoryTrimmer:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def trim(self) -> bool:
        """Return free memory if it is much; the result is False if the process has not grown since the last time."""
        if self._resident_bytes() < self._used_bytes + GROWN_BYTES_MIN:
            return False
        linux.trim_memory(free_bytes_min=TRIMMED_BYTES_MIN)
        self._used_bytes = self._resident_bytes()
        return True

    def _resident_bytes(self) -> int:
        return int(os.pread(self._fd, 256, 0).split()[1]) * resource.getpagesize()


def forbid_core_dumps(*, holds_keys: bool) -> None:
    """Forbid core files of this process and its children.

    Args:
        holds_keys: also forbid a core dump to a program that the kernel starts (``core_pattern`` with a pipe), to which
            the limit does not apply.  Other processes of the same user then cannot read the memory of this process through
            ``/proc`` either.  A child that runs another program is not affected.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if holds_keys:
        linux.forbid_memory_access()
