"""Counts the bytes of the agent's work on a VM, for progress bars, rates and the figures of jobs."""

from __future__ import annotations

from collections.abc import Iterable

from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.progress import CopyTotals, DiskProgress, Phase, VmProgress
from siterig.replication.parts.rate_meter import RateMeter

_COPIES = ("InitialReplication", "Resynchronization")
"""The phases whose figures are kept when they have ended."""


class ProgressTracker:
    """The progress of one VM: the code that does the work updates it, and ``progress()`` reads it.

    Args:
        vm: the VM.
        clock: the clock of rates and durations.
        part_of: the tracker of the other work on the VM: the last copy of one is the last copy of both.
    """

    def __init__(self, vm: str, clock: Clock, *, part_of: ProgressTracker | None = None) -> None:
        self._vm = vm
        self._copies: list[CopyTotals] = [] if part_of is None else part_of._copies  # noqa: SLF001 (of the same class)
        """The last copy, of all trackers of the VM; empty if none has ended."""
        self._clock = clock
        self._phase: Phase | None = None
        self._disks: dict[str, list[int]] = {}
        self._begun_s = 0.0
        self._moved = RateMeter(clock.trio_time_s)
        self._uploads = RateMeter(clock.trio_time_s)
        self._sent_bytes = self._before_bytes = 0
        self._uploaded_bytes = 0
        self.detail = ""

    @property
    def is_working(self) -> bool:
        """True between the begin and the end of a phase."""
        return self._phase is not None

    def begin(self, phase: Phase, disks: Iterable[tuple[str, int, int]]) -> None:
        """Begin a phase, or a part of it; ``disks`` has (name, bytes done, bytes in total) for each disk."""
        known = {name: [done, total, 0] for name, done, total in disks}
        if phase != self._phase:
            self._begun_s = self._clock.trio_time_s()
            self._sent_bytes, self._before_bytes = 0, sum(done for done, _, _ in known.values())
        self._phase = phase
        self._disks = known
        self._moved = RateMeter(self._clock.trio_time_s)
        self.detail = ""

    def done(self, disk: str, done_bytes: int) -> None:
        """Set the bytes of the disk that are done."""
        self.more(disk, done_bytes - self._disks[disk][0])

    def more(self, disk: str, more_bytes: int) -> None:
        """Add bytes of the disk that are done."""
        self._disks[disk][0] += more_bytes
        self._moved.add(more_bytes)

    def sent(self, disk: str, more_bytes: int) -> None:
        """Add bytes of the disk that were sent."""
        self._uploads.add(more_bytes)
        self._sent_bytes += more_bytes
        self._uploaded_bytes += more_bytes
        if disk in self._disks:
            self._disks[disk][2] += more_bytes

    def end(self) -> None:
        """End the phase: the VM is idle."""
        if self._phase in _COPIES:
            copy = CopyTotals(
                phase=self._phase,
                total_bytes=sum(total for _, total, _ in self._disks.values()),
                sent_bytes=self._sent_bytes,
                duration_s=self._clock.trio_time_s() - self._begun_s,
                before_bytes=self._before_bytes,
            )
            self._copies[:] = [copy]
        self._phase = None
        self._disks = {}
        self.detail = ""

    def snapshot(self) -> VmProgress:
        """Return the present progress."""
        disks = [
            DiskProgress(disk=name, done_bytes=done, total_bytes=total, sent_bytes=sent)
            for name, (done, total, sent) in self._disks.items()
        ]
        return VmProgress(
            vm=self._vm,
            phase=self._phase,
            disks=disks,
            detail=self.detail,
            upload_bytes_s=self._uploads.per_second,
            left_s=self._left_s(),
            last_copy=self._copies[0] if self._copies else None,
        )

    @property
    def uploaded_bytes(self) -> int:
        """The bytes that were sent since the start."""
        return self._uploaded_bytes

    def _left_s(self) -> float | None:
        left_bytes = sum(total - done for done, total, _ in self._disks.values())
        rate = self._moved.per_second
        return left_bytes / rate if self._disks and rate > 0 else None
