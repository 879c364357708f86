"""Notices at once what other programs do to the files of open disks, by inotify(7).

A file that was deleted, replaced, renamed or cut is found by :mod:`blockfs.own_file`; the events say when to look.  A write
by another program is found by counting: the kernel reports a write, and the disk has made none since the last report.

Not noticed: a write through a memory map or by a loop device (but that it is attached), a write on another machine (network
file systems), and, until the descriptor is closed, one by another program while the disk is written to as well.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import structlog
import trio

from blockfs import hostmounts
from blockfs.os_errors import reason

IN_MODIFY, IN_ATTRIB, IN_CLOSE_WRITE, IN_OPEN, IN_MOVE_SELF = 0x2, 0x4, 0x8, 0x20, 0x800
IN_Q_OVERFLOW, IN_IGNORED = 0x4000, 0x8000
LOOK_S = 1.0
"""Between two looks at who wrote; a loop device is attached so long after its file was opened at the latest."""

_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 << 10
_libc = ctypes.CDLL(None, use_errno=True)
_log = structlog.get_logger("blockfs.file_watch")


class Watched(Protocol):
    """A disk whose files are watched."""

    def check_files(self) -> str | None:
        """Find and note what has become of its files."""
        ...

    def changed_by_another(self, what: str) -> None:
        """Another program has changed what the disk holds, or can."""
        ...

    @property
    def changes(self) -> int:
        """How often the disk has been changed by its own users; none of them is changing it when this is counted."""
        ...


@dataclass(eq=False, slots=True)
class _File:
    disk: Watched
    path: str
    identity: tuple[int, int]
    counted: int
    """The disk's changes when what the kernel had told was taken last."""
    touched: bool = False
    """Its times or rights were set since another program closed it last."""


class FileWatch:
    """The files of one process's disks.  One trio thread.  Without inotify (none is free) it notices nothing."""

    def __init__(self) -> None:
        self._fds: list[int] = []
        self._files: dict[int, _File] = {}
        self._written: dict[int, _File] = {}
        try:
            for _ in range(2):
                self._fds.append(_checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)))
        except OSError as exc:
            self.close()
            _log.warning("files_not_watched", error=reason(exc))

    def add(self, fd: int, path: str, disk: Watched) -> None:
        """Watch the file that is open as ``fd``; the disk has written all that it wrote before through it."""
        if not self._fds:
            return
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):  # a block device is opened by all kinds of programs
            return
        name = os.fsencode(f"/proc/self/fd/{fd}")
        try:
            events = _checked(
                _libc.inotify_add_watch(self._fds[0], name, IN_ATTRIB | IN_CLOSE_WRITE | IN_OPEN | IN_MOVE_SELF)
            )
            writes = _checked(_libc.inotify_add_watch(self._fds[1], name, IN_MODIFY))
        except OSError as exc:
            _log.warning("file_not_watched", file=path, error=reason(exc))
            return
        self._files[events] = self._written[writes] = _File(disk, path, (found.st_dev, found.st_ino), disk.changes)

    def remove(self, disk: Watched) -> None:
        """Watch the disk's files no more."""
        for fd, files in zip(self._fds, (self._files, self._written), strict=False):
            for number in [number for number, file in files.items() if file.disk is disk]:
                del files[number]
                _libc.inotify_rm_watch(fd, number)

    def close(self) -> None:
        """Give the descriptors back."""
        for fd in self._fds:
            os.close(fd)
        self._fds, self._files, self._written = [], {}, {}

    async def run(self) -> None:
        """Until cancelled."""
        if not self._fds:
            await trio.sleep_forever()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_writes)
            while True:
                await trio.lowlevel.wait_readable(self._fds[0])
                opened = self.take_events()
                if opened:
                    nursery.start_soon(self._look_for_loops, opened)

    def take_events(self) -> list[_File]:
        """Act on all that other programs did so far; the files that one has opened."""
        opened: dict[_File, None] = {}
        for number, mask in _read(self._fds[0]):
            numbers = list(self._files) if mask & IN_Q_OVERFLOW else [number]
            for file in [self._files[number] for number in numbers if number in self._files]:
                if mask & IN_OPEN:
                    opened[file] = None
                if mask & IN_ATTRIB:
                    file.touched = True
                if not mask & IN_OPEN and file.disk.check_files() is None and mask & IN_CLOSE_WRITE:
                    self._closed(file)
        return list(opened)

    def _closed(self, file: _File) -> None:
        """Another program had it open for writing.  One that only set its times has written nothing."""
        wrote = file in self.take_writes()
        if wrote or not file.touched:
            file.disk.changed_by_another(f"{file.path} was opened for writing by another program, and may have been changed")
        file.touched = False

    async def _take_writes(self) -> None:
        """Not at once for each write: that there are some is told again and again."""
        while True:
            await trio.lowlevel.wait_readable(self._fds[1])
            self.take_writes()
            await trio.sleep(LOOK_S)

    def take_writes(self) -> set[_File]:
        """Take all reports of writes, and act on those of files whose disk made none; the files that were reported."""
        before = {file: file.disk.changes for file in self._written.values()}
        told: set[_File] = set()
        for number, mask in _read(self._fds[1]):
            if mask & IN_Q_OVERFLOW:
                told.update(before)
                before = dict.fromkeys(before, -1)  # it cannot be told who wrote
            elif number in self._written:
                told.add(self._written[number])
        for file, changes in before.items():
            if file in told and file.disk.changes == file.counted and file.disk.check_files() is None:
                file.disk.changed_by_another(f"{file.path} was written to by another program")
            file.counted = changes
        return told

    async def _look_for_loops(self, files: list[_File]) -> None:
        await trio.sleep(LOOK_S)  # whoever attaches one opens the file first
        for file in files:
            for loop in await hostmounts.loops_on(file.identity, file.path):
                file.disk.changed_by_another(hostmounts.loop_text(loop, file.path))


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
