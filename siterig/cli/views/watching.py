"""The live view of ``siterig status --watch``: it asks the vault when that says that something has changed.

On a terminal the view is drawn in one place, and ages grow every second without a question.  Elsewhere each change is
printed: as lines, or as one JSON document a line.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio

from siterig.azure_emu.vault.model.vm_status import ChangeCount
from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.progress import VmProgress
from siterig.cli import follow, output, rig_status
from siterig.cli.light_commands import running
from siterig.cli.tables import Line
from siterig.cli.views import vm_view
from siterig.core.paths import Layout
from siterig.rpc import directory

TICK_S = 1.0
"""The time after which ages are drawn again, and after which a copy or a vault that is away is asked about again."""
PATIENCE_S = 4.0
"""The longest time without a question."""
PROGRESS_S = 1.0
_COPYING = {"WaitingInitialReplication", "Resynchronizing", "FailbackInProgress"}
"""Values of ``replication_state`` in which data of whole disks may be copied."""
_AGES = ("lastRpoInSeconds", "newest_point_age_s")


@dataclass(frozen=True, slots=True)
class View:
    """One answer, as it is drawn.

    ``lines`` returns the lines some seconds after the answer.  ``moving``: a copy runs, so there is news every second.
    ``coming``: a copy is about to run; its progress is no change of the vault.
    """

    document: object
    lines: Callable[[float], Sequence[Line]]
    bars: Sequence[output.Bar] = ()
    moving: bool = False
    coming: bool = False


async def watch(folder: Path, vm: str | None, *, as_json: bool) -> None:
    """Show the rig, or one VM, until cancelled."""
    layout = running(folder)
    if vm is None:
        await _show(layout, lambda: _rig_view(layout), as_json=as_json)
    else:
        await _show(layout, lambda: _vm_view(layout, vm), as_json=as_json)


async def _show(layout: Layout, look: Callable[[], Awaitable[View]], *, as_json: bool) -> None:
    known = await _next_change(layout, ChangeCount(epoch="", count=0), moving=False)
    live = output.may_draw(sys.stdout) and not as_json
    with output.Drawing(sys.stdout) as drawing:
        while True:
            view, shown = await look(), known
            if as_json:
                output.print_json_line(view.document)
            else:
                drawing.draw(view.lines(0.0), view.bars)
            while True:
                async with trio.open_nursery() as nursery:
                    if live:
                        nursery.start_soon(_grow_older, drawing, view)
                    known = await _next_change(layout, known, moving=view.moving)
                    nursery.cancel_scope.cancel()
                if live or view.moving or view.coming or known != shown:
                    break


async def _grow_older(drawing: output.Drawing, view: View) -> None:
    begun_s = SYSTEM_CLOCK.trio_time_s()
    while True:
        await SYSTEM_CLOCK.sleep(TICK_S)
        drawing.draw(view.lines(SYSTEM_CLOCK.trio_time_s() - begun_s), view.bars)


async def _next_change(layout: Layout, known: ChangeCount, *, moving: bool) -> ChangeCount:
    """Return the vault's count when it has changed, or after a while; a vault that is away is asked again after a moment."""
    try:
        return await directory.observation(layout).wait_for_change(
            epoch=known.epoch, after=known.count, patience_s=TICK_S if moving else PATIENCE_S
        )
    except RigError:
        await SYSTEM_CLOCK.sleep(TICK_S)
        return ChangeCount(epoch="", count=known.count + 1)  # what the supervisor says may have changed


async def _rig_view(layout: Layout) -> View:
    state = await rig_status.rig_state(layout)
    bars: list[output.Bar] = []
    moving = coming = False
    for item in state.items:
        if item["replication_state"] in _COPYING:
            progress = await _progress(layout, item["vm"])
            bars += [replace(bar, title=f"{item['vm']}  {bar.title}") for bar in follow.bars_of(progress)]
            coming = True
            moving = moving or bool(bars)

    def lines(later_s: float) -> list[Line]:
        problem: list[Line] = [] if state.problem is None else ["", *output.detail("vault", state.problem)]
        return [*rig_status.lines_of(replace(state, items=[_older(item, later_s) for item in state.items])), *problem]

    return View(state.document(), lines, bars, moving=moving, coming=coming)


def _older(item: rig_status.Document, by_s: float) -> dict[str, Any]:
    return {**item, **{key: item[key] + by_s for key in _AGES if item[key] is not None}}


async def _progress(layout: Layout, vm: str) -> VmProgress | None:
    with SYSTEM_CLOCK.move_on_after(PROGRESS_S):
        try:
            return await directory.vault(layout).progress(vm=vm)
        except RigError:
            pass  # a picture, not a result
    return None


async def _vm_view(layout: Layout, vm: str) -> View:
    status = await directory.observation(layout).vm_status(vm=vm)

    def lines(later_s: float) -> list[Line]:
        ages = {key: value + later_s for key in _AGES if (value := getattr(status.item, key)) is not None}
        return vm_view.lines_of(status.model_copy(update={"item": status.item.model_copy(update=ages)}))

    moving = status.progress is not None and bool(status.progress.disks)
    coming = status.item.replication_state in _COPYING
    return View(status.model_dump(), lines, follow.bars_of(status.progress), moving=moving, coming=coming)
