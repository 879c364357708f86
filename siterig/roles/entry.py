"""What every role's process does around its work: die with its parent, report readiness, end on SIGTERM."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Protocol, TextIO, cast

import structlog
import trio

from blockfs.errors import RigError
from siterig.failures import expected
from siterig.layout import Layout
from siterig.process import Readiness

_PR_SET_PDEATHSIG = 1


class RoleWork(Protocol):
    """A role: runs until cancelled; ``started`` means that it answers calls."""

    async def __call__(self, layout: Layout, *, task_status: trio.TaskStatus[None]) -> None: ...


def die_with_parent(parent_pid: int) -> None:
    """SIGKILL for this process when its parent ends, however that comes about."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:  # it ended before the call
        os._exit(1)


class _LogFile(io.TextIOBase):
    """Standard error without a buffer.  A line for which the disk has no room is dropped: it must not end a role."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            os.write(2, text.encode(errors="backslashreplace"))
        return len(text)


def allow_many_files() -> None:
    """Raise the soft limit of open files to the hard one: a view of a long journal holds many segments open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def log_to_stderr(level: int = logging.NOTSET) -> None:
    """Structured log lines of a level and above on stderr, which the supervisor appends to the role's log."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _LogFile())),
    )


async def until_told(work: RoleWork, layout: Layout, report_fd: int) -> None:
    """Run ``work`` until SIGTERM or SIGINT, and report its readiness."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(end_on_signal)
            await nursery.start(work, layout)
            report(report_fd, Readiness())


def report(fd: int, readiness: Readiness) -> None:
    """Tell the parent; it reads one line only."""
    os.write(fd, readiness.model_dump_json().encode() + b"\n")
    os.close(fd)


def main(work: RoleWork) -> None:
    """``python -m siterig.roles.NAME DIR [OPTION] READY_FD PARENT_PID``."""
    folder, ready_fd, parent_pid = Path(sys.argv[1]), int(sys.argv[-2]), int(sys.argv[-1])
    die_with_parent(parent_pid)
    allow_many_files()
    os.set_inheritable(ready_fd, False)
    log_to_stderr()
    try:
        trio.run(until_told, work, Layout(folder), ready_fd)
    except (RigError, ExceptionGroup) as error:
        failure = expected(error)
        if failure is None:
            raise
        structlog.get_logger().error(failure.message, code=failure.code)
        # If it had been ready before, the descriptor is closed.
        with contextlib.suppress(OSError):
            report(ready_fd, Readiness(code=failure.code, message=failure.message, recoverable=failure.recoverable))
        sys.exit(1)
