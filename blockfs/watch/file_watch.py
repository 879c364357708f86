"""Notices at once what other programs do to the files of open disks and of their change logs, by inotify(7).

A file that was deleted, replaced, renamed or cut is found by :mod:`siterig.blockfs.watch.own_file`; the events say when to
look.  A write by another program is found by counting: the kernel reports a write, or the file's mtime moved, and the disk
has changed nothing since the last look.  A program that opens the file for writing and writes nothing is no change.

Not noticed: a write by a loop device (but that it is attached), a write on another machine (network file systems), and,
until the descriptor is closed, one by another program while the disk is written to as well.  A write through a memory map
is noticed at the next event only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_OPEN, IN_MOVE_SELF = 0x2, 0x4, 0x8, 0x20, 0x800
IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE, IN_DELETE_SELF = 0x40, 0x80, 0x200, 0x400
IN_Q_OVERFLOW, IN_IGNORED = 0x4000, 0x8000
_NAMES = IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
"""Events of a folder: a name in it, or its own, came to lead elsewhere."""
_WATCHED = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_OPEN | IN_MOVE_SELF
LOOK_S = 1.0
"""Between two looks at who wrote; a loop device is attached so long after its file was opened at the latest."""

_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)
_log = structlog.get_logger("siterig.blockfs.watch.file_watch")


class Watched(Protocol):
    """A disk whose files are watched."""

    def check_files(self) -> str | None:
        """Find and note what has become of its files."""
        ...

    def check_log(self) -> str | None:
        """Find and note what has become of the files of its change log."""
        ...

    async def look_for_loops(self) -> None:
        """Note a loop device that is attached to the file itself."""
        ...

    def changed_by_another(self, what: str) -> None:
        """Another program has changed what the disk holds, or can."""
        ...

    @property
    def changes(self) -> int:
        """How often the disk has been changed by its own users; none of them is changing it when this is counted."""
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """How often the disk had changed, and the mtime that its file then had (None: the disk changed meanwhile)."""

    changes: int
    mtime_ns: int | None


@dataclass(eq=False, slots=True)
class _File:
    disk: Watched
    path: str
    fd: int
    """The disk's own, open until the file is removed."""
    seen: _Seen
    """The state just before the previous look."""
    touched: bool = False
    """Its times or rights were set since another program closed it last."""


class FileWatch:
    """The files of one process's disks.  One trio thread.  Without inotify (none is free) it notices nothing."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._fd = -1
        self._give_back: weakref.finalize[[int], FileWatch] | None = None
        self._begun = trio.Event()
        self._files: dict[int, _File] = {}
        self._folders: dict[int, list[Watched]] = {}

    def add(self, fd: int, path: str, disk: Watched) -> None:
        """Watch the file that is open as ``fd``; the disk has written all that it wrote before through it."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):  # a block device is opened by all kinds of programs
            return
        if (number := self._watch(Path(f"/proc/self/fd/{fd}"), _WATCHED, path)) is not None:
            self._files[number] = _File(disk, path, fd, _seen(disk, fd))

    def add_folder(self, folder: Path, disk: Watched) -> None:
        """Watch the names in a folder where files of the disk's change log are."""
        if (number := self._watch(folder, _NAMES, str(folder))) is not None:
            self._folders.setdefault(number, []).append(disk)

    def _watch(self, path: Path, mask: int, shown: str) -> int | None:
        try:
            if self._fd < 0:  # there are few of them on a host
                self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
                self._give_back = weakref.finalize(self, os.close, self._fd)  # a user has only so many (128)
                self._begun.set()
            return _checked(_libc.inotify_add_watch(self._fd, os.fsencode(path), mask))
        except OSError as exc:
            _log.warning("file_not_watched", file=shown, error=exc.strerror)
            return None

    @property
    def watches(self) -> bool:
        """True if anything is watched."""
        return bool(self._files)

    def remove(self, disk: Watched) -> None:
        """Watch the disk's files no more."""
        for number in [number for number, file in self._files.items() if file.disk is disk]:
            del self._files[number]
            _libc.inotify_rm_watch(self._fd, number)
        for number, disks in list(self._folders.items()):
            if disk in disks:
                disks.remove(disk)
            if not disks:
                del self._folders[number]
                _libc.inotify_rm_watch(self._fd, number)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._give_back is not None:
            self._give_back()
        self._fd, self._files, self._folders, self._give_back = -1, {}, {}, None

    async def run(self) -> None:
        """Until cancelled."""
        await self._begun.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_for_loops, list(self._files.values()), 0.0)  # attached before it was watched
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                opened = self.look()
                if opened:
                    # A program that attaches one opens the file first.
                    nursery.start_soon(self._look_for_loops, opened, LOOK_S)
                await self._clock.sleep(LOOK_S)  # the disks' own writes are reported, too

    def look(self) -> list[_File]:
        """Act on all that other programs did so far; the files that one has opened."""
        now = {file: _seen(file.disk, file.fd) for file in self._files.values()}
        masks: dict[_File, int] = {}
        renamed_in: set[int] = set()
        for number, mask in _read(self._fd) if self._fd >= 0 else ():
            if mask & IN_Q_OVERFLOW:
                masks = dict.fromkeys(now, IN_MODIFY | IN_ATTRIB)
                now = dict.fromkeys(now, _Seen(-1, None))  # it cannot be told who wrote
                renamed_in.update(self._folders)
            elif number in self._folders:
                renamed_in.add(number)
            elif number in self._files:
                file = self._files[number]
                masks[file] = masks.get(file, 0) | mask
        for file, mask in masks.items():
            if mask != IN_OPEN and file.disk.check_files() is None:
                self._judge(file, mask, now[file])
        for file, seen in now.items():
            file.seen = seen
        for disk in dict.fromkeys(disk for number in renamed_in for disk in self._folders.get(number, ())):
            disk.check_log()
        return [file for file, mask in masks.items() if mask & IN_OPEN]

    @staticmethod
    def _judge(file: _File, mask: int, now: _Seen) -> None:
        file.touched = file.touched or bool(mask & IN_ATTRIB)
        alone = file.disk.changes == file.seen.changes
        """The disk itself has changed nothing since the previous look."""
        if alone and (mask & IN_MODIFY or (now.mtime_ns != file.seen.mtime_ns and not file.touched)):
            file.disk.changed_by_another(f"{file.path} was written to by another program")
        elif mask & IN_CLOSE_WRITE and not alone and (mask & IN_MODIFY or not file.touched):
            file.disk.changed_by_another(f"{file.path} was opened for writing by another program, and may have been changed")
        if mask & IN_CLOSE_WRITE:
            file.touched = False

    async def _look_for_loops(self, files: list[_File], after_s: float) -> None:
        await self._clock.sleep(after_s)
        for file in files:
            await file.disk.look_for_loops()


def _seen(disk: Watched, fd: int) -> _Seen:
    changes, mtime_ns = disk.changes, os.fstat(fd).st_mtime_ns
    return _Seen(changes, mtime_ns if disk.changes == changes else None)


def _read(fd: int) -> Iterator[tuple[int, int]]:
    """(number of the watch, mask) of all that is there."""
    while True:
        try:
            data = os.read(fd, _READ_BYTES)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            number, mask, _, name_bytes = _EVENT.unpack_from(data, at)
            at += _EVENT.size + name_bytes
            if not mask & IN_IGNORED:
                yield number, mask


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number))
    return result
