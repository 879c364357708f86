"""The vault's event log: writing and listing of events."""

from __future__ import annotations

from typing import Literal, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from siterig.azure_emu.vault.db.schema import EventRow
from siterig.azure_emu.vault.model.api import Event
from siterig.blockfs.core.clock import rfc3339

Severity = Literal["OK", "Warning", "Critical"]
EventType = Literal["JobStatus", "ServerHealth", "VmHealth", "VmReplication"]


def record(session: Session, *, vm: str, code: str, kind: EventType, severity: Severity, text: str, now_ns: int) -> None:
    """Append an event in the transaction of the caller."""
    session.add(EventRow(code=code, type=kind, severity=severity, at_ns=now_ns, affected_object=vm, description=text))


def list_events(session: Session, vm: str | None = None, limit: int | None = None) -> list[Event]:
    """Return the events of a VM, or of everything, newest first, at most ``limit``."""
    query = select(EventRow).order_by(EventRow.id.desc()).limit(limit)
    if vm is not None:
        query = query.where(EventRow.affected_object == vm)
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
