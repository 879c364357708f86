"""Progress of long work: an agent reports it, and a progress bar draws it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from siterig.blockfs.core.wire_model import WireModel

Phase = Literal[
    "InitialReplication", "Resynchronization", "DeltaReplication", "Failback", "Import", "Verification", "OfflineSeed"
]

Advance = Callable[[int], None]
"""Called with the number of bytes that were processed since the last call."""


class DiskProgress(WireModel):
    """Progress of the copy of one disk, in bytes of the disk's address space."""

    disk: str
    done_bytes: int
    total_bytes: int
    sent_bytes: int
    """Bytes that were sent after compression; holes, zeros and equal chunks are not sent."""


class CopyTotals(WireModel):
    """The figures of a copy that has ended.

    Attributes:
        total_bytes: bytes of the address space of its disks.
        sent_bytes: bytes that were sent, after compression, since the copy was begun or last continued.
        duration_s: the time since then.
        before_bytes: bytes of the address space that were done before the copy was last continued.
    """

    phase: Phase
    total_bytes: int
    sent_bytes: int
    duration_s: float
    before_bytes: int = 0


class VmProgress(WireModel):
    """The agent's current work for a VM; the VM can be one that is being created.

    Attributes:
        upload_bytes_s: bytes that were sent in the last minute, per second; None: the site does not know.
        uploaded_bytes: bytes that were sent since the agent's start, after compression.
        left_s: the estimated time until the copy ends, by its rate of the last minute; None: unknown, or no copy runs.
        last_cycle_s: seconds since the last cycle began; None: there was none since the agent's start.
        next_cycle_s: seconds until the next cycle begins, 0 if it is due or runs; None: no cycle is planned.
        last_copy: the last copy that has ended since the agent's start.
    """

    vm: str
    phase: Phase | None
    disks: list[DiskProgress]
    detail: str = ""
    upload_bytes_s: float | None = None
    uploaded_bytes: int = 0
    left_s: float | None = None
    last_cycle_s: float | None = None
    next_cycle_s: float | None = None
    last_copy: CopyTotals | None = None
