"""Progress of long work: an agent reports it, and a progress bar draws it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from siterig.blockfs.core.wire_model import WireModel

Phase = Literal["InitialReplication", "Resynchronization", "DeltaReplication", "Failback", "Import", "Verification"]

Advance = Callable[[int], None]
"""Called with the number of bytes that were processed since the last call."""


class DiskProgress(WireModel):
    """Progress of the copy of one disk, in bytes of the disk's address space."""

    disk: str
    done_bytes: int
    total_bytes: int
    sent_bytes: int
    """Bytes that were sent after compression; holes, zeros and equal chunks are not sent."""


class VmProgress(WireModel):
    """The agent's current work for a VM, for progress bars; the VM can be one that is being created."""

    vm: str
    phase: Phase | None
    disks: list[DiskProgress]
    detail: str = ""
