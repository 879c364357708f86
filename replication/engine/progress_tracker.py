"""Counts the bytes of the agent's work on a VM, for progress bars."""

from __future__ import annotations

from collections.abc import Iterable

from siterig.blockfs.core.progress import DiskProgress, Phase, VmProgress


class ProgressTracker:
    """The progress of one VM: the code that does the work updates it, and ``progress()`` reads it."""

    def __init__(self, vm: str) -> None:
        self._vm = vm
        self._phase: Phase | None = None
        self._disks: dict[str, list[int]] = {}
        self.detail = ""

    def begin(self, phase: Phase, disks: Iterable[tuple[str, int, int]]) -> None:
        """Begin a phase; ``disks`` has (name, bytes done, bytes in total) for each disk."""
        self._phase = phase
        self._disks = {name: [done, total, 0] for name, done, total in disks}
        self.detail = ""

    def done(self, disk: str, done_bytes: int) -> None:
        """Set the bytes of the disk that are done."""
        self._disks[disk][0] = done_bytes

    def more(self, disk: str, more_bytes: int) -> None:
        """Add bytes of the disk that are done."""
        self._disks[disk][0] += more_bytes

    def sent(self, disk: str, more_bytes: int) -> None:
        """Add bytes of the disk that were sent."""
        if disk in self._disks:
            self._disks[disk][2] += more_bytes

    def end(self) -> None:
        """End the phase: the VM is idle."""
        self._phase = None
        self._disks = {}
        self.detail = ""

    def snapshot(self) -> VmProgress:
        """Return the present progress."""
        disks = [
            DiskProgress(disk=name, done_bytes=done, total_bytes=total, sent_bytes=sent)
            for name, (done, total, sent) in self._disks.items()
        ]
        return VmProgress(vm=self._vm, phase=self._phase, disks=disks, detail=self.detail)
