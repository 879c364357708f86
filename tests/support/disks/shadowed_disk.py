"""A served disk and a model that follows its change log; the workload tests compare both byte by byte."""

from __future__ import annotations

from pathlib import Path

from siterig.blockfs.contracts.control import SegmentInfo
from tests.support.disks.disk_server_process import VM, DiskServer
from tests.support.disks.log_oracle import Model


class ShadowedDisk:
    """Disk ``name`` of ``server``, followed from its start (all zeros).

    ``model`` is a sparse file in the server's folder; its fields have the position that it has reached.
    """

    def __init__(self, server: DiskServer, name: str) -> None:
        self.name = name
        self.model = Model(server.folder / f"{name}.model", server.disk_bytes)
        self._server = server
        self._number = 0

    def catch_up(self) -> int:
        """Take a cut, replay the log up to it, and return its position.  No program may write meanwhile."""
        position = self._server.cut()
        for segment in self.closed():
            if segment.number > self._number:
                self.model.replay([Path(segment.path)])
                self._number = segment.number
        (info,) = (disk for disk in self._server.call("list_disks", vm=VM) if disk["name"] == self.name)
        flushes = info["last_seq"] - self.model.seq
        assert (flushes in (0, 1), info["needs_resync"]) == (True, None), "at most the flush after the cut may be missing"
        return position

    def closed(self) -> list[SegmentInfo]:
        """Return the closed segments that are kept, oldest first."""
        found = [SegmentInfo.model_validate(segment) for segment in self._server.call("segments", vm=VM)]
        return [segment for segment in found if Path(segment.path).name.startswith(f"{self.name}.")]

    def check(self) -> None:
        """Check that the log gives the disk's bytes, in the server's file and in the mount.  No program may write."""
        self.catch_up()
        self.model.check(self.file)
        self.model.check(self.file, mounted=self._server.disk(self.name))

    @property
    def file(self) -> Path:
        """The disk's file in the server's folder; holes in it are space that was freed."""
        return self._server.backing(self.name)

    def forget(self) -> None:
        """Report all replayed segments as applied, so that they are deleted."""
        newest = self.closed()[-1]
        self._server.call("trim_log", disk_id=newest.disk_id, generation=newest.generation, last_seq=newest.last_seq)
