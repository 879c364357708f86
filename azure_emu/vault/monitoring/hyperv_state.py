"""The state of an item's replication, as the Hyper-V host names it.

The names are those of the WMI class ``Msvm_ReplicationRelationship`` (``ReplicationState``).  They are derived from the
item's state; the site's agent is not asked.
"""

from __future__ import annotations

from siterig.azure_emu.vault.context.states import PRIMARY, ProtectionState
from siterig.azure_emu.vault.db.schema import ItemRow

_S = ProtectionState
RESYNC_SCENARIO = "RepairVMReplication"
_CYCLING = {_S.PROTECTED, _S.UNPLANNED_FAILED, _S.PLANNED_FAILED}
_AT_PRIMARY = {
    _S.ENABLING: "Ready",
    _S.ENABLING_FAILED: "Ready",
    _S.INITIAL: "WaitingInitialReplication",
    _S.INITIAL_SENT: "WaitingInitialReplication",
    _S.INITIAL_APPLIED: "WaitingInitialReplication",
    _S.INITIAL_FAILED: "WaitingInitialReplication",
    _S.UNPLANNED: "FailoverInProgress",
    _S.UNPLANNED_DONE: "Recovered",
    _S.CHANGE_POINT: "FailoverInProgress",
    _S.CHANGE_POINT_DONE: "Recovered",
    _S.CHANGE_POINT_FAILED: "Recovered",
    _S.PLANNED: "FailoverInProgress",
    _S.PLANNED_DONE: "Recovered",
    _S.COMMIT_TO_RECOVERY: "Recovered",
    _S.COMMIT_TO_RECOVERY_FAILED: "Recovered",
    _S.COMMITTED: "FailbackComplete",
    _S.REPROTECT: "Resynchronizing",
    _S.REPROTECT_FAILED: "WaitingStartResync",
    _S.DISABLING: "Disabled",
    _S.DISABLING_FAILED: "Disabled",
}
_AT_RECOVERY = {
    _S.COMMITTED: "Committed",
    _S.PLANNED: "FailbackInProgress",
    _S.PLANNED_FAILED: "Committed",
    _S.PLANNED_DONE: "FailbackComplete",
    _S.COMMIT_TO_PRIMARY: "FailbackComplete",
    _S.COMMIT_TO_PRIMARY_FAILED: "FailbackComplete",
}


def hyperv_state(item: ItemRow, *, critical: bool, is_resyncing: bool) -> str:
    """Return the state; ``critical``: an error of the item is not retried."""
    state = ProtectionState(item.protection_state)
    if item.active_location != PRIMARY:
        return _AT_RECOVERY[state]
    if state not in _CYCLING:
        return _AT_PRIMARY[state]
    if item.paused_ns is not None:
        return "Suspended"
    if is_resyncing:
        return "Resynchronizing"
    if item.resync_reason is not None:
        return "WaitingStartResync"
    return "Critical" if critical else "Replicating"
