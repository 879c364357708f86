"""The vault's event log: writing and listing of events."""

from __future__ import annotations

from typing import Literal, cast

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.schema import EventRow
from siterig.azure_emu.vault.model.resources import Event
from siterig.blockfs.core.clock import rfc3339

Severity = Literal["OK", "Warning", "Critical"]
EventType = Literal["JobStatus", "ServerHealth", "VmHealth", "VmReplication"]

POINT_CREATED = "RecoveryPointCreated"
"""The code of the event of each point that was taken, of which only the newest are kept."""
POINTS_KEPT = 2000


def record(session: Session, *, vm: str, code: str, kind: EventType, severity: Severity, text: str, now_ns: int) -> None:
    """Append an event in the transaction of the caller."""
    session.add(EventRow(code=code, type=kind, severity=severity, at_ns=now_ns, affected_object=vm, description=text))


def prune_points(session: Session, count_max: int = POINTS_KEPT) -> None:
    """Delete the oldest events of points beyond ``count_max``; the points themselves have their own retention."""
    newest = select(EventRow.id).where(EventRow.code == POINT_CREATED).order_by(EventRow.id.desc())
    last = session.scalars(newest.offset(count_max).limit(1)).first()
    if last is not None:
        session.execute(delete(EventRow).where(EventRow.code == POINT_CREATED, EventRow.id <= last))


def list_events(
    session: Session,
    vm: str | None = None,
    limit: int | None = None,
    *,
    since_ns: int | None = None,
    with_points: bool = False,
) -> list[Event]:
    """Return the events of a VM, or of everything, newest first, at most ``limit``; ``since_ns`` is the oldest time."""
    query = select(EventRow).order_by(EventRow.id.desc()).limit(limit)
    if vm is not None:
        query = query.where(EventRow.affected_object == vm)
    if since_ns is not None:
        query = query.where(EventRow.at_ns >= since_ns)
    if not with_points:
        query = query.where(EventRow.code != POINT_CREATED)
    return [
        Event(
            eventCode=row.code,
            eventType=row.type,
            severity=cast("Severity", row.severity),
            timeOfOccurrence=rfc3339(row.at_ns),
            affectedObject=row.affected_object,
            description=row.description,
        )
        for row in session.scalars(query)
    ]
