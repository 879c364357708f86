"""The events that are mailed, and the topics by which they share a mail.

As in the service: the health of a VM became critical, the heartbeat of a server was lost, a failover failed, and the RPO of
a VM is beyond its threshold.
"""

from __future__ import annotations

from siterig.azure_emu.vault.db.schema import EventRow
from siterig.azure_emu.vault.model.alert_api import RPO_ABOVE
from siterig.azure_emu.vault.model.bounds import SUPERVISOR_SILENT
from siterig.blockfs.core.errors import Code

INFRASTRUCTURE = "infrastructure"
"""The topic of servers; the topic of a VM is ``vm:`` and its name."""
_HEARTBEAT = {Code.RoleHeld, Code.RoleUnavailable, Code.RoleHung, Code.RoleFailed, SUPERVISOR_SILENT}
_FAILOVERS = {"TestFailoverFailed", "PlannedFailoverFailed", "UnplannedFailoverFailed"}


def topic_of(event: EventRow) -> str | None:
    """Return the topic of the mail about an event; None if it is not mailed."""
    if event.severity == "OK":
        return None
    if event.type == "ServerHealth":
        return INFRASTRUCTURE if event.severity == "Critical" or event.code in _HEARTBEAT else None
    if event.type == "VmHealth" and event.code in _HEARTBEAT:
        return INFRASTRUCTURE
    is_critical_health = event.type == "VmHealth" and event.severity == "Critical"
    if is_critical_health or event.code == RPO_ABOVE or event.code in _FAILOVERS:
        return f"vm:{event.affected_object}"
    return None
