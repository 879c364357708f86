"""Faults in the disk engine's system calls (cext/src/base/io.h): a full or dying disk, at a moment of one's choice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from siterig.cext._core import ffi, lib

READ: int = lib.SR_IO_READ
WRITE: int = lib.SR_IO_WRITE
SYNC: int = lib.SR_IO_SYNC
PUNCH: int = lib.SR_IO_PUNCH
RESIZE: int = lib.SR_IO_RESIZE

Verdict = Callable[[int, str, int, int], int]
"""(operation, file's path, offset, bytes) -> 0: make the call; -errno: fail; n > 0: do only the first n bytes."""


@contextlib.contextmanager
def io_verdict(verdict: Verdict) -> Iterator[None]:
    """Ask ``verdict`` before each call of the engine during the block."""

    def ask(operation: int, fd: int, offset: int, size: int, _iov: Any, _iovs: int) -> int:
        return verdict(operation, str(Path(f"/proc/self/fd/{fd}").readlink()), offset, size)

    hook = ffi.callback("sr_io_hook_fn", ask)
    lib.sr_io_set_hook(hook)
    try:
        yield
    finally:
        lib.sr_io_set_hook(ffi.NULL)


@contextlib.contextmanager
def failing(operation: int, suffix: str, error: int, *, after_bytes: int = 0) -> Iterator[None]:
    """Let operations of a kind on files with a suffix fail; writes fail after their first ``after_bytes`` bytes."""

    def verdict(asked: int, path: str, _offset: int, _size: int) -> int:
        if asked != operation or not path.endswith(suffix):
            return 0
        return after_bytes or -error

    with io_verdict(verdict):
        yield
