"""Failback: receives a disk from the recovery side as sync parts, into a staging file next to the old disk.

Fault contract
--------------
This process or the host may end at any moment, and the cache account may be unreachable.  The data stay recoverable: the
blobs are deleted only after the whole disk is durable *and* that fact is recorded (``ReceivedDisk``).  Before that a
repeated call begins with an empty staging file; after it the call only deletes the remaining blobs.  The old disk is not
touched until the commit.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog
import trio

from siterig.blockfs.changelog.segment import RecordType, SegmentReader
from siterig.blockfs.changelog.tags import decode_tag
from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.files.durable_io import sync_folder
from siterig.blockfs.layers.layer import RawLayer
from siterig.blockfs.transfer.codec import unpack
from siterig.blockfs.transfer.part_name import SYNC_END, PartName
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import ReceivedDisk
from siterig.replication.engine.retry import as_rig_error, unwrap_group

EXPORT_GENERATION = 1
UNREADABLE_LOOKS, LOOK_AGAIN_S = 2, 3.0
"""Attempts, and seconds between them, before a part is reported as unreadable."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


async def receive_disk(
    context: AgentContext, tracker: ProgressTracker, *, vm: str, disk: str, source_id: str, size_bytes: int, parts: int
) -> None:
    """Download the parts of a disk into its staging file, which is durable on return.

    The call waits while the cache account cannot be reached.

    Raises:
        RigError: ``PartNotFound``, ``PartUnreadable``, ``PartCorrupt``: the recovery side must upload that part again.
    """
    names = [PartName(source_id, EXPORT_GENERATION, "sync", number, number) for number in range(1, parts + 1)]
    tracker.begin("Failback", [(disk, 0, size_bytes)])
    try:
        if not _is_here(context, vm, disk, source_id):
            staging = await context.host.begin_replace(vm=vm, disk=disk, size_bytes=size_bytes)
            await _assemble(context, tracker, names, vm, disk, staging=Path(staging.path), size_bytes=size_bytes)
            context.book.add_received(ReceivedDisk(vm=vm, disk=disk, source_id=source_id, path=staging.path))
            _log.info("disk_received", vm=vm, disk=disk, parts=parts)
        for name in names:
            await _retry_recoverable(context, vm, disk, partial(context.cache.delete, name))
    except OSError as exc:
        raise as_rig_error(exc) from exc
    finally:
        tracker.end()


async def commit_failback(context: AgentContext, *, vm: str, keep: list[str]) -> list[DiskInfo]:
    """Replace the disks that were received; the old disk of each name in ``keep`` stays as an image file."""
    disks = await context.host.commit_replace(vm=vm, keep=keep)
    context.book.clear_received(vm)
    return disks


def _is_here(context: AgentContext, vm: str, disk: str, source_id: str) -> bool:
    for item in context.book.received(vm):
        if (item.disk, item.source_id) == (disk, source_id) and Path(item.path).exists():
            return True
    context.book.clear_received(vm, disk)
    return False


async def _assemble(
    context: AgentContext,
    tracker: ProgressTracker,
    names: list[PartName],
    vm: str,
    disk: str,
    *,
    staging: Path,
    size_bytes: int,
) -> None:
    # One part is downloaded while the one before it is applied.
    send, receive = trio.open_memory_channel[tuple[PartName, bytes]](1)
    target = await trio.to_thread.run_sync(lambda: RawLayer(staging, writable=True))
    part_file = context.spool / f"{names[0].disk_id}.failback.hrl" if names else None

    async def download() -> None:
        async with send:
            for name in names:
                data = await _retry_recoverable(context, vm, disk, partial(context.cache.get, name))
                tracker.sent(disk, len(data))
                await send.send((name, data))

    complete = False
    try:
        with unwrap_group():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(download)
                async with receive:
                    async for name, data in receive:
                        assert part_file is not None  # noqa: S101 (a part was received, so there is a first one)
                        end, complete = await trio.to_thread.run_sync(_apply, name, data, part_file, target, size_bytes)
                        tracker.done(disk, end)
        if not complete:
            raise RigError(Code.PartCorrupt, f"the {len(names)} parts of disk {disk!r} do not end with a {SYNC_END} tag")
        await trio.to_thread.run_sync(_make_durable, target)
    finally:
        target.close()
        if part_file is not None:
            part_file.unlink(missing_ok=True)


def _apply(name: PartName, data: bytes, part_file: Path, target: RawLayer, size_bytes: int) -> tuple[int, bool]:
    """Apply one part; return the end of its last range on the disk, and True if it was the last part."""
    header = unpack(name, data, part_file)
    if header.disk_size_bytes != size_bytes or target.size_bytes < size_bytes:
        raise RigError(
            Code.PartCorrupt,
            f"part {name.blob()} is of a disk of {header.disk_size_bytes} bytes, the staging disk has "
            f"{target.size_bytes}; the disk that comes back has {size_bytes}",
        )
    end, complete = 0, False
    with SegmentReader(part_file) as reader:
        for record in reader.records(verify=False):  # unpack has verified all of them
            if record.type is RecordType.TAG:
                complete = decode_tag(reader.payload(record)).name == SYNC_END
                continue
            end = record.offset + record.length
            if end > size_bytes:
                raise RigError(Code.PartCorrupt, f"part {name.blob()} writes up to byte {end} of a disk of {size_bytes}")
            if record.type is RecordType.WRITE:
                target.pwrite(record.offset, reader.payload(record))
            elif record.type is RecordType.ZERO:
                target.zero(record.offset, record.length)
            else:
                raise RigError(
                    Code.PartCorrupt, f"part {name.blob()} holds a {record.type.name} record; sync parts have none"
                )
    return (size_bytes if complete else end), complete


def _make_durable(target: RawLayer) -> None:
    target.sync()
    sync_folder(target.path.parent)


async def _retry_recoverable(context: AgentContext, vm: str, disk: str, call: Callable[[], Awaitable[T]]) -> T:
    """Repeat a call by the retry table as long as its failure is recoverable.

    If a part cannot be read a second time while the account answers, the error is raised: the recovery side uploads it
    again.
    """
    attempt = unreadable = 0
    with context.waits.waiting("failback", vm=vm, disk=disk) as because:
        while True:
            try:
                return await call()
            except RigError as exc:
                unreadable += exc.code == Code.PartUnreadable
                if not exc.recoverable or unreadable >= UNREADABLE_LOOKS:
                    raise
                attempt += 1
                because(exc)
                delay_s = LOOK_AGAIN_S if exc.code == Code.PartUnreadable else context.retry.delay_s(attempt, exc)
                _log.warning("failback_waits", code=exc.code, message=exc.message, attempt=attempt, next_try_s=delay_s)
                await context.clock.sleep(delay_s)
