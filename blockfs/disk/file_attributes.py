"""Attributes of a disk's file in a mount: times, owner, mode, and what tells it from another disk of the same name.

Backup programs decide by them whether to read a disk, so:

* after each change of the disk's bytes or size, mtime and ctime are later than any that was shown before;
* without a change they stay, over an orderly end and a start too;
* no kill makes them go back.

The times are those of the disk's file on the host (``NAME.img`` or ``NAME.top``), which the host's kernel keeps.  Its clock
may tick so slowly that two writes get one time; then the file's time is moved on by a nanosecond when it is next asked for.

Fault contract: what programs have set is in the disk's state before the call returns.  After kill -9 the times are later
than before if the last record of the log was written to the disk again.  After a power loss the host may have forgotten
the file's last times; a tracked disk that lost power is shown as changed when it is opened.

The trio thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
from dataclasses import dataclass

from siterig.blockfs.disk.disk_core import DiskCore
from siterig.blockfs.disk.disk_state import TouchedTimes
from siterig.cext._core import lib

DISK_MODE, READ_ONLY_MODE = 0o600, 0o400
"""Until a program sets another."""


@dataclass(frozen=True, slots=True)
class PastState:
    """A state of the past: its position, and its time in nanoseconds since 1970."""

    position: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class FileTimes:
    """Nanoseconds since 1970."""

    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def at(cls, time_ns: int) -> FileTimes:
        """All three are the same."""
        return cls(time_ns, time_ns, time_ns)


@dataclass(frozen=True, slots=True)
class WantedAttributes:
    """Attributes that a program sets; None: it leaves that one as it is."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    @property
    def nothing(self) -> bool:
        """True if it sets nothing."""
        return self == WantedAttributes()


class DiskAttributes:
    """Attributes of one disk.  ``past``: it is a state of the past, whose time does not move."""

    def __init__(self, disk: DiskCore, past: PastState | None) -> None:
        self._disk = disk
        self._past = past
        self._file_mtime_ns = self._ctime_ns = 0
        self._counted: int | None = None

    @property
    def identity(self) -> str:
        """Differs between two disks that had the same name, one after the other."""
        state = self._disk.state
        disk_id = state.disk_id if state.lasts else ""  # or an image that is mounted again would be another disk
        moment = os.fstat(self._disk.layer.fileno()).st_ino if self._past is None else self._past.position
        return f"{disk_id} {moment}"

    # --- mode and owner -----------------------------------------------------------------------------------------

    @property
    def mode(self) -> int:
        """The permission bits."""
        if self._disk.options.read_only:
            return READ_ONLY_MODE
        mode = self._disk.state.shown.mode
        return DISK_MODE if mode is None else mode

    @property
    def owner(self) -> tuple[int, int]:
        """User and group; those of this process until a program sets others."""
        shown = self._disk.state.shown
        return os.getuid() if shown.uid is None else shown.uid, os.getgid() if shown.gid is None else shown.gid

    # --- times --------------------------------------------------------------------------------------------------

    @property
    def times(self) -> FileTimes:
        """The times that the mount shows."""
        if self._past is not None:
            return FileTimes.at(self._past.time_ns)
        self._look()
        touched = self._disk.state.shown.touched
        if touched is not None and touched.file_mtime_ns == self._file_mtime_ns:
            return FileTimes(touched.atime_ns, touched.mtime_ns, self._ctime_ns)
        return FileTimes(self._file_mtime_ns, self._file_mtime_ns, self._ctime_ns)

    def mark_changed(self) -> None:
        """Show the disk as changed, though this process has not changed it."""
        os.utime(self._disk.layer.fileno())

    def change(self, wanted: WantedAttributes) -> None:
        """Set what a program asks for.  ``OSError``: it cannot be kept."""
        times, shown = self.times, self._disk.state.shown
        update: dict[str, object] = {
            key: value for key in ("mode", "uid", "gid") if (value := getattr(wanted, key)) is not None
        }
        if wanted.atime_ns is not None or wanted.mtime_ns is not None:
            update["touched"] = TouchedTimes(
                atime_ns=times.atime_ns if wanted.atime_ns is None else wanted.atime_ns,
                mtime_ns=times.mtime_ns if wanted.mtime_ns is None else wanted.mtime_ns,
                file_mtime_ns=self._file_mtime_ns,
            )
        self._disk.save(shown=shown.model_copy(update=update))
        self._move_ctime()

    def store_times(self) -> None:
        """Let the file on the host have the times that are shown, before the disk is closed.

        Those that a program has set are in the disk's state, if it has one.
        """
        times = self.times
        if self._past is None and not self._disk.state.lasts and times.mtime_ns != self._file_mtime_ns:
            with contextlib.suppress(OSError):  # the file is another user's: it keeps the time of its last change
                os.utime(self._disk.layer.fileno(), ns=(times.atime_ns, times.mtime_ns))

    def _look(self) -> None:
        """Take the file's times, which must differ from the last ones if the disk was changed in between."""
        counted = int(lib.sr_disk_modifications(self._disk.c))  # before: a change after it is seen next time
        fd = self._disk.layer.fileno()
        found = os.fstat(fd)
        if self._counted not in (None, counted) and found.st_mtime_ns <= self._file_mtime_ns:
            with contextlib.suppress(OSError):  # then a kill may make it go back by that nanosecond
                os.utime(fd, ns=(found.st_atime_ns, self._file_mtime_ns + 1))
            mtime_ns = self._file_mtime_ns + 1
            found = os.fstat(fd)
        else:
            mtime_ns = max(found.st_mtime_ns, self._file_mtime_ns)
        moved = mtime_ns != self._file_mtime_ns
        self._ctime_ns = max(found.st_ctime_ns, self._ctime_ns + moved)
        self._counted, self._file_mtime_ns = counted, mtime_ns

    def _move_ctime(self) -> None:
        """Setting its mode to what it is moves the ctime of the file, and that outlives a kill."""
        fd, before_ns = self._disk.layer.fileno(), self._ctime_ns
        with contextlib.suppress(OSError):  # the file is another user's
            os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode))
        self._ctime_ns = max(os.fstat(fd).st_ctime_ns, before_ns + 1)
