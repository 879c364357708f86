"""A loss of power of disks by hand: it waits for no rule, and only happens while no guest uses the disks.

Fault contract: the old bytes are written to the disks and to their logs, which stay true.  A kill in the middle leaves some
unsynced writes, which is another state that a loss of power may leave.
"""

from __future__ import annotations

import fnmatch
import secrets
from collections.abc import Callable, Iterable

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.fault_decisions import stream_of
from siterig.blockfs.disk.disk_faults import PowerLoss, lose_power
from siterig.blockfs.guests import loop_devices
from siterig.core.power_contract import DiskLoss, LossExtent, PowerControl, PowerLossReport
from siterig.faults.armed_disk_rule import OpenDisk
from siterig.faults.disk_mapping import TEAR_BYTES

_STREAM = "power loss"
"""The name of the stream of the random choices."""


class DiskPower(PowerControl):
    """The power of the disks of one process.

    Args:
        list_disks: returns the open disks.
        remedy: the advice if the unsynced writes of a disk are not kept.
    """

    def __init__(self, list_disks: Callable[[], Iterable[OpenDisk]], *, remedy: str) -> None:
        self._list_disks, self._remedy = list_disks, remedy

    async def lose_disk_power(self, *, vm: str, extent: LossExtent, seed: int | None = None) -> PowerLossReport:
        disks = sorted((disk for disk in self._list_disks() if fnmatch.fnmatchcase(disk.vm, vm)), key=str)
        if not disks:
            there = ", ".join(dict.fromkeys(disk.vm for disk in self._list_disks())) or "none"
            raise RigError(Code.VmNotFound, f"there is no VM {vm!r} with disks; there are: {there}")
        await self._check_idle(disks)
        chosen = secrets.randbelow(10**9) if seed is None else seed
        how = PowerLoss(
            stream=stream_of(chosen, _STREAM), keeps=extent != "all", tear_bytes=TEAR_BYTES if extent == "torn" else 0
        )
        before = [disk.faults.unsynced() for disk in disks]
        for disk, unsynced in zip(disks, before, strict=True):
            if unsynced is None:
                raise RigError(Code.FaultNotPossible, f"disk {disk}: its unsynced writes are not kept: {self._remedy}")
        lost, position = await lose_power([disk.faults for disk in disks], how)
        rows = [
            DiskLoss(
                disk=str(disk),
                writes=each.writes,
                lost=each.lost,
                torn=each.torn,
                bytes=each.length,
                written_back=0 if unsynced is None else unsynced.written_back,
            )
            for disk, each, unsynced in zip(disks, lost, before, strict=True)
        ]
        return PowerLossReport(seed=chosen, position=position, disks=rows)

    async def _check_idle(self, disks: Iterable[OpenDisk]) -> None:
        """Refuse if a guest uses a disk: its file system would still have bytes that the disk has lost."""
        for disk in disks:
            holders = await loop_devices.holders(disk.path)
            if holders:
                raise RigError(
                    Code.DiskInUse,
                    f"disk {disk} is in use by {', '.join(holders)}: unmount it there first, or arm a rule that loses the "
                    "power while it is used: siterig fault add disk lose=unflushed",
                    recoverable=True,
                )
