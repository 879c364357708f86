"""Known damage of managed disks: the affected states of a VM, and the texts about them.

A scrub finds all damage.  A read of a mounted state or of a recovered VM finds damage at one position; a scrub finds the
rest.  Only a scrub removes known damage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from sqlalchemy import ColumnElement, and_, delete, func, or_, select
from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.recovery_side import Damage
from siterig.azure_emu.vault.context import disk_sets
from siterig.azure_emu.vault.context.events import Severity
from siterig.azure_emu.vault.db.schema import DamageRow, DiskRow
from siterig.blockfs.core.errors import Code, RigError

CODE = "ManagedDiskDamaged"
BY_READ_MAX = 100
"""The number of positions of a disk at which damage found by reads is recorded; a scrub finds all."""


@dataclass(frozen=True, slots=True)
class DiskDamage:
    """The damage of one managed disk.  ``critical``: its newest state is damaged, and stays so without a resync."""

    disk: str
    text: str
    critical: bool

    @property
    def severity(self) -> Severity:
        """The severity of an event about the damage."""
        return "Critical" if self.critical else "Warning"


def note_scrub(session: Session, disk_id: str, damages: Iterable[Damage]) -> bool:
    """Replace the known damage by the findings of a scrub; return True if they differ."""
    found: dict[tuple[int | None, int | None], DamageRow] = {}
    for damage in damages:
        where = (damage.first_position, damage.last_position)
        if where not in found:
            example = f"{damage.path}: byte {damage.offset}: {damage.what}"
            found[where] = DamageRow(
                disk_id=disk_id, first_position=where[0], last_position=where[1], by_read=False, places=0, example=example
            )
        found[where].places += 1
    before = {_facts(row) for row in _rows(session, disk_id)}
    session.execute(delete(DamageRow).where(DamageRow.disk_id == disk_id))
    session.add_all(found.values())
    session.flush()
    return before != {_facts(row) for row in found.values()}


def note_read(session: Session, disk_id: str, path: str, offset: int, position: int) -> bool:
    """Record that a read at a position met damage; return True if that position was not known to be damaged."""
    covering = select(DamageRow.id).where(DamageRow.disk_id == disk_id, _is_at(position))
    if session.scalars(covering.limit(1)).first() is not None:
        return False
    kept = select(func.count()).where(DamageRow.disk_id == disk_id, DamageRow.by_read)
    if session.execute(kept).scalar_one() < BY_READ_MAX:
        example = f"{path}: byte {offset}"
        row = DamageRow(
            disk_id=disk_id, first_position=position, last_position=position, by_read=True, places=1, example=example
        )
        session.add(row)
        session.flush()
    return True


def of_vm(session: Session, vm: str) -> list[DiskDamage]:
    """Return the damaged disks of a VM, by name."""
    query = select(DiskRow).where(DiskRow.vm == vm, DiskRow.last_position.is_(None), DiskRow.first_position.is_not(None))
    disks = session.scalars(query.order_by(DiskRow.name)).all()  # the others are in no newest state
    known = ((disk, _rows(session, disk.disk_id)) for disk in disks)
    return [_describe(disk, rows) for disk, rows in known if rows]


def of_all(session: Session) -> defaultdict[str, list[DiskDamage]]:
    """Return the damaged disks of each VM, by name."""
    found: defaultdict[str, list[DiskDamage]] = defaultdict(list)
    query = select(DiskRow, DamageRow).join(DamageRow, DamageRow.disk_id == DiskRow.disk_id)
    rows = session.execute(query.order_by(DiskRow.name, DiskRow.disk_id, DamageRow.id))
    for disk, damages in groupby(rows, key=lambda row: row[0]):
        found[disk.vm].append(_describe(disk, [row[1] for row in damages]))
    return found


def of_disk(session: Session, disk: DiskRow) -> DiskDamage:
    """Return the damage of a disk that is known to be damaged."""
    return _describe(disk, _rows(session, disk.disk_id))


def warning_at(session: Session, vm: str, position: int) -> RigError | None:
    """Return a warning about a state that is known to be damaged; None if no damage is known."""
    query = select(DiskRow, DamageRow.example).join(DamageRow, DamageRow.disk_id == DiskRow.disk_id)
    rows = session.execute(query.where(DiskRow.vm == vm, _is_at(position)).order_by(DiskRow.name, DamageRow.id))
    found = [(disk.name, example) for disk, example in rows if disk_sets.has_state(disk, position)]
    if not found:
        return None
    names = ", ".join(sorted({name for name, _ in found}))
    return RigError(
        Code.RecoveryPointDamaged,
        f"VM {vm!r}: position {position} is known to be damaged on disk {names}: "
        "reads of the damaged ranges return I/O errors "
        f"({found[0][1]})",
    )


def _is_at(position: int) -> ColumnElement[bool]:
    return and_(
        DamageRow.first_position <= position,
        or_(DamageRow.last_position.is_(None), DamageRow.last_position >= position),
    )


def _facts(row: DamageRow) -> tuple[int | None, int | None, bool, int]:
    return row.first_position, row.last_position, row.by_read, row.places


def _rows(session: Session, disk_id: str) -> list[DamageRow]:
    return list(session.scalars(select(DamageRow).where(DamageRow.disk_id == disk_id).order_by(DamageRow.id)))


def _describe(disk: DiskRow, rows: list[DamageRow]) -> DiskDamage:
    hurting = [row for row in rows if row.first_position is not None]
    lasting = [row for row in hurting if row.last_position is None]
    scrubbed = [row for row in hurting if not row.by_read]
    places = sum(row.places for row in rows)
    where = "one place" if places == 1 else f"{places} places"
    head = f"the managed disk of {disk.vm}/{disk.name} is damaged in {where} ({rows[0].example}): "
    if lasting:
        first = min(row.first_position or 0 for row in lasting)
        rest = (
            f"states from position {first} on are damaged; a resync replaces the data, and the next scrub clears the damage"
        )
    elif scrubbed:
        first = min(row.first_position or 0 for row in scrubbed)
        last = max(row.last_position or 0 for row in scrubbed)
        rest = f"states between positions {first} and {last} are damaged; retention removes them in time"
    elif hurting:
        rest = f"a read of position {hurting[0].first_position} found it; a scrub finds all damaged states"
    else:
        rest = "every state is readable; a repair rebuilds the file"
    return DiskDamage(disk.name, head + rest, critical=bool(lasting))
