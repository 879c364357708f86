"""Finds what other programs do to the files of one open disk and of its change log, and notes it: the log ends with that.

Looked at are the file that takes the writes (:mod:`siterig.blockfs.watch.own_file`), and the files that are written through
a memory map: a top's maps, the dirty file, the counter of positions.  One of these that was cut is found by a store (a
SIGBUS, of which cext/src/base/mapped.c makes an error), at a flush, or by a look here; one whose medium failed by a store.

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
from siterig.blockfs.guests import hostmounts
from siterig.blockfs.watch import own_file
from siterig.blockfs.watch.own_file import OwnFiles
from siterig.cext._core import lib

_log = structlog.get_logger("siterig.blockfs.disk.disk_guard")
_TELLING = (
    (lib.SR_LOST_PRESENT, "top.present"),
    (lib.SR_LOST_DURABLE, "top.durable"),
    (lib.SR_LOST_DIRTY, "dirty"),
)
"""Suffixes of the files that tell what the disk's bytes are, by their bit (cext/src/layers/layer.h)."""


class DiskGuard:
    """Implements :class:`siterig.blockfs.watch.file_watch.Watched` for the disk in C ``disk``.  One trio thread.

    ``ended``: called when the log was ended by a change.
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
        """``files``: the guard's own from now on.  ``log``: the current one."""
        self.trouble: str | None = None
        """A change of the disk's files by another program; None: none is known."""
        self.log_trouble: str | None = None
        """A change of the log's files by another program; None: none is known."""
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
        """Find and note what has become of the files; None: they are as they were.

        ``new_log``: one begins, and so the dirty file is another.
        """
        if self._disk is not None:
            excess_bytes = int(lib.sr_disk_excess_bytes(self._disk))
            # Something may rightly lie behind a disk that cannot grow.
            trouble = self.files.trouble(excess_bytes if self._options.can_grow else min(excess_bytes, 0))
            trouble = trouble or self._lost_file(with_dirty=not new_log) or self._options.positions.trouble
            if trouble is not None:
                self.changed_by_another(trouble)
        return self.trouble

    def check_log(self) -> str | None:
        """Find and note what has become of the files without which the log cannot go on; None: they are as they were."""
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
        except (OSError, RigError) as exc:  # the dirty file has it, and it is noted with the next event
            _log.warning("end_of_log_not_noted", disk=str(self._paths), error=str(exc))

    def _lost_file(self, *, with_dirty: bool) -> str | None:
        """Which of the files that tell what the disk's bytes are was cut, or cannot be written any more."""
        lost = int(lib.sr_disk_lost_files(self._disk))
        for bit, suffix in _TELLING:
            if lost & bit and (with_dirty or bit != lib.SR_LOST_DIRTY):
                return f"{self._paths.file(suffix)} was cut by another program, or its medium failed"
        return None

    def begin_again(self) -> None:
        """Before a new log begins: what is done to the files from now on is noticed again.

        ``DiskUnhealthy`` if the files are not those that the disk has open, or not whole.
        """
        if self._options.watch is not None:
            self._options.watch.look()
        self.trouble = self.log_trouble = None
        if (became := self._options.positions.file_trouble()) is not None:
            raise RigError(
                Code.DiskUnhealthy,
                f"disk {self._paths}: {self._options.positions.path} {became} while it was in use; let it be made anew "
                "(siterig role restart)",
            )
        lib.sr_disk_forget_file_changed(self._disk)
        if (trouble := self.check_files(new_log=True)) is not None:
            raise RigError(
                Code.DiskUnhealthy,
                f"disk {self._paths}: {trouble}; put the whole file back, then let the disk be opened again (siterig role "
                "restart)",
            )

    async def check_no_loops(self) -> None:
        """``DiskInUse`` if a loop device that can write is attached to the file itself: no log would have its writes."""
        for loop in await self._loops():
            raise RigError(Code.DiskInUse, f"disk {self._paths}: {hostmounts.loop_text(loop, self.files.path)}")

    async def look_for_loops(self) -> None:
        """Note a loop device that is attached to the file itself."""
        for loop in await self._loops():
            self.changed_by_another(hostmounts.loop_text(loop, self.files.path))

    async def _loops(self) -> list[str]:
        if self._disk is None:  # closed meanwhile
            return []
        return await hostmounts.loops_on(self.files.identity, str(self.files.path))

    def look_at_the_end(self) -> str | None:
        """:meth:`check_files`, and act on what the kernel has reported and nobody has looked at yet."""
        if self._options.watch is not None:
            self._options.watch.look()
        self.check_log()
        return self.check_files()

    def look_again(self) -> None:
        """If a request met that the file was cut, or has no name any more: find what has become of it."""
        if self.trouble is None and lib.sr_disk_file_changed(self._disk) and self.check_files() is None:
            self.changed_by_another(f"{self.files.path} was cut by another program, or had no name, for a while")

    def changed_by_another(self, what: str) -> None:
        """Another program has changed what the disk holds, or may have: its log does not have that."""
        if self.trouble is None and self._disk is not None:
            self.trouble = what
            lib.sr_disk_note_changed(self._disk)
            self._note_end()
            self._options.report_changed(self._paths, what)

    @property
    def changes(self) -> int:
        """How often the disk was changed since it was opened; no change is under way when this is counted."""
        return int(lib.sr_disk_changes(self._disk))

    def close(self) -> None:
        """Before the disk in C is freed."""
        if self._options.watch is not None:
            self._options.watch.remove(self)
        self.files.close()
        self._disk = None
