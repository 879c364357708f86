"""A process that is killed before any call by which it changes files: no ``finally`` and no ``except`` of it runs any more.

All that it had written stays, synced or not, so nothing here waits for a sync.  Power losses are tested in tests/crash.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.io_faults import PUNCH, RESIZE, SYNC, WRITE, io_verdict

Begin = Callable[[Path], Callable[[], object]]
"""Opens what is in the folder; what is to be killed then."""

KILLED = 9
_IN_C = {WRITE: "write", SYNC: "sync", PUNCH: "punch", RESIZE: "resize"}


class _Calls:
    """Counts them, a write twice: it may be killed before it, and when half of it is done."""

    def __init__(self, kill_at: int | None) -> None:
        self.done: list[str] = []
        self.dead = False
        """The engine has got the answer that there is room for half of a write only: no more calls are made."""
        self._kill_at = kill_at

    def _killed_at(self, what: str) -> bool:
        if self.dead:
            os._exit(KILLED)
        self.done.append(what)
        return len(self.done) - 1 == self._kill_at

    def _before(self, what: str) -> None:
        if self._killed_at(what):
            os._exit(KILLED)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count the calls that are made in this block."""
        with ExitStack() as stack:
            for name in ("ftruncate", "rename", "unlink", "rmdir", "mkdir"):
                stack.enter_context(mock.patch.object(os, name, self._named(name, getattr(os, name))))
            for name in ("fsync", "fdatasync"):
                stack.enter_context(mock.patch.object(os, name, lambda fd, name=name: self._before(f"{name} {_name(fd)}")))
            stack.enter_context(mock.patch.object(os, "open", self._open(os.open)))
            stack.enter_context(mock.patch.object(os, "write", self._write(os.write)))
            stack.enter_context(mock.patch.object(os, "pwrite", self._pwrite(os.pwrite)))
            stack.enter_context(mock.patch.object(os, "pwritev", self._pwritev(os.pwrite, os.pwritev)))
            stack.enter_context(io_verdict(self._in_c))
            yield

    def _named(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(what: Any, *args: Any, **kwargs: Any) -> Any:
            self._before(f"{name} {_name(what)}")
            return real(what, *args, **kwargs)

        return call

    def _open(self, real: Callable[..., int]) -> Callable[..., int]:
        def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            if flags & (os.O_CREAT | os.O_TRUNC):
                self._before(f"open {_name(path)}")
            return real(path, flags, *args, **kwargs)

        return open_

    def _write(self, real: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, data: Any) -> int:
            self._before(f"write {_name(fd)}")
            if self._killed_at(f"half of write {_name(fd)}"):
                real(fd, data[: len(data) // 2])
                os._exit(KILLED)
            return real(fd, data)

        return write

    def _pwrite(self, real: Callable[..., int]) -> Callable[..., int]:
        def pwrite(fd: int, data: Any, offset: int) -> int:
            self._before(f"pwrite {_name(fd)}")
            if self._killed_at(f"half of pwrite {_name(fd)}"):
                real(fd, data[: len(data) // 2], offset)
                os._exit(KILLED)
            return real(fd, data, offset)

        return pwrite

    def _pwritev(self, half: Callable[..., int], real: Callable[..., int]) -> Callable[..., int]:
        def pwritev(fd: int, pieces: Any, offset: int) -> int:
            self._before(f"pwritev {_name(fd)}")
            if self._killed_at(f"half of pwritev {_name(fd)}"):
                data = b"".join(pieces)
                half(fd, data[: len(data) // 2], offset)
                os._exit(KILLED)
            return real(fd, pieces, offset)

        return pwritev

    def _in_c(self, operation: int, path: str, _offset: int, size: int) -> int:
        if operation in _IN_C:
            self._before(f"{_IN_C[operation]} {Path(path).name}")
            if operation == WRITE:
                self.dead = self._killed_at(f"half of write {Path(path).name}")
                return size // 2 if self.dead else 0
        return 0


def _name(what: Any) -> str:
    return without_token(Path(f"/proc/self/fd/{what}").readlink().name if isinstance(what, int) else Path(what).name)


def without_token(name: str) -> str:
    """``.os.disk.tmp`` of a temporary file's name, which is another one each time."""
    return re.sub(r"\.[0-9a-f]{16}\.tmp$", ".tmp", name)


def calls_of(folder: Path, begin: Begin) -> list[str]:
    """Do it; what was called, in order."""
    calls, act = _Calls(None), begin(folder)
    with calls.counted():
        act()
    return calls.done


def copy_of(ready: Path, folder: Path) -> None:
    """``folder`` is then what ``ready`` is."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ready, folder)


def _digest(folder: Path) -> bytes:
    """Digest of the names and bytes of all files below the folder."""
    total = hashlib.blake2b()
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b""
        total.update(repr((without_token(str(path.relative_to(folder))), path.is_dir(), len(data))).encode())
        total.update(data)
    return total.digest()


def every_kill(ready: Path, folder: Path, begin: Begin) -> Iterator[str]:
    """Kill what ``begin`` does at each call; yield the call, with ``folder``, a copy of ``ready``, as the kill left it.

    A state that an earlier kill left, byte for byte, is not yielded again: a kill at a sync leaves what one before it does.
    """
    copy_of(ready, folder)
    names = calls_of(folder, begin)
    seen: set[bytes] = set()
    for kill_at in range(len(names)):
        copy_of(ready, folder)
        child = os.fork()
        if child == 0:
            calls = _Calls(kill_at)
            try:
                act = begin(folder)
                with calls.counted():
                    act()
            finally:
                os._exit(KILLED if calls.dead else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
        state = _digest(folder)
        if state in seen:
            continue
        seen.add(state)
        yield f"killed at call {kill_at}, {names[kill_at]}"
