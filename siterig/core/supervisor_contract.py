"""The contract of the supervisor: it reports the state of the roles, kills them and starts them."""

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
    """The calls that the supervisor answers.

    ``NoSuchRole`` lists the known roles; ``RoleFailed`` has the last line of the log of the role.
    """

    @deadline(REPORT_S)
    async def status(self) -> RigStatus:
        """Return the state of every role."""
        ...

    async def wait_for_steady_state(self, *, name: str) -> RoleStatus:
        """Wait until the role is neither starting nor about to be started, and return its state."""
        ...

    async def stop_all(self) -> list[str]:
        """Release the mounts and loop devices of guests, end all roles, then end the supervisor.

        Returns:
            One line of text for each thing that was done.
        Raises:
            RigError: ``VmBusy`` names the process that holds a mount; the rig then stays up unchanged.
        """
        ...

    @deadline(ANSWER_S)
    async def kill_role(self, *, name: str, hold: bool = False) -> RoleStatus:
        """Kill the role with SIGKILL, and return when its process has ended; without ``hold`` it is restarted."""
        ...

    @deadline(STARTING_S)
    async def start_role(self, *, name: str) -> RoleStatus:
        """Start a role that is held or failed, and return when it is ready; a running role is left alone.

        Raises:
            RigError: ``RoleHung`` if the role runs and does not answer, ``RoleFailed`` if it does not start, ``RoleHeld``
                if another command holds it down meanwhile.
        """
        ...
