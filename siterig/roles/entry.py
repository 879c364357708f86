"""The frame of every role's process: die with the parent, report readiness, answer health checks, end on SIGTERM."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol, TextIO, cast

import structlog
import trio

from blockfs.errors import RigError
from blockfs.printable import printable
from blockfs.waits import RoleHealth, Wait, Waits
from siterig.failures import expected
from siterig.layout import PRIVATE_UMASK, Layout
from siterig.process import HealthAnswer, Readiness

_PR_SET_PDEATHSIG = 1


class Health:
    """A role's health (:class:`blockfs.waits.RoleHealth`): the waits that it registers, and what its frame finds.

    ``probe``: asks what the role serves, if that is a process of its own; ``RigError`` if it does not answer.
    """

    def __init__(self) -> None:
        self.waits = Waits()
        self.probe: Callable[[], Awaitable[None]] | None = None

    async def report(self) -> list[Wait]:
        """See :class:`blockfs.waits.RoleHealth`."""
        if self.probe is not None:
            await self.probe()
        self._look_for_descriptors()
        return self.waits.list()

    def _look_for_descriptors(self) -> None:
        try:
            os.close(os.dup(2))
        except OSError as error:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self.waits.set(
                "descriptors", "DescriptorsExhausted", f"all {soft} file descriptors are in use ({error.strerror})"
            )
        else:
            self.waits.clear("descriptors")


class RoleWork(Protocol):
    """A role: runs until cancelled; ``started`` means that it answers calls."""

    async def __call__(self, layout: Layout, *, health: Health, task_status: trio.TaskStatus[None]) -> None: ...


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


def _escaped(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Names and messages from outside cannot begin a line of their own in the log, or draw on a terminal that shows it."""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def log_to_stderr(level: int = logging.NOTSET) -> None:
    """Structured log lines of a level and above on stderr, which the supervisor appends to the role's log."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level),
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escaped,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _LogFile())),
    )


async def until_told(work: RoleWork, layout: Layout, channel_fd: int) -> None:
    """Run ``work`` until SIGTERM or SIGINT; report its readiness, then answer health checks."""
    health = Health()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:

            async def end_on_signal() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(end_on_signal)
            await nursery.start(partial(work, layout, health=health))
            report(channel_fd, Readiness())
            await answer_checks(health, channel_fd)


async def answer_checks(health: RoleHealth, channel_fd: int) -> None:
    """Answer the parent's health checks (:mod:`siterig.process`) until cancelled; closes the channel then."""
    async with trio.lowlevel.FdStream(channel_fd) as channel:
        async for questions in channel:
            for _ in range(questions.count(b"\n")):
                try:
                    answer = HealthAnswer(waits=await health.report())
                except RigError as error:
                    answer = HealthAnswer(problem=error.message)
                await channel.send_all(answer.model_dump_json().encode() + b"\n")
        await trio.sleep_forever()  # the parent has gone, and this process ends with it


def report(fd: int, readiness: Readiness) -> None:
    """Write the first line to the parent."""
    os.write(fd, readiness.model_dump_json().encode() + b"\n")


def main(work: RoleWork) -> None:
    """``python -m siterig.roles.NAME DIR [OPTION] CHANNEL_FD PARENT_PID``."""
    folder, channel_fd, parent_pid = Path(sys.argv[1]), int(sys.argv[-2]), int(sys.argv[-1])
    die_with_parent(parent_pid)
    allow_many_files()
    os.set_inheritable(channel_fd, False)
    os.umask(PRIVATE_UMASK)
    log_to_stderr()
    try:
        trio.run(until_told, work, Layout(folder), channel_fd)
    except (RigError, ExceptionGroup) as error:
        failure = expected(error)
        if failure is None:
            raise
        structlog.get_logger().error(failure.message, code=failure.code)
        # If it had been ready before, the channel is closed.
        with contextlib.suppress(OSError):
            report(channel_fd, Readiness(code=failure.code, message=failure.message, recoverable=failure.recoverable))
        sys.exit(1)
