"""The rows that the health and the description of protected items are made of, read by a fixed number of statements.

Everything that passes with time is computed from them later (:mod:`siterig.azure_emu.vault.monitoring.health`), so the facts
are as good as new until a row changes (:meth:`VaultDatabase.known`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, selectinload

from siterig.azure_emu.vault.context.vm_names import chosen
from siterig.azure_emu.vault.db.database import VaultDatabase
from siterig.azure_emu.vault.db.schema import AzureVmRow, CycleRow, ItemRow, JobRow, PointRow, RigClockRow
from siterig.azure_emu.vault.monitoring import acknowledged, automatic_resync, damage
from siterig.azure_emu.vault.monitoring.acknowledged import ReasonKey
from siterig.azure_emu.vault.monitoring.damage import DiskDamage
from siterig.azure_emu.vault.monitoring.hyperv_state import RESYNC_SCENARIO

WHOLE_ITEM = (selectinload(ItemRow.disks), selectinload(ItemRow.health_errors))
"""Not two statements for each item."""


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """The rows about one item, used after the transaction that read them.

    Attributes:
        item: its row, with its disks and its reported errors.
        damaged: the known damage of its disks.
        resync_failure: the reason for which its last automatic resync failed, if a resync is due; None if it did not fail.
        cycles_ns: the rig's clock at each counted cycle, in order.
        acknowledged: the reasons that a user acknowledged.
        newest_point_ns: the rig's clock at the newest recovery point; None if there is none.
        pinned_points: the number of points that a user pinned.
        recovery_vm_name, test_vm_name: the names of its VMs on the recovery side, or those that a failover would make.
        is_resyncing: True while the job of a resync runs.
    """

    item: ItemRow
    damaged: list[DiskDamage]
    resync_failure: str | None
    cycles_ns: list[int]
    acknowledged: frozenset[ReasonKey]
    newest_point_ns: int | None
    pinned_points: int
    recovery_vm_name: str
    test_vm_name: str
    is_resyncing: bool

    def cycles_since(self, elapsed_ns: int) -> int:
        """Return the number of counted cycles from a time of the rig's clock on."""
        return len(self.cycles_ns) - bisect_left(self.cycles_ns, elapsed_ns)


@dataclass(frozen=True, slots=True)
class AllFacts:
    """The facts of all items, by name, and the row of the rig's clock; None before its first reading."""

    clock: RigClockRow | None
    items: list[ItemFacts]


def _figures() -> Select[str, int | None, int, int]:
    """Select for each VM the newest point's time, the number of pinned points, and that of open resyncs."""
    point, job, item = PointRow.__table__.c, JobRow.__table__.c, ItemRow.__table__.c
    usable = (point.vm == item.vm, point.available)
    newest = select(point.elapsed_ns).where(*usable).order_by(point.position.desc()).limit(1)
    resyncs = select(func.count()).where(job.vm == item.vm, job.end_ns.is_(None), job.scenario == RESYNC_SCENARIO)
    return select(
        item.vm,
        newest.scalar_subquery(),
        select(func.count()).where(*usable, point.pinned).scalar_subquery(),
        resyncs.scalar_subquery(),
    )


_FIGURES = _figures()


def read_all(session: Session) -> AllFacts:
    """Read the facts of all items."""
    items = session.scalars(select(ItemRow).order_by(ItemRow.vm).options(*WHOLE_ITEM)).all()
    return AllFacts(session.get(RigClockRow, RigClockRow.ONLY), _read(session, items, _FIGURES, _CYCLES))


async def of_all(database: VaultDatabase) -> AllFacts:
    """Return the facts of all items as of the last change of a row; they must not be changed."""
    return await database.known("items", read_all)


def read(session: Session, item: ItemRow) -> ItemFacts:
    """Read the facts of one item."""
    figures = _FIGURES.where(ItemRow.__table__.c.vm == item.vm)
    return _read(session, [item], figures, _CYCLES.where(_CYCLE.vm == item.vm))[0]


def _read(
    session: Session, items: Iterable[ItemRow], of_figures: Select[*tuple[Any, ...]], of_cycles: Select[str, int]
) -> list[ItemFacts]:
    figures = {vm: (newest_ns, pinned, resyncs) for vm, newest_ns, pinned, resyncs in session.execute(of_figures)}
    cycles: defaultdict[str, list[int]] = defaultdict(list)
    for vm, elapsed_ns in session.execute(of_cycles):
        cycles[vm].append(elapsed_ns)
    names: dict[tuple[str, str], str] = {}
    for owner, kind, name in session.execute(_NAMES):
        names.setdefault((owner, kind), name)
    damaged, known = damage.of_all(session), acknowledged.of_all(session)
    return [
        ItemFacts(
            item=item,
            damaged=damaged[item.vm],
            resync_failure=_resync_failure(session, item),
            cycles_ns=cycles[item.vm],
            acknowledged=known.get(item.vm, frozenset()),
            newest_point_ns=figures[item.vm][0],
            pinned_points=figures[item.vm][1],
            recovery_vm_name=names.get((item.vm, "Recovered")) or chosen(item, "Recovered"),
            test_vm_name=names.get((item.vm, "TestFailover")) or chosen(item, "TestFailover"),
            is_resyncing=figures[item.vm][2] > 0,
        )
        for item in items
    ]


_CYCLE = CycleRow.__table__.c
_CYCLES = select(_CYCLE.vm, _CYCLE.elapsed_ns).order_by(_CYCLE.elapsed_ns)
_VMS = AzureVmRow.__table__.c
_NAMES = select(_VMS.owner, _VMS.kind, _VMS.name).order_by(_VMS.name)


def _resync_failure(session: Session, item: ItemRow) -> str | None:
    if item.resync_reason is None or (job := automatic_resync.failure(session, item.vm)) is None:
        return None
    return f"{job.errors[-1].message} ({job.errors[-1].code})" if job.errors else "no reason given"
