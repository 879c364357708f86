"""Waits of the site until the recovery side has applied a position."""

from __future__ import annotations

from collections.abc import Callable, Collection

from siterig.blockfs.sides.vault_link import PATIENCE_S_MAX
from siterig.blockfs.transfer.part_name import Watermark
from siterig.replication.engine.context import AgentContext

PLACE = "verify"
"""The place of the wait in the list of the agent's waits."""


async def wait_applied(
    context: AgentContext,
    vm: str,
    position: int,
    disk_ids: Collection[str] | None = None,
    *,
    while_true: Callable[[], bool] = lambda: True,
) -> None:
    """Wait until every managed disk, or each of these, has the state at a position.

    ``while_true``: the wait also ends when this is no longer true.
    """
    what = f"the state at position {position} is not applied yet"

    def lacks(mark: Watermark) -> bool:
        return mark.complete_position < position and (disk_ids is None or mark.disk_id in disk_ids)

    marks = await context.vault.watermarks(vm=vm)
    while any(map(lacks, marks)) and while_true():
        context.waits.set(PLACE, "RecoverySideBehind", what, vm=vm)
        marks = await context.vault.watermarks(vm=vm, known=marks, patience_s=PATIENCE_S_MAX)
    context.waits.clear(PLACE, vm=vm)
