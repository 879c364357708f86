"""Attributes of a disk's file in a mount: times, owner, mode, and an identity that differs between disks of one name.

Backup programs use them to decide whether to read a disk, so:

* after each change of the disk's bytes or size, mtime and ctime are later than any that was shown before;
* without a change they stay, also over a clean close and a start;
* no kill makes them go back.

The times are those of the disk's file on the host (``NAME.img`` or ``NAME.top``), which the host's kernel keeps.  Its clock
may tick so slowly that two writes get the same time; then the time of the file is increased by a nanosecond when it is
read the next time.

Fault contract: attributes that a program sets are in the disk's state before the call returns.  After kill -9 the times are
later than before if the last record of the log was written to the disk again.  After a power loss the host may have lost
the last times of the file; a tracked disk that lost power is shown as changed when it is opened.

Threads: the trio thread.
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
"""Modes of a disk's file until a program sets another."""


@dataclass(frozen=True, slots=True)
class PastState:
    """Position and time of a state of the past; the time is in nanoseconds since 1970."""

    position: int
    time_ns: int


@dataclass(frozen=True, slots=True)
class FileTimes:
    """The three times of a file, in nanoseconds since 1970."""

    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def at(cls, time_ns: int) -> FileTimes:
        """Return three equal times."""
        return cls(time_ns, time_ns, time_ns)


@dataclass(frozen=True, slots=True)
class WantedAttributes:
    """Attributes that a program sets; None for an attribute that it does not set."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None

    @property
    def nothing(self) -> bool:
        """True if no attribute is set."""
        return self == WantedAttributes()


class DiskAttributes:
    """Attributes of one disk; a state of the past (``past``) has a fixed time."""

    def __init__(self, disk: DiskCore, past: PastState | None) -> None:
        self._disk = disk
        self._past = past
        self._file_mtime_ns = self._ctime_ns = 0
        self._counted: int | None = None

    @property
    def identity(self) -> str:
        """A text that differs between two disks that had the same name, one after the other."""
        state = self._disk.state
        disk_id = state.disk_id if state.lasts else ""  # an image that is mounted again is the same disk
        moment = os.fstat(self._disk.layer.fileno()).st_ino if self._past is None else self._past.position
        return f"{disk_id} {moment}"

    # --- mode and owner -----------------------------------------------------------------------------------------

    @property
    def mode(self) -> int:
        """The permission bits of the disk's file."""
        if self._disk.options.read_only:
            return READ_ONLY_MODE
        mode = self._disk.state.shown.mode
        return DISK_MODE if mode is None else mode

    @property
    def owner(self) -> tuple[int, int]:
        """User id and group id; those of this process until a program sets others."""
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
        """Show the disk as changed although this process has not changed it."""
        os.utime(self._disk.layer.fileno())

    def change(self, attributes: WantedAttributes) -> None:
        """Set attributes as a program asks.

        Raises:
            OSError: they cannot be stored.
        """
        times, shown = self.times, self._disk.state.shown
        update: dict[str, object] = {
            key: value for key in ("mode", "uid", "gid") if (value := getattr(attributes, key)) is not None
        }
        if attributes.atime_ns is not None or attributes.mtime_ns is not None:
            update["touched"] = TouchedTimes(
                atime_ns=times.atime_ns if attributes.atime_ns is None else attributes.atime_ns,
                mtime_ns=times.mtime_ns if attributes.mtime_ns is None else attributes.mtime_ns,
                file_mtime_ns=self._file_mtime_ns,
            )
        self._disk.save(shown=shown.model_copy(update=update))
        self._move_ctime()

    def store_times(self) -> None:
        """Give the file on the host the times that are shown, before the disk is closed.

        Times that a program has set are in the disk's state, if it has a lasting one.
        """
        times = self.times
        if self._past is None and not self._disk.state.lasts and times.mtime_ns != self._file_mtime_ns:
            with contextlib.suppress(OSError):  # the file belongs to another user: it keeps the time of its last change
                os.utime(self._disk.layer.fileno(), ns=(times.atime_ns, times.mtime_ns))

    def _look(self) -> None:
        """Read the times of the file, and make them differ from the last ones if the disk was changed in between."""
        counted = int(lib.sr_disk_modifications(self._disk.c))  # first: a later change is seen the next time
        fd = self._disk.layer.fileno()
        found = os.fstat(fd)
        if self._counted not in (None, counted) and found.st_mtime_ns <= self._file_mtime_ns:
            with contextlib.suppress(OSError):  # if this fails, a kill may make the time go back by that nanosecond
                os.utime(fd, ns=(found.st_atime_ns, self._file_mtime_ns + 1))
            mtime_ns = self._file_mtime_ns + 1
            found = os.fstat(fd)
        else:
            mtime_ns = max(found.st_mtime_ns, self._file_mtime_ns)
        moved = mtime_ns != self._file_mtime_ns
        self._ctime_ns = max(found.st_ctime_ns, self._ctime_ns + moved)
        self._counted, self._file_mtime_ns = counted, mtime_ns

    def _move_ctime(self) -> None:
        """Advance the ctime of the file by setting its mode to the present mode; that outlives a kill."""
        fd, before_ns = self._disk.layer.fileno(), self._ctime_ns
        with contextlib.suppress(OSError):  # the file belongs to another user
            os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode))
        self._ctime_ns = max(os.fstat(fd).st_ctime_ns, before_ns + 1)
