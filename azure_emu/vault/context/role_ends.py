"""Events about the ends and returns of roles, found by comparing two reports of the supervisor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy.orm import Session

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.azure_emu.vault.context import events
from siterig.blockfs.core.errors import Code

ENDED, HUNG, READY = "RoleEnded", Code.RoleHung, "RoleReady"
_RUNNING = {"ready", "hung"}


@dataclass(frozen=True, slots=True)
class RoleEvent:
    """The end or the return of a role, as an event has it."""

    role: str
    code: str
    severity: events.Severity
    text: str


class RoleEnds:
    """Compares each report of the supervisor with the one before."""

    def __init__(self) -> None:
        self._away: set[str] = set()
        """The roles whose end was found, until they are ready again."""

    def between(self, before: Mapping[str, RoleStatus], now: Iterable[RoleStatus]) -> list[RoleEvent]:
        """Return the ends and returns of roles between two reports; a role without an earlier report is left out."""
        found: list[RoleEvent] = []
        for role in now:
            known = before.get(role.name)
            if known is None:
                continue
            why = f": {role.detail}" if role.detail else ""
            died = role.restarts > known.restarts or (known.state in _RUNNING and role.state not in _RUNNING)
            if died or (None not in (known.pid, role.pid) and known.pid != role.pid):
                severity: events.Severity = "Critical" if role.state == "failed" else "Warning"
                text = f"the process of role {role.name} ended; the role is {role.state}{why}"
                found.append(RoleEvent(role.name, ENDED, severity, text))
                self._away.add(role.name)
            elif role.state == "hung" != known.state:
                found.append(RoleEvent(role.name, HUNG, "Warning", f"role {role.name} does not answer{why}"))
                self._away.add(role.name)
            if role.state == "ready" and role.name in self._away:
                found.append(RoleEvent(role.name, READY, "OK", f"role {role.name} is ready again"))
                self._away.discard(role.name)
        return found


def record(session: Session, changes: Iterable[RoleEvent], now_ns: int) -> None:
    """Record the changes as events in the transaction of the caller."""
    for change in changes:
        events.record(
            session,
            vm=change.role,
            code=change.code,
            kind="ServerHealth",
            severity=change.severity,
            text=change.text,
            now_ns=now_ns,
        )
