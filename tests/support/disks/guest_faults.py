"""A fault rule of one disk, with the choices of one seed."""

from __future__ import annotations

from siterig.blockfs.contracts.fault_effects import DiskEffect, DiskFault, GuestOperation
from siterig.blockfs.core.fault_decisions import Turns, stream_of

STREAM = stream_of(4711, "fault")
"""The stream of the random choices of :func:`fault`."""


def fault(
    effect: DiskEffect,
    *operations: GuestOperation,
    start: int = 0,
    length: int = 0,
    turns: Turns | None = None,
    enabled: bool = True,
) -> DiskFault:
    """Return a rule of this effect, on all operations of the disk if none is given."""
    return DiskFault("fault", effect, operations, start=start, length=length, turns=turns or Turns(STREAM), enabled=enabled)
