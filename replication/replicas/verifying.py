"""The verification of one VM: both sides are compared at the position of a snapshot, while replication runs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import structlog
import trio

from siterig.blockfs.contracts.verification import Verification
from siterig.blockfs.core.errors import RigError
from siterig.replication.comparison.verification import verify_snapshot
from siterig.replication.engine.context import AgentContext
from siterig.replication.engine.progress_tracker import ProgressTracker
from siterig.replication.engine.retry import unwrap_group
from siterig.replication.replicas.applied_waits import wait_applied

_log = structlog.get_logger(__name__)


async def verify_disks(
    context: AgentContext, vm: str, tracker: ProgressTracker, run_cycle: Callable[[], Awaitable[object]]
) -> Verification:
    """Compare the replicated disks; no snapshot is left.

    ``run_cycle``: runs a cycle, so that the position of the snapshot is applied soon.
    """
    snapshot = await context.replicated(vm).begin_snapshot()
    try:
        tracker.begin("Verification", [(disk.name, 0, disk.size_bytes) for disk in snapshot.disks])
        tracker.detail = "waiting until the position is applied"
        _log.info("verification_begun", vm=vm, position=snapshot.position)
        await run_cycle()
        await wait_applied(context, vm, snapshot.position, {disk.disk_id for disk in snapshot.disks})
        tracker.detail = "comparing checksums"
        with unwrap_group():
            found = await verify_snapshot(
                context.host, context.vault, snapshot, open_file=context.open_snapshot, advance=tracker.done
            )
    finally:
        with trio.CancelScope(shield=True), suppress(RigError):  # a host that is away has lost the snapshot
            await context.replicated(vm).end_snapshot()
    _log.info("verification_ended", vm=vm, position=snapshot.position, differing_bytes=found.differing_bytes)
    return found
