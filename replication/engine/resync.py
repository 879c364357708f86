"""Resynchronization: chunk checksums of both sides are compared, and only the chunks that differ are sent.

A new generation begins, so the parts of the old one become void.  Some of them may still be in transit while both sides are
compared, and be applied after their chunk was found equal: then it would differ again.  So each disk's stream opens with a
small part, and nothing is compared before the recovery side has applied it: from then on it accepts no parts of older
generations, and its disk changes only by the parts of this resync.

An interrupted resync starts over, with another generation; the chunks that it had sent are found equal then.
"""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack

import structlog
import trio

from siterig.blockfs.contracts.control import SnapshotInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.cext.checksums import KEY_BYTES
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.disk_copy import DiskCopy, check_vouched_for, fresh_snapshot, open_copy, sync_states
from siterig.replication.engine.outbox import Outbox
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.relationship import DiskSync
from siterig.replication.engine.snapshots import CHUNK_BYTES
from siterig.replication.engine.uploader import Uploader, uploading

FINE_BYTES = 64 << 10
CHUNKS_PER_CALL = 256

_log = structlog.get_logger(__name__)


async def resynchronize(context: AgentContext, vm: str, outbox: Outbox, tracker: ProgressTracker) -> None:
    """Resynchronize all disks; return when every part is in the cache account and the snapshot is removed.

    After any failure the call can be repeated.

    Raises:
        ResyncNeeded: the log broke meanwhile.
    """
    await context.host.end_snapshot(vm=vm)
    await _begin_generation(context, vm)
    snapshot = await fresh_snapshot(context, vm)
    await _check_newest(context, vm, snapshot)
    disks = [DiskSync.begun(disk) for disk in snapshot.disks]
    context.book.update(vm, disks=disks)
    tracker.begin("Resynchronization", [(disk.name, 0, disk.size_bytes) for disk in disks])
    _log.info("resync_started", vm=vm, position=snapshot.position, generations=[disk.generation for disk in disks])
    async with uploading(outbox, sync_states(context, vm), context.waits, vm) as uploader, AsyncExitStack() as open_disks:
        copies = [
            await open_disks.enter_async_context(open_copy(context, snapshot, disk, uploader, tracker))
            for disk in snapshot.disks
        ]
        for copy in copies:
            await copy.open_generation()
        tracker.detail = "waiting for the recovery side to apply the new generation"
        await _wait_for_generation(uploader, outbox, copies)
        tracker.detail = "comparing checksums"
        for copy in copies:
            await _send_differences(context, copy, tracker)
            await copy.finish()
        tracker.detail = "waiting for the last parts to reach the cache account"
    await check_vouched_for(context, vm)
    await context.host.end_snapshot(vm=vm)


async def _begin_generation(context: AgentContext, vm: str) -> None:
    """Begin a generation later than all applied or sent parts: the disks may have been restored from an older copy."""
    marks = await context.vault.watermarks(vm=vm)
    taken = {mark.disk_id: mark.generation for mark in marks}
    for mark in marks:
        sent = [part.generation for part in (await context.cache.list(mark.disk_id)).parts]
        taken[mark.disk_id] = max([mark.generation, *sent])
    position = max((mark.complete_position for mark in marks), default=0)
    await context.host.start_tracking(vm=vm, new_generation=True, after=taken, after_position=position)


async def _check_newest(context: AgentContext, vm: str, snapshot: SnapshotInfo) -> None:
    marks = {mark.disk_id: mark for mark in await context.vault.watermarks(vm=vm)}
    for disk in snapshot.disks:
        mark = marks.get(disk.disk_id)
        if mark is not None and mark.generation >= disk.generation:
            raise RigError(
                Code.GenerationBehind,
                f"disk {disk.name!r} of VM {vm!r} is at generation {disk.generation}; the recovery side already has "
                f"{mark.generation}: remove the replication of the VM and protect it again",
            )


async def _wait_for_generation(uploader: Uploader, outbox: Outbox, copies: list[DiskCopy]) -> None:
    def all_at_generation() -> bool:
        marks = [(outbox.watermark(copy.disk.disk_id), copy.disk.generation) for copy in copies]
        return all(mark is not None and mark.generation == generation and mark.sync_parts for mark, generation in marks)

    await uploader.wait_until(all_at_generation, "the new generation is not applied yet")


async def _send_differences(context: AgentContext, copy: DiskCopy, tracker: ProgressTracker) -> None:
    size = copy.disk.size_bytes
    coarse_key, fine_key = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(KEY_BYTES)
    chunks = -(-size // CHUNK_BYTES)
    for first in range(0, chunks, CHUNKS_PER_CALL):
        count = min(CHUNKS_PER_CALL, chunks - first)
        for chunk in await _differing(context, copy, coarse_key, CHUNK_BYTES, first=first, count=count):
            first_fine = chunk * (CHUNK_BYTES // FINE_BYTES)
            fine_count = -(-(min(size, (chunk + 1) * CHUNK_BYTES) - chunk * CHUNK_BYTES) // FINE_BYTES)
            for fine in await _differing(context, copy, fine_key, FINE_BYTES, first=first_fine, count=fine_count):
                offset = fine * FINE_BYTES
                await copy.add(offset, min(FINE_BYTES, size - offset), zeros=True)
        tracker.done(copy.disk.name, min(size, (first + count) * CHUNK_BYTES))


async def _differing(
    context: AgentContext, copy: DiskCopy, key: bytes, chunk_bytes: int, *, first: int, count: int
) -> list[int]:
    """Return the numbers of the chunks that are not equal on both sides."""
    ours = await trio.to_thread.run_sync(copy.file.tags, key, chunk_bytes, first, count)
    theirs = await context.vault.checksums(
        disk_id=copy.disk.disk_id, key_hex=key.hex(), chunk_bytes=chunk_bytes, first=first, count=count
    )
    if len(theirs) != count:
        raise RigError(Code.BadChecksums, f"asked for {count} checksums of disk {copy.disk.disk_id}, got {len(theirs)}")
    return [first + i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a.hex() != b]
