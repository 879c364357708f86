"""How far the agent is with a VM, for progress bars."""

from __future__ import annotations

from collections.abc import Iterable

from siterig.blockfs.core.progress import DiskProgress, Phase, VmProgress


class ProgressTracker:
    """Mutable progress of one VM; written by whoever does the work, read by ``progress()``."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._phase: Phase | None = None
        self._disks: dict[str, list[int]] = {}
        self.detail = ""

    def begin(self, phase: Phase, disks: Iterable[tuple[str, int, int]]) -> None:
        """Work begins: (disk, done bytes, total bytes)."""
        self._phase = phase
        self._disks = {name: [done, total, 0] for name, done, total in disks}
        self.detail = ""

    def done(self, disk: str, done_bytes: int) -> None:
        """The disk is looked at up to here."""
        self._disks[disk][0] = done_bytes

    def more(self, disk: str, more_bytes: int) -> None:
        """So much more of the disk is looked at."""
        self._disks[disk][0] += more_bytes

    def sent(self, disk: str, more_bytes: int) -> None:
        """That much more went over the wire."""
        if disk in self._disks:
            self._disks[disk][2] += more_bytes

    def end(self) -> None:
        """Idle."""
        self._phase = None
        self._disks = {}
        self.detail = ""

    def snapshot(self) -> VmProgress:
        """As of now."""
        disks = [
            DiskProgress(disk=name, done_bytes=done, total_bytes=total, sent_bytes=sent)
            for name, (done, total, sent) in self._disks.items()
        ]
        return VmProgress(vm=self._vm, phase=self._phase, disks=disks, detail=self.detail)
