"""Compares the disks of a snapshot with the managed disks at the snapshot's position.

The snapshot has exactly the writes up to its position, and so has the managed disk's state at that position, however much
both sides change meanwhile.  So a difference is never a write that is in transit.  A chunk that the recovery side cannot
read counts as a difference.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol

import trio

from siterig.blockfs.contracts.control import DiskHostControl, SnapshotInfo
from siterig.blockfs.contracts.verification import RANGES_MAX, DifferingRange, Verification, VerifiedDisk
from siterig.blockfs.layers.chunk_tags import DataRanges
from siterig.blockfs.sides.vault_link import VaultLink
from siterig.cext.packed_tags import PackedTags, Span
from siterig.replication.comparison.comparison import ComparedDisk, Comparison, DiskRanges, compare


class TaggedFile(Protocol):
    """A file of a snapshot whose chunks can be tagged; its calls block."""

    def tags(self, key: bytes, chunk_bytes: int, spans: Sequence[Span], data: DataRanges) -> PackedTags:
        """Return the keyed tags of the chunks of spans."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


async def verify_snapshot(
    host: DiskHostControl,
    vault: VaultLink,
    snapshot: SnapshotInfo,
    *,
    open_file: Callable[[Path], TaggedFile],
    advance: Callable[[str, int], None],
) -> Verification:
    """Compare all disks of a snapshot, whose position the managed disks have reached.

    Args:
        host: the disk host; what was compared is released from the snapshot.
        vault: the way to the managed disks.
        snapshot: the snapshot.
        open_file: opens a disk of the snapshot.
        advance: is called with the name of a disk and the offset below which it is compared.
    """
    disks = []
    async with compare(vault) as comparison:
        for disk in snapshot.disks:
            file = await trio.to_thread.run_sync(open_file, Path(disk.path))
            try:

                async def passed(upto: int, name: str = disk.name) -> None:
                    advance(name, upto)
                    await host.release_snapshot(vm=snapshot.vm, disk=name, upto=upto)

                compared = ComparedDisk.of(disk, file.tags, position=snapshot.position)
                differing = await _verify_disk(comparison, compared, passed)
            finally:
                with trio.CancelScope(shield=True):  # in a thread: closing waits for the server of the mount
                    await trio.to_thread.run_sync(file.close)
            disks.append(
                VerifiedDisk(
                    name=disk.name,
                    size_bytes=disk.size_bytes,
                    data_bytes=sum(length for _, length in disk.data_ranges),
                    differing_bytes=sum(length for _, length in differing),
                    differing=[DifferingRange(offset=offset, length=length) for offset, length in differing[:RANGES_MAX]],
                )
            )
    return Verification(vm=snapshot.vm, position=snapshot.position, time_ns=snapshot.time_ns, disks=disks)


async def _verify_disk(
    comparison: Comparison, compared: ComparedDisk, passed: Callable[[int], Awaitable[None]]
) -> DiskRanges:
    """Return the ranges that differ; ranges of two windows that touch are one."""
    found: DiskRanges = []
    async with comparison.windows(compared) as windows:
        async for window in windows:
            for offset, length in window.differing:
                if found and sum(found[-1]) == offset:
                    found[-1] = (found[-1][0], found[-1][1] + length)
                else:
                    found.append((offset, length))
            await passed(window.end)
    return found
