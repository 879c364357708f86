"""Finds the changes that other programs make to the files of one open disk, and ends the disk's change log then.

It checks the file that takes the writes (:mod:`siterig.blockfs.watch.own_file`), and the files that are written through a
memory map: the maps of an overlay, the dirty file, the position counter.  If another program truncates one of these, a
store finds it (a SIGBUS, which cext/src/base/mapped.c turns into an error), or a flush, or a check here; if its medium
fails, a store finds it.

Fault contract: nothing is stored here.  The mark that ends the log is in the dirty file, and so outlives a kill.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import structlog

from siterig.blockfs.changelog.disk_log import DiskLog
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.guests import loop_devices
from siterig.blockfs.watch import own_file
from siterig.blockfs.watch.file_watch import Watched
from siterig.blockfs.watch.own_file import OwnFiles
from siterig.cext._core import lib

_log = structlog.get_logger("siterig.blockfs.disk.disk_guard")
_TELLING = (
    (lib.SR_LOST_PRESENT, "top.present"),
    (lib.SR_LOST_DURABLE, "top.durable"),
    (lib.SR_LOST_DIRTY, "dirty"),
)
"""Suffixes of the files that are needed to know the disk's bytes, by their bit (cext/src/layers/layer.h)."""


class DiskGuard(Watched):
    """Guards the files of one open disk.  Use it on one trio thread.

    Attributes:
        trouble: the change that another program made to the disk's files; None if none is known.
        log_trouble: the change that another program made to the log's files; None if none is known.
        files: the files that it guards.
    """

    def __init__(
        self,
        disk: Any,
        paths: DiskPaths,
        files: OwnFiles,
        options: DiskOptions,
        *,
        log: Callable[[], DiskLog | None],
        ended: Callable[[], None],
    ) -> None:
        """Begin to watch the files.

        Args:
            disk: the disk in C.
            paths: the names of the disk's files.
            files: the files; they belong to the guard from now on.
            options: the options of the disk's host.
            log: returns the current change log.
            ended: called when a change has ended the log.
        """
        self.trouble: str | None = None
        self.log_trouble: str | None = None
        self.files = files
        self._disk = disk
        self._paths = paths
        self._options = options
        self._log = log
        self._ended = ended
        if options.watch is not None:
            options.watch.add(files.fd, str(files.path), self)
            positions = options.positions.path
            for folder in {paths.folder} if positions is None else {paths.folder, positions.parent}:
                options.watch.add_folder(folder, self)

    def check_files(self, *, new_log: bool = False) -> str | None:
        """Check the disk's files, and record a change.

        Args:
            new_log: a new log begins, and with it a new dirty file.

        Returns:
            The change that is known; None if the files are unchanged.
        """
        if self._disk is not None:
            excess_bytes = int(lib.sr_disk_excess_bytes(self._disk))
            # Other data may follow a disk that cannot grow.
            trouble = self.files.trouble(excess_bytes if self._options.can_grow else min(excess_bytes, 0))
            trouble = trouble or self._lost_file(with_dirty=not new_log) or self._options.positions.trouble
            if trouble is not None:
                self.changed_by_another(trouble)
        return self.trouble

    def check_log(self) -> str | None:
        """Check the files without which the log cannot continue, record a change and return it; None: they are unchanged."""
        log = self._log() if self._disk is not None else None
        if log is not None and (became := self._log_became(log)) is not None:
            self.log_trouble = f"{became} while the log was written to"
            lib.sr_disk_note_log_lost(self._disk)
            self._note_end()
            self._options.report_log_lost(self._paths, self.log_trouble)
        return self.log_trouble

    def _log_became(self, log: DiskLog) -> str | None:
        state = self._paths.file("disk")  # replaced by each change of the state
        if own_file.named(state) is None:
            return f"{state} was deleted, or renamed,"
        if (became := self._options.positions.file_trouble()) is not None:
            return f"{self._options.positions.path} {became}"
        return log.file_trouble()

    def _note_end(self) -> None:
        try:
            self._ended()
        except (OSError, RigError) as exc:  # the dirty file has it, and the next event records it
            _log.warning("end_of_log_not_noted", disk=str(self._paths), error=str(exc))

    def _lost_file(self, *, with_dirty: bool) -> str | None:
        """Return which of these files was truncated, or cannot be written any more; None if all are usable."""
        lost = int(lib.sr_disk_lost_files(self._disk))
        for bit, suffix in _TELLING:
            if lost & bit and (with_dirty or bit != lib.SR_LOST_DIRTY):
                return f"{self._paths.file(suffix)} was truncated by another program, or its medium failed"
        return None

    def begin_again(self) -> None:
        """Forget the changes that are known, before a new log begins, so that new ones are noticed again.

        Raises:
            RigError: ``DiskUnhealthy`` if the files are not those that the disk has open, or not complete.
        """
        if self._options.watch is not None:
            self._options.watch.look()
        self.trouble = self.log_trouble = None
        if (became := self._options.positions.file_trouble()) is not None:
            raise RigError(
                Code.DiskUnhealthy,
                f"disk {self._paths}: {self._options.positions.path} {became} while it was in use; "
                "a restart of the role rebuilds it (siterig role restart)",
            )
        lib.sr_disk_forget_file_changed(self._disk)
        if (trouble := self.check_files(new_log=True)) is not None:
            raise RigError(
                Code.DiskUnhealthy,
                f"disk {self._paths}: {trouble}; restore the whole file, then restart the role, which opens the disk again "
                "(siterig role restart)",
            )

    async def check_no_loops(self) -> None:
        """Raise ``DiskInUse`` if a writable loop device is attached to the file itself: no log would have its writes."""
        for loop in await self._loops():
            raise RigError(Code.DiskInUse, f"disk {self._paths}: {loop_devices.loop_text(loop, self.files.path)}")

    async def look_for_loops(self) -> None:
        """Record a writable loop device that is attached to the file itself."""
        for loop in await self._loops():
            self.changed_by_another(loop_devices.loop_text(loop, self.files.path))

    async def _loops(self) -> list[str]:
        if self._disk is None:  # closed meanwhile
            return []
        return await loop_devices.loops_on(self.files.identity, str(self.files.path))

    def look_at_the_end(self) -> str | None:
        """Process the events that the kernel has reported, then check the files, as :meth:`check_files` does."""
        if self._options.watch is not None:
            self._options.watch.look()
        self.check_log()
        return self.check_files()

    def look_again(self) -> None:
        """Find the reason if a request found the file truncated, or without a name."""
        if self.trouble is None and lib.sr_disk_file_changed(self._disk) and self.check_files() is None:
            self.changed_by_another(f"{self.files.path} was truncated by another program, or had no name, for a while")

    def changed_by_another(self, what: str) -> None:
        """Record that another program changed the disk, or may have: the log does not have that change, and ends."""
        if self.trouble is None and self._disk is not None:
            self.trouble = what
            lib.sr_disk_note_changed(self._disk)
            self._note_end()
            self._options.report_changed(self._paths, what)

    @property
    def changes(self) -> int:
        """Number of changes of the disk since it was opened; no change is under way while they are counted."""
        return int(lib.sr_disk_changes(self._disk))

    def close(self) -> None:
        """Stop watching; call it before the disk in C is freed."""
        if self._options.watch is not None:
            self._options.watch.remove(self)
        self.files.close()
        self._disk = None
