"""How far long work is: what an agent reports and a progress bar draws."""

from __future__ import annotations

from typing import Literal

from siterig.blockfs.core.wire_model import WireModel

Phase = Literal["InitialReplication", "Resynchronization", "DeltaReplication", "Failback", "Import"]


class DiskProgress(WireModel):
    """How far a copy of one disk is; bytes of the disk's address space."""

    disk: str
    done_bytes: int
    total_bytes: int
    sent_bytes: int
    """What went over the wire, after holes, zeros and equal chunks were skipped and compression."""


class VmProgress(WireModel):
    """What the agent does for a VM at the moment, for progress bars; the VM may be one that is just being made."""

    vm: str
    phase: Phase | None
    disks: list[DiskProgress]
    detail: str = ""
