"""The disk host, limited to the disks of a VM that are replicated: the other ones are never tracked, tagged or read.

The names of a VM's replicated disks are in its relationship.  They are passed with each call, so a disk of the VM that is
not replicated may be unreadable, or come later, without an effect on replication.
"""

from __future__ import annotations

from siterig.blockfs.contracts.control import (
    AppliedLog,
    CutInfo,
    DiskHostControl,
    DiskInfo,
    LogState,
    SegmentInfo,
    SnapshotInfo,
    TagKind,
)
from siterig.replication.engine.relationship import RelationshipBook


class ReplicatedDisks:
    """The calls to the disk host that concern all replicated disks of a VM; they are those of ``DiskHostControl``."""

    def __init__(self, host: DiskHostControl, book: RelationshipBook) -> None:
        self._host = host
        self._book = book

    def _names(self, vm: str) -> list[str] | None:
        record = self._book.find(vm)
        return None if record is None else record.replicated

    def _sent_names(self, vm: str) -> list[str] | None:
        names = self._names(vm)
        return None if names is None else sorted({*names, *(disk.name for disk in self._book.get(vm).disks)})

    async def infos(self, *, vm: str) -> list[DiskInfo]:
        """Return the replicated disks."""
        return await self._host.list_disks(vm=vm, disks=self._names(vm))

    async def start_tracking(
        self, *, vm: str, new_generation: bool = False, after: dict[str, int] | None = None, after_position: int = 0
    ) -> list[DiskInfo]:
        """Log every write to the replicated disks from now on."""
        return await self._host.start_tracking(
            vm=vm, disks=self._names(vm), new_generation=new_generation, after=after, after_position=after_position
        )

    async def cut(self, *, vm: str, kind: TagKind, name: str, not_after_ns: int | None = None) -> CutInfo:
        """Tag one position over the replicated disks."""
        return await self._host.cut(vm=vm, kind=kind, name=name, not_after_ns=not_after_ns, disks=self._names(vm))

    async def sending(self, *, vm: str) -> list[DiskInfo]:
        """Return the disks that can have parts to send: the replicated ones, and removed ones that are not applied yet."""
        return await self._host.list_disks(vm=vm, disks=self._sent_names(vm))

    async def segments(self, *, vm: str) -> list[SegmentInfo]:
        """Return the closed segments of the disks that have parts to send."""
        return await self._host.segments(vm=vm, disks=self._sent_names(vm))

    async def log_state(self, *, vm: str, applied: list[AppliedLog]) -> LogState:
        """Delete the applied segments; return the replicated disks and their closed segments that remain."""
        return await self._host.log_state(vm=vm, applied=applied, disks=self._names(vm))

    async def begin_snapshot(self, *, vm: str) -> SnapshotInfo:
        """Begin a snapshot over the replicated disks; one that a kill has left is removed first."""
        await self.end_snapshot(vm=vm)
        return await self._host.begin_snapshot(vm=vm, disks=self._names(vm))

    async def end_snapshot(self, *, vm: str) -> None:
        """Remove the snapshot; does nothing if there is none."""
        await self._host.end_snapshot(vm=vm, disks=self._names(vm))
