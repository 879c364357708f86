"""The contract of a loss of power by hand: ``siterig power-loss``."""

from __future__ import annotations

from typing import Literal, Protocol

from siterig.blockfs.core.wire_model import Whole, WireModel

LossExtent = Literal["random", "torn", "all"]
"""Random unsynced writes are lost, or some of them are torn besides, or all are lost."""


class DiskLoss(WireModel):
    """The effect of a power loss on one disk."""

    disk: str
    writes: Whole
    """Writes that no flush had made durable; those that overlap count as one."""
    lost: Whole
    torn: Whole
    bytes: Whole
    """Bytes that are as they were before."""
    written_back: Whole
    """Writes that counted as durable before, because the memory for unsynced writes was full."""


class PowerLossReport(WireModel):
    """A power loss of disks, all at one position."""

    seed: Whole
    """The same seed and the same writes give the same state."""
    position: Whole
    disks: list[DiskLoss]


class PowerControl(Protocol):
    """The call of a process with disks.  It has no deadline: it writes the old bytes."""

    async def lose_disk_power(self, *, vm: str, extent: LossExtent, seed: Whole | None = None) -> PowerLossReport:
        """Put all disks of a VM into a state that a loss of power may leave, at one position.

        Args:
            vm: the name of the VM, or a pattern; a mount has one VM.
            extent: the unsynced writes that are lost.
            seed: the seed of the random choices; None for a random one.
        Raises:
            RigError: ``DiskInUse`` if a file system is mounted from a disk, or a program has it open, with its name;
                ``FaultNotPossible`` if the old bytes of a disk are not kept; ``VmNotFound``.
        """
        ...
