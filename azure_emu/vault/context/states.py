"""The states of a protected item, and the operations that are allowed in each.

The names are those of the service's ``protectionState`` (the sibling API azure-mgmt-recoveryservicesdatareplication
enumerates them).  *Passing* states hold while a job runs.  *Resting* states are the only ones between jobs, and in each of
them an operation is allowed (a test checks this).
"""

from __future__ import annotations

from enum import StrEnum

from siterig.azure_emu.vault.db.schema import ItemRow
from siterig.blockfs.core.errors import Code, RigError


class ProtectionState(StrEnum):
    """The values of ``protectionState``."""

    ENABLING = "EnablingProtection"  # passing
    ENABLING_FAILED = "EnablingFailed"
    INITIAL = "InitialReplicationInProgress"  # passing
    INITIAL_SENT = "InitialReplicationCompletedOnPrimary"  # passing: all is in the cache account
    INITIAL_APPLIED = "InitialReplicationCompletedOnRecovery"  # passing: finalize protection runs
    INITIAL_FAILED = "InitialReplicationFailed"
    PROTECTED = "Protected"
    UNPLANNED = "UnplannedFailoverInitiated"  # passing
    UNPLANNED_DONE = "UnplannedFailoverCompleted"  # commit pending
    UNPLANNED_FAILED = "UnplannedFailoverFailed"
    CHANGE_POINT = "ChangeRecoveryPointInitiated"  # passing
    CHANGE_POINT_DONE = "ChangeRecoveryPointCompleted"  # commit pending
    CHANGE_POINT_FAILED = "ChangeRecoveryPointFailed"
    PLANNED = "PlannedFailoverInitiated"  # passing, either direction
    PLANNED_DONE = "PlannedFailoverCompleted"  # commit pending; activeLocation tells the direction
    PLANNED_FAILED = "PlannedFailoverFailed"
    COMMIT_TO_RECOVERY = "CommitFailoverInProgressOnRecovery"  # passing
    COMMIT_TO_RECOVERY_FAILED = "CommitFailoverFailedOnRecovery"
    COMMIT_TO_PRIMARY = "CommitFailoverInProgressOnPrimary"  # passing
    COMMIT_TO_PRIMARY_FAILED = "CommitFailoverFailedOnPrimary"
    COMMITTED = "CommitFailoverCompleted"  # activeLocation tells where the VM runs now
    REPROTECT = "ReprotectInitiated"  # passing
    REPROTECT_FAILED = "ReprotectFailed"
    DISABLING = "DisablingProtection"  # passing
    DISABLING_FAILED = "DisablingFailed"


class Operation(StrEnum):
    """The operations on a protected item, by the names of the methods of VaultApi."""

    ENABLE = "enable_protection"
    DISABLE = "disable_protection"
    CREATE_POINT = "create_point"
    TEST = "test_failover"
    CLEANUP = "cleanup_test_failover"
    UNPLANNED = "unplanned_failover"
    PLANNED = "planned_failover"
    COMMIT = "commit_failover"
    FAILBACK = "failback"
    REPROTECT = "reprotect"
    RESYNC = "resync"
    CHANGE_POLICY = "change_policy"
    UPDATE = "update_vm_properties"
    REMOVE_DISKS = "remove_disks"
    ADD_DISKS = "add_disks"
    PAUSE = "pause_replication"
    RESUME = "resume_replication"

    @property
    def command(self) -> str:
        """The command for it, which errors use."""
        return _COMMANDS.get(self, self.value)


_COMMANDS = {
    Operation.ENABLE: "protect",
    Operation.DISABLE: "unprotect",
    Operation.CREATE_POINT: "take-point",
    Operation.TEST: "failover test",
    Operation.CLEANUP: "cleanup",
    Operation.UNPLANNED: "failover unplanned",
    Operation.PLANNED: "failover planned",
    Operation.COMMIT: "commit",
    Operation.CHANGE_POLICY: "policy set",
    Operation.UPDATE: "vm update",
    Operation.REMOVE_DISKS: "disk unprotect",
    Operation.ADD_DISKS: "disk protect",
    Operation.PAUSE: "pause",
    Operation.RESUME: "resume",
}

PRIMARY = "Primary"
RECOVERY = "Recovery"

TEST_NONE = "None"
TEST_INITIATED = "Initiated"  # passing
TEST_COMPLETING = "Completing"  # passing: the disks are open, the VM is being verified
TEST_COMPLETED = "Completed"  # the test VM is there
TEST_FAILED = "Failed"  # parts of a test VM may be there
TEST_CLEANUP = "CleanupInitiated"  # passing
TEST_CLEANUP_COMPLETING = "CleanupCompleting"  # passing

_O = Operation
_BEFORE_FAILOVER = {_O.TEST, _O.UNPLANNED, _O.PLANNED, _O.RESYNC, _O.CHANGE_POLICY, _O.UPDATE, _O.DISABLE}
_NEED_CYCLES = {_O.CREATE_POINT, _O.REMOVE_DISKS, _O.ADD_DISKS, _O.PAUSE}
_NOT_WHILE_PAUSED = {*_NEED_CYCLES, _O.PLANNED, _O.RESYNC}
_ALLOWED: dict[tuple[ProtectionState, str], set[Operation]] = {
    (ProtectionState.ENABLING_FAILED, PRIMARY): {_O.ENABLE, _O.DISABLE},
    (ProtectionState.INITIAL_FAILED, PRIMARY): {_O.ENABLE, _O.DISABLE},
    (ProtectionState.PROTECTED, PRIMARY): {*_BEFORE_FAILOVER, *_NEED_CYCLES},
    # A failed failover can be repeated; a resync leads back to Protected.
    (ProtectionState.UNPLANNED_FAILED, PRIMARY): {*_BEFORE_FAILOVER, *_NEED_CYCLES},
    (ProtectionState.PLANNED_FAILED, PRIMARY): {*_BEFORE_FAILOVER, *_NEED_CYCLES},
    # Until the commit another unplanned failover can change the recovery point.
    (ProtectionState.UNPLANNED_DONE, PRIMARY): {_O.COMMIT, _O.UNPLANNED},
    (ProtectionState.CHANGE_POINT_DONE, PRIMARY): {_O.COMMIT, _O.UNPLANNED},
    (ProtectionState.PLANNED_DONE, PRIMARY): {_O.COMMIT, _O.UNPLANNED},
    # The former VM can still be complete: the prerequisites check of the commit decides.
    (ProtectionState.CHANGE_POINT_FAILED, PRIMARY): {_O.COMMIT, _O.UNPLANNED},
    (ProtectionState.COMMIT_TO_RECOVERY_FAILED, PRIMARY): {_O.COMMIT, _O.UNPLANNED},
    (ProtectionState.COMMITTED, RECOVERY): {_O.FAILBACK},
    (ProtectionState.PLANNED_FAILED, RECOVERY): {_O.FAILBACK},
    # The Azure VM is complete until the commit deletes it, so a failback can be repeated.
    (ProtectionState.PLANNED_DONE, RECOVERY): {_O.COMMIT, _O.FAILBACK},
    # The commit may have deleted the Azure VM already: the prerequisites check of the failback decides.
    (ProtectionState.COMMIT_TO_PRIMARY_FAILED, RECOVERY): {_O.COMMIT, _O.FAILBACK},
    (ProtectionState.COMMITTED, PRIMARY): {_O.REPROTECT, _O.DISABLE},
    (ProtectionState.REPROTECT_FAILED, PRIMARY): {_O.REPROTECT, _O.DISABLE},
    (ProtectionState.DISABLING_FAILED, PRIMARY): {_O.DISABLE},
}
RESTING = frozenset(_ALLOWED)
"""All pairs (protectionState, activeLocation) between jobs."""


def _from_test_state(state: str) -> set[Operation]:
    return {_O.CLEANUP} if state in (TEST_COMPLETED, TEST_FAILED) else set()


def allowed(item: ItemRow) -> list[Operation]:
    """Return the operations that are allowed now, in the order of :class:`Operation`; none while a job runs."""
    operations = set(_ALLOWED.get((ProtectionState(item.protection_state), item.active_location), set()))
    if item.test_failover_state != TEST_NONE:
        # The test VM depends on the managed disks, so it is removed first.  The next test cleans up a failed one.
        operations -= {_O.DISABLE} if item.test_failover_state == TEST_FAILED else {_O.DISABLE, _O.TEST}
    if item.suspended:
        operations -= _NEED_CYCLES  # a failover that was killed just before its end
    if item.paused_ns is not None and _O.PAUSE in operations:
        operations = operations - _NOT_WHILE_PAUSED | {_O.RESUME}
    operations |= _from_test_state(item.test_failover_state)
    return [operation for operation in Operation if operation in operations]


def require(item: ItemRow, operation: Operation) -> None:
    """Raise ``InvalidState`` unless the operation is allowed; the message names the state and what is allowed."""
    now = allowed(item)
    if operation in now:
        return
    raise RigError(
        Code.InvalidState,
        f"{operation.command} of VM {item.vm!r} is not possible: protectionState is {item.protection_state}, activeLocation "
        f"{item.active_location}, testFailoverState {item.test_failover_state}"
        f"{'' if item.paused_ns is None else ', replication is paused'}; allowed now: "
        f"{', '.join(each.command for each in now) or 'nothing'}",
    )
