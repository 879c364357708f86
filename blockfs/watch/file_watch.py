"""Detects at once what other programs do to the files of open disks and of their change logs, by inotify(7).

The module :mod:`siterig.blockfs.watch.own_file` finds a file that was deleted, replaced, renamed or truncated; the events
only start the check.  A write by another program is found by counting: the kernel reports a write, or the file's mtime
changed, but the disk has changed nothing since the last check.  A program that opens the file for writing and writes nothing
is no change.

Not detected are writes by a loop device (its attachment is), writes on another machine (network file systems) and, until the
descriptor is closed, writes by another program while the disk is written to as well.  A write through a memory map is
detected only at the next event.
"""

from __future__ import annotations

import os
import stat
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog
import trio

from siterig.blockfs.core.clock import SYSTEM_CLOCK, Clock
from siterig.blockfs.watch import inotify
from siterig.blockfs.watch.inotify import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_MODIFY,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_OPEN,
    IN_Q_OVERFLOW,
)

_NAMES = IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF
"""Events of a folder: one of its names, or its own name, now leads to another file."""
_WATCHED = IN_MODIFY | IN_ATTRIB | IN_CLOSE_WRITE | IN_OPEN | IN_MOVE_SELF
LOOK_S = 1.0
"""Time between two checks for foreign writes; also the longest time from the opening of a file to the loop device over it.
"""

_log = structlog.get_logger("siterig.blockfs.watch.file_watch")


class Watched(Protocol):
    """A disk whose files are watched."""

    def check_files(self) -> str | None:
        """Check the disk's files, record a change by another program, and return it; None if there is none."""
        ...

    def check_log(self) -> str | None:
        """Check the files of the disk's change log, record a change by another program, and return it."""
        ...

    async def look_for_loops(self) -> None:
        """Record a loop device that is attached to the disk's file itself."""
        ...

    def changed_by_another(self, what: str) -> None:
        """Record that another program has changed the disk's contents, or can change them."""
        ...

    @property
    def changes(self) -> int:
        """Number of changes by the disk's own users; no change is in progress while it is read."""
        ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """The disk's number of changes, and the mtime of its file then; None if the disk changed between the two reads."""

    changes: int
    mtime_ns: int | None


@dataclass(eq=False, slots=True)
class _File:
    disk: Watched
    path: str
    fd: int
    """The disk's own descriptor, open until the file is removed from the watch."""
    seen: _Seen
    """The state just before the previous check."""
    touched: bool = False
    """True if times or rights of the file were set since another program last closed it."""


class FileWatch:
    """Watches the files of one process's disks, on one trio thread; without a free inotify instance it detects nothing."""

    def __init__(self, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock.real
        self._fd = -1
        self._release: weakref.finalize[[int], FileWatch] | None = None
        self._begun = trio.Event()
        self._files: dict[int, _File] = {}
        self._folders: dict[int, list[Watched]] = {}

    def add(self, fd: int, path: str, disk: Watched) -> None:
        """Watch the file that is open as ``fd``; all earlier writes of the disk must have gone through that descriptor."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):  # many programs open block devices
            return
        if (number := self._watch(Path(f"/proc/self/fd/{fd}"), _WATCHED, path)) is not None:
            self._files[number] = _File(disk, path, fd, _seen(disk, fd))

    def add_folder(self, folder: Path, disk: Watched) -> None:
        """Watch the names in a folder that contains files of the disk's change log."""
        if (number := self._watch(folder, _NAMES, str(folder))) is not None:
            self._folders.setdefault(number, []).append(disk)

    def _watch(self, path: Path, mask: int, shown: str) -> int | None:
        try:
            if self._fd < 0:  # instances are scarce: create one only when it is needed
                self._fd = inotify.open_instance()
                self._release = weakref.finalize(self, os.close, self._fd)  # a user has at most 128
                self._begun.set()
            return inotify.add_watch(self._fd, path, mask)
        except OSError as exc:
            _log.warning("file_not_watched", file=shown, error=exc.strerror)
            return None

    @property
    def watches(self) -> bool:
        """True if any file is watched."""
        return bool(self._files)

    def remove(self, disk: Watched) -> None:
        """Stop watching the disk's files."""
        for number in [number for number, file in self._files.items() if file.disk is disk]:
            del self._files[number]
            inotify.remove_watch(self._fd, number)
        for number, disks in list(self._folders.items()):
            if disk in disks:
                disks.remove(disk)
            if not disks:
                del self._folders[number]
                inotify.remove_watch(self._fd, number)

    def close(self) -> None:
        """Close the inotify instance."""
        if self._release is not None:
            self._release()
        self._fd, self._files, self._folders, self._release = -1, {}, {}, None

    async def run(self) -> None:
        """Check for changes until cancelled."""
        await self._begun.wait()
        async with trio.open_nursery() as nursery:
            # Loop devices that were attached before the watch began.
            nursery.start_soon(self._look_for_loops, list(self._files.values()), 0.0)
            while True:
                await trio.lowlevel.wait_readable(self._fd)
                opened = self.look()
                if opened:
                    # A program opens the file before it attaches a loop device.
                    nursery.start_soon(self._look_for_loops, opened, LOOK_S)
                await self._clock.sleep(LOOK_S)  # the disks' own writes raise events, too

    def look(self) -> list[_File]:
        """Act on all events so far, and return the files that another program has opened."""
        now = {file: _seen(file.disk, file.fd) for file in self._files.values()}
        masks: dict[_File, int] = {}
        renamed_in: set[int] = set()
        for number, mask in inotify.events(self._fd) if self._fd >= 0 else ():
            if mask & IN_Q_OVERFLOW:
                masks = dict.fromkeys(now, IN_MODIFY | IN_ATTRIB)
                now = dict.fromkeys(now, _Seen(-1, None))  # events were lost: the writer is unknown
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
        """True if the disk itself has changed nothing since the previous check."""
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
