"""Reads small files of ours: state and notes in JSON, whose size is bounded before a byte of them is parsed."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from siterig.blockfs.files.os_errors import naming

SMALL_FILE_BYTES_MAX = 1 << 20
"""The largest that siterig writes, but for those that have a limit of their own, are a few KiB."""


class FileTooLongError(ValueError):
    """A file has more bytes than it can rightly have; the text says how many that are, without its name."""

    def __init__(self, bytes_max: int) -> None:
        super().__init__(f"has more than {bytes_max} bytes; a file of its kind has at most that many")


def bounded(file: BinaryIO, bytes_max: int = SMALL_FILE_BYTES_MAX) -> bytes:
    """All bytes of an open file; :class:`FileTooLongError`, ``OSError``."""
    data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise FileTooLongError(bytes_max)
    return data


def read_small_file(path: Path, bytes_max: int = SMALL_FILE_BYTES_MAX) -> bytes:
    """All bytes of a file in a folder that is the rig's own; :class:`FileTooLongError`, ``OSError``."""
    with path.open("rb") as file, naming(path):
        return bounded(file, bytes_max)
