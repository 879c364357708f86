"""The log of a role or of the supervisor: bounded in size, and without the same line again and again.

A process writes its own log, ``log/NAME.log``.  Beyond ``LOG_BYTES_MAX`` the file becomes ``NAME.log.1``, in place of the
one before, and a new one is begun.  So each log takes at most about twice that.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, cast

import structlog

from siterig.blockfs.core.printable import printable
from siterig.blockfs.files import safe_files

LOG_BYTES_MAX = 4 << 20
REPEAT_S = 60.0
"""A line that is the same as one before, but for its time, is written once in so long."""
_REMEMBERED_MAX = 256
_NOT_COMPARED = frozenset({"exc_info", "stack_info"})


def former_log(log: Path) -> Path:
    """The file that was the log before the last rotation."""
    return log.with_name(f"{log.name}.1")


class RotatingLog(io.TextIOBase):
    """Standard error without a buffer, rotated if it is the file ``log`` (None: it is not).

    A line for which the disk has no room is dropped: it must not end a role.
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
            if size > 2 * LOG_BYTES_MAX:  # no descriptor is left for a new file: better no history than a full disk
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
    """A processor of structlog that drops repeated lines, and counts them in the next one that it lets through."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: OrderedDict[tuple[tuple[str, str], ...], tuple[float, int]] = OrderedDict()

    def __call__(self, _logger: object, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        """``structlog.DropEvent`` if the same was written within ``REPEAT_S``."""
        compared = sorted((key, repr(value)) for key, value in event.items() if key not in _NOT_COMPARED)
        key = (("level", method), *compared)
        now = self._clock()
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
    """Lines of libraries that use the standard library's logging: bounded in the same way."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger()
        logger.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None)


def _escaped(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Names and messages from outside cannot begin a line of their own in the log, or draw on a terminal that shows it."""
    return {key: printable(value) if isinstance(value, str) else value for key, value in event.items()}


def log_to_stderr(folder: Path) -> None:
    """Send everything that this process logs to its standard error, and bound that if it is a file in ``folder``."""
    target = Path("/proc/self/fd/2").readlink()
    file = RotatingLog(target if target.parent == folder else None)
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.NOTSET),
        processors=[
            structlog.contextvars.merge_contextvars,
            Repeats(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _escaped,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ],
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", file)),
    )
    sys.stderr = cast("TextIO", file)
    logging.getLogger().handlers = [_ToStructlog(logging.WARNING)]
