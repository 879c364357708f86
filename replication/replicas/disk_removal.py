"""Ends the replication of some disks of a VM, with a last cut that has them.

Fault contract: the record changes in the step that has made the last cut with the disks, so no later cut has them.  Their
parts are sent until the recovery side has that point.  After a kill the call is repeated, and finds what is done: names in
``Relationship.removed`` are left out already, and their position is known.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from siterig.blockfs.contracts.control import CutInfo
from siterig.replication.engine.context import AgentContext
from siterig.replication.parts.spool import clear_spool
from siterig.replication.replicas.applied_waits import wait_applied

MakeCut = Callable[[Callable[[CutInfo], None]], Awaitable[object]]
"""Runs a cycle, and calls its argument when the cut is sent, before another cycle can make one."""

_log = structlog.get_logger(__name__)


async def remove_disks(context: AgentContext, vm: str, names: list[str], make_last_cut: MakeCut) -> int:
    """Remove disks from a VM's replication (:meth:`siterig.blockfs.sides.provider.Provider.remove_disks`)."""
    book = context.book
    left = [name for name in names if name not in book.get(vm).removed]
    replicated = [disk.name for disk in await context.replicated(vm).infos()] if left else []
    if left and book.get(vm).phase == "resync-required":
        _leave_out(context, vm, left, await context.host.position(), replicated)
    elif left:
        await make_last_cut(lambda cut: _leave_out(context, vm, left, cut.position, replicated))
    position = max(book.get(vm).removed[name] for name in names)
    leaving = [disk for disk in book.get(vm).disks if disk.name in names]
    await wait_applied(
        context, vm, position, {disk.disk_id for disk in leaving}, while_true=lambda: book.get(vm).phase == "delta"
    )
    await context.host.stop_tracking(vm=vm, disks=names)
    book.update(vm, disks=[disk for disk in book.get(vm).disks if disk.name not in names])
    for disk in leaving:
        await trio.to_thread.run_sync(clear_spool, context.spool / disk.disk_id)
    return position


def _leave_out(context: AgentContext, vm: str, names: list[str], position: int, replicated: list[str]) -> None:
    context.book.update(
        vm,
        replicated=[name for name in replicated if name not in names],
        removed=context.book.get(vm).removed | dict.fromkeys(names, position),
    )
    _log.info("disks_removed", vm=vm, disks=names, position=position)
