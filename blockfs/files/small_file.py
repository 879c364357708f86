"""Reads small files of siterig (states and records in JSON); the size is checked before a byte is parsed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from siterig.blockfs.files import host_calls
from siterig.blockfs.files.os_errors import naming

SMALL_FILE_BYTES_MAX = 1 << 20
"""Limit for files without a limit of their own; the largest that siterig writes have a few KiB."""


class FileTooLongError(ValueError):
    """A file has more bytes than a file of its kind can have; the text has the number, not the name."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"has more than {bytes_max} bytes; a file of its kind has at most that many")


def bounded(file: BinaryIO, bytes_max: int = SMALL_FILE_BYTES_MAX) -> bytes:
    """Return all bytes of an open file.

    Raises:
        FileTooLongError: it has more than ``bytes_max`` bytes.
        OSError: it cannot be read.
    """
    data = host_calls.read_open(file, bytes_max + 1)
    if len(data) > bytes_max:
        raise FileTooLongError(bytes_max)
    return data


def read_small_file(path: Path, bytes_max: int = SMALL_FILE_BYTES_MAX) -> bytes:
    """Return all bytes of a file in a folder of the rig.

    Raises:
        FileTooLongError: it has more than ``bytes_max`` bytes.
        OSError: it cannot be read.
    """
    host_calls.opening(path, os.O_RDONLY)
    with path.open("rb") as file, naming(path):
        host_calls.opened(path, file.fileno())
        return bounded(file, bytes_max)
