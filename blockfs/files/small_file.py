"""Reads small files of siterig (states and records in JSON); the size is checked before a byte is parsed."""

from __future__ import annotations

import os
from collections.abc import Callable
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


def read_counted_file(path: Path, head_bytes: int, size_of: Callable[[bytes], int]) -> bytes:
    """Return all bytes of a file in a folder of the rig; a file that is longer than it says is not read.

    Args:
        path: the file.
        head_bytes: the bytes at its beginning that say how long it is.
        size_of: returns the size of the file from these bytes.
    Raises:
        FileTooLongError: it has more bytes than it says.
        OSError: it cannot be read.
    """
    host_calls.opening(path, os.O_RDONLY)
    with path.open("rb") as file, naming(path):
        host_calls.opened(path, file.fileno())
        head = host_calls.read_open(file, head_bytes)
        if len(head) < head_bytes:
            return head
        file.seek(0)
        return bounded(file, min(size_of(head), os.fstat(file.fileno()).st_size))
