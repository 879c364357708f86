"""The lag of the recovery side behind the data that the site has sent, for each VM.

It is kept in memory, because it is about the present.  It is counted from the reports of the site, so an applier that stands
still is noticed without its help.  Times are elapsed seconds: a step of the wall clock makes nothing late.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from siterig.azure_emu.contracts.reports import SkippedBlob
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.clock_reading import SECOND_NS

KEPT_MAX = 1000
"""The number of sent states of a VM that are kept until they are applied; beyond it every second one is dropped."""


@dataclass(slots=True)
class _Vm:
    sent: deque[tuple[int, float]] = field(default_factory=deque)
    """(position, time of its report) of all states that are not applied yet, oldest first."""
    progress_s: float = 0.0
    applied_position: int = 0
    """The figure of the last report of the applier."""


@dataclass(slots=True)
class _Account:
    waiting_bytes: int = 0
    skipped: tuple[SkippedBlob, ...] = ()
    skipped_count: int = 0


class AppliedLag:
    """The lag of all VMs; reports change it on the trio thread, health reads it on any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._vms: dict[str, _Vm] = {}
        self._accounts: dict[str, _Account] = {}

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / SECOND_NS

    def _vm(self, vm: str) -> _Vm:
        return self._vms.setdefault(vm, _Vm())

    def sent(self, vm: str, position: int) -> bool:
        """Record that all data up to ``position`` is in the cache account; return False if it is known to be applied.

        The report of the applier about a state can come before that of the site.
        """
        if position <= self._vm(vm).applied_position:
            return False
        waiting = self._vm(vm).sent
        if waiting and position <= waiting[-1][0]:
            return True
        waiting.append((position, self._now_s()))
        if len(waiting) > KEPT_MAX:
            self._vms[vm].sent = deque([item for n, item in enumerate(waiting) if n % 2 == 0 or n == len(waiting) - 1])
        return True

    def applied(self, vm: str, position: int, *, moved: bool) -> None:
        """Record that every disk is applied up to ``position``; ``moved`` if data was applied since the last report."""
        entry = self._vm(vm)
        entry.applied_position = position
        while entry.sent and entry.sent[0][0] <= position:
            entry.sent.popleft()
        if moved:
            entry.progress_s = self._now_s()

    def account(self, disk_id: str, waiting_bytes: int, skipped: list[SkippedBlob], skipped_count: int) -> None:
        """Record the applier's view of a disk's blobs in the cache account."""
        self._accounts[disk_id] = _Account(waiting_bytes, tuple(skipped), skipped_count)

    def put(self, waiting: dict[str, int]) -> None:
        """Record the agent's count of the bytes of each disk that are in the cache account and not applied."""
        for disk_id, size_bytes in waiting.items():
            self._accounts.setdefault(disk_id, _Account()).waiting_bytes = size_bytes

    def keep_only(self, vms: set[str], disk_ids: set[str]) -> None:
        """Forget all other VMs and disks."""
        self._vms = {vm: entry for vm, entry in self._vms.items() if vm in vms}
        self._accounts = {disk_id: entry for disk_id, entry in self._accounts.items() if disk_id in disk_ids}

    def unapplied_s(self, vm: str) -> float:
        """Return the age of the oldest state that was sent and is not applied; 0 if there is none."""
        sent = self._vm(vm).sent
        return self._now_s() - sent[0][1] if sent else 0.0

    def stalled_s(self, vm: str) -> float:
        """Return the time for which data has been waiting without any progress of the applier; 0 if no data waits."""
        entry = self._vm(vm)
        return self._now_s() - max(entry.progress_s, entry.sent[0][1]) if entry.sent else 0.0

    def waiting_bytes(self, disk_ids: list[str]) -> int | None:
        """Return the bytes in the cache account that are not applied; None if the vault has no report since its start."""
        known = [self._accounts[disk_id].waiting_bytes for disk_id in disk_ids if disk_id in self._accounts]
        return sum(known) if known else None

    def skipped(self, disk_ids: list[str]) -> tuple[list[SkippedBlob], int]:
        """Return the first of the skipped blobs, and the number of all."""
        known = [self._accounts[disk_id] for disk_id in disk_ids if disk_id in self._accounts]
        return [blob for entry in known for blob in entry.skipped], sum(entry.skipped_count for entry in known)
