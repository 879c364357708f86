"""A recorder of all calls by which a disk changes the files of its folder; states after a crash are made from it.

The engine's system calls come with their bytes through its hook (cext/src/base/io.h), those of Python through ``os``.
Writes through a memory map (:data:`MAPPED`) are noticed before the next call.  The disk uses one thread, and one
folder without subfolders.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from siterig.blockfs.changelog.position_counter import PositionCounter
from siterig.cext._core import ffi, lib

SECTOR_BYTES = 512
MAPPED = ("position", ".dirty", ".present")
"""Ends of the names of files that are written through a memory map."""


@dataclass(frozen=True, slots=True)
class Wrote:
    """A write to a file; ``file`` is the recorder's own number, which a file keeps when its name changes."""

    file: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Zeroed:
    """A hole was made in a file."""

    file: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The size of a file was changed."""

    file: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Synced:
    """All earlier changes of the file are on stable storage, but perhaps not its name."""

    file: int


@dataclass(frozen=True, slots=True)
class Named:
    """A file was created."""

    name: str
    file: int


@dataclass(frozen=True, slots=True)
class Renamed:
    """A file was renamed; it replaces the file that had the new name."""

    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Unnamed:
    """A file was deleted."""

    name: str


@dataclass(frozen=True, slots=True)
class NamesSynced:
    """All current names are on stable storage."""


@dataclass(frozen=True, slots=True)
class Noted:
    """A fact of the load that is true from here on."""

    fact: Any


FileEvent = Wrote | Zeroed | Resized
NameEvent = Named | Renamed | Unnamed
Event = FileEvent | NameEvent | Synced | NamesSynced | Noted

Verdict = Callable[[int, str, int], int]
"""(operation, name of the file, bytes) -> the result of the engine's hook; a call that fails is not recorded."""


class Recorder:
    """Records the calls in ``folder``; ``start`` holds the earlier names of its files, with numbers and contents."""

    def __init__(self, folder: Path) -> None:
        self.events: list[Event] = []
        self.verdict: Verdict | None = None
        self._folder = folder
        self._inode = folder.stat().st_ino
        self._files: dict[int, int] = {}  # the key is an inode number
        self._names: dict[int, str] = {}
        self._mapped: dict[int, tuple[int, bytes]] = {}  # (descriptor, earlier contents)
        self.start: dict[str, tuple[int, bytes]] = {}
        for path in sorted(folder.iterdir()):
            file = self._number(path.stat().st_ino)
            self.start[path.name] = (file, path.read_bytes())
            self._called(file, path.name)

    def note(self, fact: object) -> None:
        """Record a fact between the calls."""
        self._look_at_maps()
        self.events.append(Noted(fact))

    def close(self) -> None:
        """Stop watching the memory maps."""
        for fd, _ in self._mapped.values():
            os.close(fd)
        self._mapped.clear()

    # --- files and their numbers ----------------------------------------------------------------------------------

    def _number(self, inode: int) -> int:
        self._files[inode] = number = len(self._names) + 1
        self._names[number] = ""
        return number

    def _called(self, file: int, name: str) -> None:
        self._names[file] = name
        if name.endswith(MAPPED) and file not in self._mapped:
            fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            self._mapped[file] = (fd, os.pread(fd, os.fstat(fd).st_size, 0))

    def _file(self, fd: int) -> int | None:
        return self._files.get(os.fstat(fd).st_ino)

    def _is_ours(self, path: Any, dir_fd: int | None = None) -> bool:
        """Return True for a file in the folder, named by its path or below a descriptor of the folder."""
        if dir_fd is None:
            return Path(path).parent == self._folder
        return path not in (".", "..") and os.fstat(dir_fd).st_ino == self._inode

    def _named(self, path: Any, dir_fd: int | None = None) -> int | None:
        return self._files.get((self._folder / Path(path).name).stat().st_ino) if self._is_ours(path, dir_fd) else None

    def _look_at_maps(self) -> None:
        for file, (fd, before) in self._mapped.items():
            size = os.fstat(fd).st_size
            now = os.pread(fd, size, 0)
            if now == before:
                continue
            if len(now) != len(before):
                self.events.append(Resized(file, size))
            resized = before[:size].ljust(size, b"\0")
            for at in reversed(range(0, size, SECTOR_BYTES)):  # in a dirty file the bitmap is written before the word
                sector = now[at : at + SECTOR_BYTES]
                if sector != resized[at : at + SECTOR_BYTES]:
                    self.events.append(Wrote(file, at, sector))
            self._mapped[file] = (fd, now)

    def _did(self, event: Event) -> None:
        if isinstance(event, Wrote | Resized) and event.file in self._mapped:  # this write was not through the map
            fd, _ = self._mapped[event.file]
            self._mapped[event.file] = (fd, os.pread(fd, os.fstat(fd).st_size, 0))
        self._look_at_maps()
        self.events.append(event)

    # --- the engine's calls ---------------------------------------------------------------------------------------

    def _engine(self, operation: int, fd: int, offset: int, size: int, *vectors: Any) -> int:
        file = self._file(fd)
        if operation == lib.SR_IO_READ or file is None:
            return 0
        verdict = self.verdict(operation, self._names[file], size) if self.verdict else 0
        if verdict < 0:
            return verdict
        if operation == lib.SR_IO_WRITE:
            iov, iovs = vectors
            data = b"".join(bytes(ffi.buffer(iov[i].iov_base, iov[i].iov_len)) for i in range(iovs) if iov[i].iov_len)
            self._did(Wrote(file, offset, data[:verdict] if verdict else data))
        elif operation == lib.SR_IO_PUNCH:
            self._did(Zeroed(file, offset, size))
        elif operation == lib.SR_IO_RESIZE:
            self._did(Resized(file, size))
        else:
            self._did(Synced(file))
        return verdict

    # --- Python's calls -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record all calls in the block."""
        hook = ffi.callback("sr_io_hook_fn", self._engine)
        with contextlib.ExitStack() as stack:
            for name in (
                "open",
                "write",
                "pwrite",
                "pwritev",
                "ftruncate",
                "truncate",
                "posix_fallocate",
                "fsync",
                "fdatasync",
                "rename",
                "replace",
                "unlink",
            ):
                stack.enter_context(mock.patch.object(os, name, getattr(self, f"_{name}")(getattr(os, name))))
            stack.enter_context(mock.patch.object(PositionCounter, "close", self._position_closed(PositionCounter.close)))
            lib.sr_io_set_hook(hook)
            try:
                yield
            finally:
                lib.sr_io_set_hook(ffi.NULL)

    def _open(self, real: Any) -> Any:
        def open_(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            ours = self._is_ours(path, kwargs.get("dir_fd"))
            name = Path(path).name
            there = ours and os.path.lexists(self._folder / name)
            fd: int = real(path, flags, *args, **kwargs)
            if ours and not there and flags & os.O_CREAT:
                file = self._number(os.fstat(fd).st_ino)
                self._did(Named(name, file))
                self._called(file, name)
            elif there and flags & os.O_TRUNC:
                self._did(Resized(self._files[os.fstat(fd).st_ino], 0))
            return fd

        return open_

    def _write(self, real: Any) -> Any:
        def write(fd: int, data: Any) -> int:
            file = self._file(fd)
            at = os.lseek(fd, 0, os.SEEK_CUR) if file is not None else 0
            done: int = real(fd, data)
            if file is not None:
                self._did(Wrote(file, at, bytes(data[:done])))
            return done

        return write

    def _pwrite(self, real: Any) -> Any:
        def pwrite(fd: int, data: Any, offset: int) -> int:
            done: int = real(fd, data, offset)
            if (file := self._file(fd)) is not None:
                self._did(Wrote(file, offset, bytes(data[:done])))
            return done

        return pwrite

    def _pwritev(self, real: Any) -> Any:
        def pwritev(fd: int, pieces: Any, offset: int) -> int:
            done: int = real(fd, pieces, offset)
            if (file := self._file(fd)) is not None:
                self._did(Wrote(file, offset, b"".join(map(bytes, pieces))[:done]))
            return done

        return pwritev

    def _ftruncate(self, real: Any) -> Any:
        def ftruncate(fd: int, size: int) -> None:
            real(fd, size)
            if (file := self._file(fd)) is not None:
                self._did(Resized(file, size))

        return ftruncate

    def _truncate(self, real: Any) -> Any:
        def truncate(path: Any, size: int) -> None:
            real(path, size)
            if (file := self._named(path)) is not None:
                self._did(Resized(file, size))

        return truncate

    def _posix_fallocate(self, real: Any) -> Any:
        def posix_fallocate(fd: int, offset: int, length: int) -> None:
            before = os.fstat(fd).st_size
            real(fd, offset, length)
            if (file := self._file(fd)) is not None and os.fstat(fd).st_size > before:
                self._did(Resized(file, offset + length))

        return posix_fallocate

    def _fsync(self, real: Any) -> Any:
        def fsync(fd: int) -> None:
            real(fd)
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                if found.st_ino == self._inode:
                    self._did(NamesSynced())
            elif (file := self._file(fd)) is not None:
                self._did(Synced(file))

        return fsync

    _fdatasync = _fsync

    def _rename(self, real: Any) -> Any:
        def rename(old: Any, new: Any, **folders: int) -> None:
            file = self._named(old, folders.get("src_dir_fd"))
            real(old, new, **folders)
            if file is not None:
                self._did(Renamed(Path(old).name, Path(new).name))
                self._called(file, Path(new).name)

        return rename

    _replace = _rename

    def _unlink(self, real: Any) -> Any:
        def unlink(path: Any, **kwargs: Any) -> None:
            real(path, **kwargs)
            if self._is_ours(path, kwargs.get("dir_fd")):
                self._did(Unnamed(Path(path).name))

        return unlink

    def _position_closed(self, real: Any) -> Any:
        def close(counter: PositionCounter) -> None:
            real(counter)
            file = next((file for file in self._mapped if self._names[file] == "position"), None)
            if file is not None:
                self._did(Synced(file))

        return close
