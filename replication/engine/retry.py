"""Times of the retries of a failed cycle, and the choice of one failure among several (docs/reference/retries.md)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import files_of, reason

OFFICIAL_DELAYS_S = (60.0, 120.0, 240.0, 480.0, 600.0, 1800.0)
"""Delays of 1, 2, 4, 8 and 10 minutes, then every 30 minutes (the last one repeats)."""

_RECOVERABLE_ERRNO = {
    errno.ENOSPC: Code.DiskFull,
    errno.EDQUOT: Code.DiskFull,
    errno.ENOMEM: Code.LowMemory,
    # Reads of a snapshot whose store is full fail like this; and a temporary error of a disk needs no user.
    errno.EIO: Code.HostIoError,
    # This process, or the host, has no descriptor left for the moment.
    errno.EMFILE: Code.HostIoError,
    errno.ENFILE: Code.HostIoError,
    # The disk host was killed or is starting: its mount is dead or not there yet.
    errno.ENOTCONN: Code.DiskHostUnreachable,
    errno.ECONNABORTED: Code.DiskHostUnreachable,
    errno.ENODEV: Code.DiskHostUnreachable,
    errno.ENOENT: Code.DiskHostUnreachable,
    errno.ESTALE: Code.DiskHostUnreachable,
}


@dataclass(frozen=True)
class RetryTable:
    """Delays in seconds after the first, second, ... consecutive failure; the last one repeats."""

    delays_s: tuple[float, ...] = OFFICIAL_DELAYS_S

    def __post_init__(self) -> None:
        if not self.delays_s or min(self.delays_s) <= 0:
            raise RigError(Code.InvalidRetryTable, f"retry delays {self.delays_s} s: at least one, each above 0")

    def delay_s(self, attempt: int, error: RigError | None = None) -> float:
        """Return the delay after failure number ``attempt`` (from 1); it is not shorter than the peer asks for."""
        return max(self.delays_s[min(attempt, len(self.delays_s)) - 1], 0.0 if error is None else error.retry_after_s)


class ResyncNeeded(Exception):  # noqa: N818 (a finding, not a fault)
    """The logs of the disks are not contiguous, for the ``reason`` as in ``DiskInfo.needs_resync``."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def as_rig_error(exc: RigError | OSError) -> RigError:
    """Return an error of the operating system as the error that the retry table knows."""
    if isinstance(exc, RigError):
        return exc
    code = _RECOVERABLE_ERRNO.get(exc.errno or 0)
    where = " to ".join(files_of(exc)) or "host"
    return RigError(code or Code.HostIoError, f"{where}: {reason(exc, where)}", recoverable=code is not None)


@contextmanager
def unwrap_group() -> Iterator[None]:
    """Replace the exception group of a nursery by its most important failure: a resync, then an unrecoverable error.

    A group that contains a bug stays a group.  A failure together with a cancellation is raised alone; the cancelled scope
    raises again at the next checkpoint.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        failures = group.split(trio.Cancelled)[1]
        leaves = list(_leaves(failures)) if failures is not None else []
        if not leaves or not all(isinstance(leaf, ResyncNeeded | RigError | OSError) for leaf in leaves):
            raise
        raise min(leaves, key=_urgency) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for exc in group.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc


def _urgency(exc: BaseException) -> int:
    if isinstance(exc, ResyncNeeded):
        return 0
    assert isinstance(exc, RigError | OSError)  # noqa: S101 (for the type checker)
    return 2 if as_rig_error(exc).recoverable else 1
