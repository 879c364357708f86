"""Text for errors of the operating system, always with the file concerned.

Python leaves the file out of an ``OSError`` if a descriptor was used, and functions in C know no names.  :func:`naming` adds
the name; :func:`reason` makes the text that every handler shows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from siterig.cext._core import lib

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers for a full host disk or an exhausted quota."""
_MEDIA_ERRORS = (errno.EIO, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EUCLEAN, errno.EBADMSG)
"""Errors of a read of damaged or lost data; any other error is temporary: no memory, too many open files, no right."""


def is_media_error(exc: OSError) -> bool:
    """Return whether a read failed because of the stored data, not because of a temporary lack of something."""
    return exc.errno in _MEDIA_ERRORS


@contextmanager
def naming(path: Path, to: Path | None = None) -> Iterator[None]:
    """Add a file name to each ``OSError`` of the block that names no absolute path.

    Args:
        path: the file concerned.
        to: target of a rename or link.
    """
    try:
        yield
    except OSError as exc:
        if not _is_absolute(exc.filename):
            exc.filename = str(path)
            if to is not None:
                exc.filename2 = str(to)
        raise


def _is_absolute(filename: object) -> bool:
    """Return True if the file can be found by this name; a name below a descriptor cannot."""
    if not isinstance(filename, str | bytes | os.PathLike):
        return False
    return os.fsdecode(filename).startswith("/") and not os.fsdecode(filename).startswith("/proc/self/fd/")


def files_of(exc: OSError) -> list[str]:
    """Return the files that an error names: none, one or two."""
    named = (exc.filename, exc.filename2)
    return [os.fsdecode(name) for name in named if isinstance(name, str | bytes | os.PathLike) and os.fsdecode(name)]


def reason(exc: OSError, about: object = "") -> str:
    """Return the cause, and the files concerned unless the text ``about`` names them.

    Examples: ``No space left on device (/srv/os.000002.hrl)``, ``No such file or directory (/srv/os.spare to
    /srv/os.000002.hrl)``.
    """
    return (exc.strerror or str(exc) or type(exc).__name__) + in_brackets(exc, about)


def in_brackets(exc: OSError, about: object = "") -> str:
    """Return `` (FILE)`` or `` (FILE to FILE)``; empty if ``about`` names all files."""
    files = files_of(exc)
    return "" if all(_names(str(about), file) for file in files) else f" ({' to '.join(files)})"


def _names(text: str, file: str) -> bool:
    """Return True if ``file`` is a word of ``text``: ``/srv/os.img`` does not name ``/srv/os``."""
    at = text.find(file)
    while at >= 0:
        end = at + len(file)
        if text[end : end + 1] in ("", ":", ",", ";", " ", "'", ")"):
            return True
        at = text.find(file, end)
    return False


def raised_by_c(result: int) -> OSError:
    """Return the error for a result ``-errno`` of a function in C, with the file whose system call failed in this thread."""
    failed = int(lib.sr_io_failed_fd(-result))
    if failed < 0:
        return OSError(-result, os.strerror(-result))
    try:
        path = str(Path(f"/proc/self/fd/{failed}").readlink())
    except OSError:  # the descriptor was closed meanwhile
        return OSError(-result, os.strerror(-result))
    return OSError(-result, os.strerror(-result), path)
