"""How far the recovery side is behind what the site has sent, for each VM; in memory, for it is about now.

It is counted from what the site reports as sent, so that an applier that stands still is noticed without its help.  Times
are elapsed seconds: a step of the wall clock makes nothing late.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from siterig.azure_emu.contracts.reports import SkippedBlob
from siterig.blockfs.core.clock import Clock
from siterig.blockfs.core.clock_reading import SECOND_NS

KEPT_MAX = 1000
"""Sent states of a VM that are kept until they are applied; of more, every second one is kept."""


@dataclass(slots=True)
class _Vm:
    sent: deque[tuple[int, float]] = field(default_factory=deque)
    """(position, time of its report) of everything that is not applied yet, oldest first."""
    progress_s: float = 0.0


@dataclass(slots=True)
class _Account:
    waiting_bytes: int = 0
    skipped: tuple[SkippedBlob, ...] = ()
    skipped_count: int = 0


class AppliedLag:
    """Changed on the trio thread by the reports of the agent and the applier; read by health on any thread."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._vms: dict[str, _Vm] = {}
        self._accounts: dict[str, _Account] = {}

    def _now_s(self) -> float:
        return self._clock.boottime_ns() / SECOND_NS

    def _vm(self, vm: str) -> _Vm:
        return self._vms.setdefault(vm, _Vm())

    def sent(self, vm: str, position: int) -> None:
        """Everything up to ``position`` is in the cache account."""
        waiting = self._vm(vm).sent
        if waiting and position <= waiting[-1][0]:
            return
        waiting.append((position, self._now_s()))
        if len(waiting) > KEPT_MAX:
            self._vms[vm].sent = deque([item for n, item in enumerate(waiting) if n % 2 == 0 or n == len(waiting) - 1])

    def applied(self, vm: str, position: int, *, moved: bool) -> None:
        """Every disk has everything up to ``position``; ``moved``: something was applied since the last report."""
        entry = self._vm(vm)
        while entry.sent and entry.sent[0][0] <= position:
            entry.sent.popleft()
        if moved:
            entry.progress_s = self._now_s()

    def account(self, disk_id: str, waiting_bytes: int, skipped: list[SkippedBlob], skipped_count: int) -> None:
        """Note the applier's view of a disk's blobs in the cache account."""
        self._accounts[disk_id] = _Account(waiting_bytes, tuple(skipped), skipped_count)

    def put(self, waiting: dict[str, int]) -> None:
        """Note how many bytes of each disk are, as the agent knows, in the cache account and not applied."""
        for disk_id, size_bytes in waiting.items():
            self._accounts.setdefault(disk_id, _Account()).waiting_bytes = size_bytes

    def keep_only(self, vms: set[str], disk_ids: set[str]) -> None:
        """Forget all others."""
        self._vms = {vm: entry for vm, entry in self._vms.items() if vm in vms}
        self._accounts = {disk_id: entry for disk_id, entry in self._accounts.items() if disk_id in disk_ids}

    def unapplied_s(self, vm: str) -> float:
        """For how long the oldest state that was sent and is not applied has been waiting; 0: there is none."""
        sent = self._vm(vm).sent
        return self._now_s() - sent[0][1] if sent else 0.0

    def stalled_s(self, vm: str) -> float:
        """For how long something has been waiting while nothing at all was applied."""
        entry = self._vm(vm)
        return self._now_s() - max(entry.progress_s, entry.sent[0][1]) if entry.sent else 0.0

    def waiting_bytes(self, disk_ids: list[str]) -> int | None:
        """Bytes in the cache account that are not applied; None: nothing was reported since the vault started."""
        known = [self._accounts[disk_id].waiting_bytes for disk_id in disk_ids if disk_id in self._accounts]
        return sum(known) if known else None

    def skipped(self, disk_ids: list[str]) -> tuple[list[SkippedBlob], int]:
        """The first blobs that are passed over, and how many there are."""
        known = [self._accounts[disk_id] for disk_id in disk_ids if disk_id in self._accounts]
        return [blob for entry in known for blob in entry.skipped], sum(entry.skipped_count for entry in known)
