"""The supervisor's calls: the state of the roles, and means to kill and start them."""

from __future__ import annotations

from typing import Protocol

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.blockfs.core.deadlines import ANSWER_S, REPORT_S, STARTING_S, deadline
from siterig.blockfs.core.wire_model import WireModel


class RigStatus(WireModel):
    """The supervisor and its roles, in the order of their start."""

    folder: str
    pid: int
    roles: list[RoleStatus]


class SupervisorControl(Protocol):
    """Errors: ``NoSuchRole`` names the roles there are; ``RoleFailed`` carries the last line of the role's log."""

    @deadline(REPORT_S)
    async def status(self) -> RigStatus:
        """How every role is."""
        ...

    async def wait_for_steady_state(self, *, name: str) -> RoleStatus:
        """Wait until the role is neither starting nor about to be started; its state then."""
        ...

    async def stop_all(self) -> list[str]:
        """Release the guests' mounts and loop devices, end all roles, then the supervisor.  Says what was done.

        ``VmBusy`` names who holds a mount: then the rig stays up as it was.
        """
        ...

    @deadline(ANSWER_S)
    async def kill_role(self, *, name: str, hold: bool = False) -> RoleStatus:
        """SIGKILL the role; it is started again unless ``hold`` is set.  Returns once the process is gone."""
        ...

    @deadline(STARTING_S)
    async def start_role(self, *, name: str) -> RoleStatus:
        """Start a role that is held or failed (no-op where it runs); returns once it is ready.

        ``RoleHung`` if it runs and does not answer; ``RoleFailed``, or ``RoleHeld`` if it is held again meanwhile.
        """
        ...
