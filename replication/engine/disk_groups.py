"""The disk host, limited to a group of a VM's disks, with the record of the group's copy.

A VM has two groups: the disks that are replicated, and those that join the replication.  The names of a group are in the
VM's relationship.  They are passed with each call, so a disk of the VM that is in no group is never tracked, tagged or read;
it may be unreadable, or come later, without an effect on replication.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

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
from siterig.replication.engine.relationship import DiskJoin, DiskSync, RelationshipBook


class DiskGroup(ABC):
    """Some disks of a VM; the calls to the disk host are those of ``DiskHostControl``."""

    def __init__(self, host: DiskHostControl, book: RelationshipBook, vm: str) -> None:
        self.vm = vm
        self._host = host
        self._book = book

    @property
    @abstractmethod
    def names(self) -> list[str] | None:
        """The names of the disks; None: all disks of the VM."""

    @property
    @abstractmethod
    def states(self) -> list[DiskSync]:
        """The progress of the copy of each disk."""

    @property
    @abstractmethod
    def resync_begun(self) -> bool:
        """True if the progress is that of a resync that is not complete, and that can continue."""

    @property
    @abstractmethod
    def resync_limited(self) -> bool:
        """True if a resync may trust that both sides are equal where no change was recorded."""

    @abstractmethod
    def record(self, states: list[DiskSync], *, resync_begun: bool = False) -> None:
        """Record the progress of the copy."""

    @property
    def _sent_names(self) -> list[str] | None:
        names = self.names
        return None if names is None else sorted({*names, *(disk.name for disk in self.states)})

    async def infos(self) -> list[DiskInfo]:
        """Return the disks."""
        return await self._host.list_disks(vm=self.vm, disks=self.names)

    async def start_tracking(
        self, *, new_generation: bool = False, after: dict[str, int] | None = None, after_position: int = 0
    ) -> list[DiskInfo]:
        """Log every write to the disks from now on."""
        return await self._host.start_tracking(
            vm=self.vm, disks=self.names, new_generation=new_generation, after=after, after_position=after_position
        )

    async def sending(self) -> list[DiskInfo]:
        """Return the disks that can have parts to send: those of the group, and removed ones that are not applied yet."""
        return await self._host.list_disks(vm=self.vm, disks=self._sent_names)

    async def segments(self) -> list[SegmentInfo]:
        """Return the closed segments of the disks that can have parts to send."""
        return await self._host.segments(vm=self.vm, disks=self._sent_names)

    async def log_state(self, *, applied: list[AppliedLog]) -> LogState:
        """Delete the applied segments; return the disks that can have parts to send, and the segments that remain."""
        return await self._host.log_state(vm=self.vm, applied=applied, disks=self._sent_names)

    async def begin_snapshot(self) -> SnapshotInfo:
        """Begin a snapshot over the disks; one that a kill has left is removed first."""
        await self.end_snapshot()
        return await self._host.begin_snapshot(vm=self.vm, disks=self.names)

    async def end_snapshot(self) -> None:
        """Remove the snapshot; does nothing if there is none."""
        await self._host.end_snapshot(vm=self.vm, disks=self.names)


class ReplicatedDisks(DiskGroup):
    """The disks that are replicated: each cut has all of them."""

    @property
    def names(self) -> list[str] | None:
        record = self._book.find(self.vm)
        return None if record is None else record.replicated

    @property
    def states(self) -> list[DiskSync]:
        return self._book.get(self.vm).disks

    @property
    def resync_begun(self) -> bool:
        return self._book.get(self.vm).resync_begun

    @property
    def resync_limited(self) -> bool:
        return self._book.get(self.vm).resync_limited

    def record(self, states: list[DiskSync], *, resync_begun: bool = False) -> None:
        self._book.update(self.vm, disks=states, resync_begun=resync_begun)

    async def cut(self, *, kind: TagKind, name: str, not_after_ns: int | None = None) -> CutInfo:
        """Tag one position over the disks."""
        return await self._host.cut(vm=self.vm, kind=kind, name=name, not_after_ns=not_after_ns, disks=self.names)


class JoiningDisks(DiskGroup):
    """The disks that are copied to join the replication; no cut has them yet.  There is no group without a record."""

    @property
    def _join(self) -> DiskJoin:
        return self._book.get(self.vm).joining or DiskJoin(names=[])

    @property
    def names(self) -> list[str]:
        return self._join.names

    @property
    def states(self) -> list[DiskSync]:
        return self._join.disks

    @property
    def resync_begun(self) -> bool:
        return self._join.resync_begun

    @property
    def resync_limited(self) -> bool:
        return False

    def record(self, states: list[DiskSync], *, resync_begun: bool = False) -> None:
        if self._book.get(self.vm).joining is not None:
            changed = self._join.model_copy(update={"disks": states, "resync_begun": resync_begun})
            self._book.update(self.vm, joining=changed)
