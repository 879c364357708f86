"""Reads bytes of an open image file, with errors that name the file."""

from __future__ import annotations

import os
from pathlib import Path

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.os_errors import reason


class ImageBytes:
    """Reads from a descriptor that the caller owns; ``size_bytes`` is the size of the file when it was opened."""

    def __init__(self, path: Path, fd: int, size_bytes: int) -> None:
        self.path, self.fd, self.size_bytes = path, fd, size_bytes

    def read(self, at: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; raise ``ImageUnusable`` if the file ends before, or cannot be read."""
        try:
            data = os.pread(self.fd, length, at) if 0 <= at < 1 << 62 else b""
        except OSError as exc:
            raise self.error(f"cannot be read at byte {at}: {reason(exc)}") from exc
        if len(data) < length:
            raise self.error(f"is truncated: its header needs bytes {at} to {at + length}; the file has {self.size_bytes}")
        return data

    def error(self, why: str) -> RigError:
        """Return the error ``ImageUnusable`` with the name of the file."""
        return RigError(Code.ImageUnusable, f"{self.path}: {why}")

    def error_needs(self, other: str) -> RigError:
        """Return the error ``ImageUnusable``: this file and ``other`` form one image only together."""
        return self.error(f"needs another file, {other}: qemu-img convert makes one image of both")
