"""The state of one managed disk that is open for applying: what the base holds, and which frames the journal has.

The thread that applies parts and the thread that compacts share it.  Each replaces ``progress`` and ``history`` only while
it holds ``lock``; a reader takes the lock, or uses a history that it has read before.

Fault contract: ``progress`` is durable before the state in memory changes.
"""

from __future__ import annotations

import threading

from siterig.azure_emu.disks.history import DiskHistory
from siterig.azure_emu.disks.loader import StoreState
from siterig.azure_emu.disks.metadata import DISK_META, PROGRESS, CompactionIntent, OpenRecord, Progress, write_meta
from siterig.blockfs.core import boot


class AppliedState:
    """Identity, progress and history of one managed disk."""

    def __init__(self, loaded: StoreState) -> None:
        self.folder = loaded.folder
        self.meta = loaded.meta
        self.progress = loaded.progress
        self.history = loaded.history
        self.lock = threading.Lock()
        self._opened = loaded.progress.opened if loaded.progress else OpenRecord(boot=boot.current_boot_id(), frame=0)

    @property
    def newest_frame(self) -> int:
        """The number of the newest frame: in the journal, or the last one that was compacted."""
        return self.history.compacted + len(self.history.frames)

    def snapshot(self) -> DiskHistory:
        """Return a copy of the history that does not change any more."""
        with self.lock:
            return self.history.upto(self.newest_frame)

    def replace_progress(self, progress: Progress) -> None:
        """Record durably that the base holds ``progress``, and that the journal has no frame."""
        progress = self._with_opening(progress)
        write_meta(self.folder / PROGRESS, progress)
        with self.lock:
            self.progress = progress
            self.history.set_progress(progress)

    def grow(self, size_bytes: int) -> None:
        """Record durably that the disk was larger when its initial replication began than when it was created."""
        self.meta = self.meta.model_copy(update={"size_bytes": size_bytes})
        write_meta(self.folder / DISK_META, self.meta)
        self.history.set_meta(self.meta)

    def begin_compaction(self, progress: Progress, intent: CompactionIntent) -> None:
        """Take over the progress that announces a compaction: positions below its target cannot be read any more."""
        with self.lock:
            self.progress = progress
            self.history.begin_compaction(intent)

    def end_compaction(self, intent: CompactionIntent) -> Progress:
        """Record durably that the base holds everything up to the target; return the new progress."""
        with self.lock:
            done = self._with_opening(self.history.progress_at(intent.frame))
            write_meta(self.folder / PROGRESS, done)
            history = DiskHistory(self.meta, done)
            for frame in self.history.frames:
                if frame.number > done.frame:
                    history.add(frame)
            self.progress, self.history = done, history
        return done

    def _with_opening(self, progress: Progress) -> Progress:
        return progress.model_copy(update={"opened": self._opened})
