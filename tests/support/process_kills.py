"""A process that is killed before any call by which it changes files: no ``finally`` and no ``except`` of it runs any more.

All that it had written stays, synced or not, so nothing here waits for a sync.  Power losses are tested in tests/crash.

:func:`every_kill` runs the work once and keeps the files as they are before each call: a kill there leaves exactly these;
:func:`some_kills` shows some of them.
:func:`every_real_kill` kills a process at each call.  It takes ten times as long, and shows that the first one is right
(tests/unit/azure_emu/disks/test_store_kills.py).
"""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from tests.support.faults.some_steps import some_steps
from tests.support.io_faults import PUNCH, RESIZE, SYNC, WRITE, io_verdict

Begin = Callable[[Path], Callable[[], object]]
"""Opens the files in the folder, and returns the function that is to be killed."""

KILLED = 9
_IN_C = {WRITE: "write", SYNC: "sync", PUNCH: "punch", RESIZE: "resize"}


class _Calls:
    """Counts system calls; a write counts twice, because a process can be killed before it and in the middle of it."""

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
        pwrite, pwritev = os.pwrite, os.pwritev
        with ExitStack() as stack:
            for name in ("ftruncate", "rename", "unlink", "rmdir", "mkdir"):
                stack.enter_context(mock.patch.object(os, name, self._named(name, getattr(os, name))))
            for name in ("fsync", "fdatasync"):
                stack.enter_context(mock.patch.object(os, name, lambda fd, name=name: self._before(f"{name} {_name(fd)}")))
            stack.enter_context(mock.patch.object(os, "open", self._open(os.open)))
            stack.enter_context(mock.patch.object(os, "write", self._write(os.write)))
            stack.enter_context(mock.patch.object(os, "pwrite", self._pwrite(pwrite)))
            stack.enter_context(mock.patch.object(os, "pwritev", self._pwritev(pwrite, pwritev)))
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


@dataclass(frozen=True)
class _File:
    content: bytes
    mode: int
    times_ns: tuple[int, int]


@dataclass(frozen=True)
class _Moment:
    """The files below a folder at one moment: each path with its file, or None for a folder."""

    call: str
    files: dict[str, _File | None]

    def state(self) -> tuple[object, ...]:
        """Return the names and contents, which are what kills are compared by."""
        return tuple(
            sorted(
                (without_token(name), file is None, b"" if file is None else file.content)
                for name, file in self.files.items()
            )
        )

    def write(self, folder: Path) -> None:
        """Make ``folder`` what it was at this moment."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, file in self.files.items():
            path = folder / name
            if file is None:
                path.mkdir()
                continue
            path.write_bytes(file.content)
            path.chmod(file.mode)
            os.utime(path, ns=file.times_ns)


class _Moments(_Calls):
    """Keeps the files as they are before each call, and when half of a write is done; kills nothing."""

    def __init__(self, folder: Path) -> None:
        super().__init__(None)
        self.found: list[_Moment] = []
        self._folder = folder
        self._known: dict[str, _File] = {}
        self._half: tuple[int, str, int, int, bytes] | None = None
        """The last write in C: the number of its half, the path, the offset, half of its size, and the file before it."""

    def _killed_at(self, what: str) -> bool:
        self.finish()
        self.done.append(what)
        self.found.append(_Moment(f"killed at call {len(self.done) - 1}, {what}", self._look()))
        return False

    def _write(self, real: Callable[..., int]) -> Callable[..., int]:
        def write(fd: int, data: Any) -> int:
            self._before(f"write {_name(fd)}")
            half = len(data) // 2
            done = real(fd, data[:half]) if half else 0
            self._killed_at(f"half of write {_name(fd)}")
            return done + real(fd, data[half:])

        return write

    def _pwrite(self, real: Callable[..., int]) -> Callable[..., int]:
        def pwrite(fd: int, data: Any, offset: int) -> int:
            self._before(f"pwrite {_name(fd)}")
            real(fd, data[: len(data) // 2], offset)
            self._killed_at(f"half of pwrite {_name(fd)}")
            return real(fd, data, offset)

        return pwrite

    def _pwritev(self, half: Callable[..., int], real: Callable[..., int]) -> Callable[..., int]:
        def pwritev(fd: int, pieces: Any, offset: int) -> int:
            self._before(f"pwritev {_name(fd)}")
            data = b"".join(pieces)
            half(fd, data[: len(data) // 2], offset)
            self._killed_at(f"half of pwritev {_name(fd)}")
            return real(fd, pieces, offset)

        return pwritev

    def _in_c(self, operation: int, path: str, offset: int, size: int) -> int:
        if operation in _IN_C:
            self._before(f"{_IN_C[operation]} {Path(path).name}")
            if operation == WRITE:
                self.done.append(f"half of write {Path(path).name}")
                before = Path(path).read_bytes()
                self._half = len(self.done) - 1, str(Path(path).relative_to(self._folder)), offset, size // 2, before
        return 0

    def finish(self) -> None:
        """Keep the state of the last half write in C, which is known once all of the write is done."""
        if self._half is None:
            return
        number, name, offset, half, before = self._half
        self._half = None
        files = self._look()
        file = files[name]
        assert file is not None
        end = offset + half
        content = before[:offset].ljust(offset, b"\0") + file.content[offset:end] + before[end:]
        files[name] = _File(content, file.mode, file.times_ns)
        self.found.append(_Moment(f"killed at call {number}, {self.done[number]}", files))

    def _look(self) -> dict[str, _File | None]:
        """Read all files; one that was not changed is the same object as before, so that it is kept once."""
        files: dict[str, _File | None] = {}
        for path in sorted(self._folder.rglob("*")):
            name, status = str(path.relative_to(self._folder)), path.stat()
            if stat.S_ISDIR(status.st_mode):
                files[name] = None
                continue
            file = _File(path.read_bytes(), stat.S_IMODE(status.st_mode), (status.st_atime_ns, status.st_mtime_ns))
            known = self._known.get(name)
            if known is not None and known.content == file.content and known.mode == file.mode:
                file = known
            files[name] = self._known[name] = file
        return files


def _name(what: Any) -> str:
    return without_token(Path(f"/proc/self/fd/{what}").readlink().name if isinstance(what, int) else Path(what).name)


def without_token(name: str) -> str:
    """Return the name of a temporary file without its random part: ``.os.disk.tmp``."""
    return re.sub(r"\.[0-9a-f]{16}\.tmp$", ".tmp", name)


def calls_of(folder: Path, begin: Begin) -> list[str]:
    """Do it; what was called, in order."""
    calls, act = _Calls(None), begin(folder)
    with calls.counted():
        act()
    return calls.done


def copy_of(ready: Path, folder: Path) -> None:
    """Make ``folder`` a copy of ``ready``."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ready, folder)


def every_kill(ready: Path, folder: Path, begin: Begin) -> Iterator[str]:
    """Do what ``begin`` does; yield each call, with ``folder`` as a kill at it leaves a copy of ``ready``.

    A state that an earlier kill leaves, byte for byte, is not yielded again, as that before a sync and that after it.
    """
    for moment in _moments(ready, folder, begin):
        moment.write(folder)
        yield moment.call


def some_kills(ready: Path, folder: Path, begin: Begin) -> Iterator[str]:
    """Do the same as :func:`every_kill` for some of the kills, by :func:`tests.support.faults.some_steps.some_steps`."""
    moments = list(_moments(ready, folder, begin))
    for number in some_steps([moment.call.partition(", ")[2] for moment in moments]):
        moments[number].write(folder)
        yield moments[number].call


def _moments(ready: Path, folder: Path, begin: Begin) -> Iterator[_Moment]:
    copy_of(ready, folder)
    moments, act = _Moments(folder), begin(folder)
    with moments.counted():
        act()
    moments.finish()
    seen: set[tuple[object, ...]] = set()
    for moment in moments.found:
        state = moment.state()
        if state not in seen:
            seen.add(state)
            yield moment


def every_real_kill(ready: Path, folder: Path, begin: Begin) -> Iterator[str]:
    """Do the same as :func:`every_kill` with processes that are killed."""
    copy_of(ready, folder)
    names = calls_of(folder, begin)
    seen: set[tuple[object, ...]] = set()
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
        state = state_of(folder)
        if state not in seen:
            seen.add(state)
            yield f"killed at call {kill_at}, {names[kill_at]}"


def state_of(folder: Path) -> tuple[object, ...]:
    """Return the names and bytes of all files below the folder."""
    return tuple(
        sorted(
            (without_token(str(path.relative_to(folder))), path.is_dir(), b"" if path.is_dir() else path.read_bytes())
            for path in folder.rglob("*")
        )
    )
