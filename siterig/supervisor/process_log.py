"""The log of a role or of the supervisor: bounded in size, without repetitions of one line.

A process writes its own log, ``log/NAME.log``.  A file of more than ``LOG_BYTES_MAX`` is renamed to ``NAME.log.1``, in place
of the former one, and a new file begins.  So each log takes at most about twice that size.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TextIO, cast

import structlog

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock, rfc3339
from siterig.blockfs.core.clock_reading import SECOND_NS
from siterig.blockfs.core.printable import printable
from siterig.blockfs.files import safe_files

LOG_BYTES_MAX = 4 << 20
REPEAT_S = 60.0
"""A line that differs from an earlier one only in its time is written at most once in this time."""
_REMEMBERED_MAX = 256
_NOT_COMPARED = frozenset({"exc_info", "stack_info"})


def former_log(log: Path) -> Path:
    """Return the file that was the log before the last rotation."""
    return log.with_name(f"{log.name}.1")


class RotatingLog(io.TextIOBase):
    """Standard error without a buffer, rotated if it is the file ``log`` (None: it is no log).

    A line for which the disk has no room is dropped, because it must not end a role.
    """

    def __init__(self, log: Path | None) -> None:
        self._log = log
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Write to the log."""
        with contextlib.suppress(OSError), self._lock:
            os.write(2, text.encode(errors="backslashreplace"))
            if self._log is not None and (size := os.fstat(2).st_size) > LOG_BYTES_MAX:
                self._rotate(self._log, size)
        return len(text)

    @staticmethod
    def _rotate(log: Path, size: int) -> None:
        new = log.with_name(f"{log.name}.new")
        try:
            fd = safe_files.open_file(new, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError:
            if size > 2 * LOG_BYTES_MAX:  # no descriptor is left for a new file: lose the history, not the disk space
                os.ftruncate(2, 0)
            raise
        try:
            log.rename(former_log(log))
            new.rename(log)
            os.dup2(fd, 2)
            os.dup2(fd, 1)
        finally:
            os.close(fd)


class Repeats:
    """A processor of structlog that drops repeated lines; the next line that passes has their number."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._seen: OrderedDict[tuple[tuple[str, str], ...], tuple[float, int]] = OrderedDict()

    def __call__(self, _logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """Pass an event on, or drop it.

        Raises:
            structlog.DropEvent: the same line was written within ``REPEAT_S``.
        """
        compared = sorted((key, repr(value)) for key, value in event.items() if key not in _NOT_COMPARED)
        key = (("level", method), *compared)
        now = self._clock.monotonic_ns() / SECOND_NS
        at, dropped = self._seen.get(key, (-REPEAT_S, 0))
        if now - at < REPEAT_S and key in self._seen:
            self._seen[key] = (at, dropped + 1)
            raise structlog.DropEvent
        self._seen[key] = (now, 0)
        self._seen.move_to_end(key)
        while len(self._seen) > _REMEMBERED_MAX:
            self._seen.popitem(last=False)
        if dropped:
            event["repeated"] = dropped
        return event


class _ToStructlog(logging.Handler):
    """Passes the lines of libraries that use the standard library's logging to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger()
        logger.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)


def _escaped(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape texts, so that names from outside cannot begin a line of the log or control a terminal that shows it."""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def log_to_stderr(folder: Path, clock: Clock = SYSTEM_CLOCK) -> None:
    """Send the log of this process to its standard error; rotate it if it is a file in ``folder``.

    The lines have the wall time of ``clock``.
    """

    def add_time(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        event["timestamp"] = rfc3339(clock.wall_ns())
        return event

    target = Path("/proc/self/fd/2").readlink()
    file = RotatingLog(target if target.parent == folder else None)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        processors=[
            structlog.contextvars.merge_contextvars,
            Repeats(),
            structlog.processors.add_log_level,
            add_time,
            _escaped,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", file)),
    )
    sys.stderr = cast("TextIO", file)
    logging.getLogger().handlers = [_ToStructlog(logging.WARNING)]
