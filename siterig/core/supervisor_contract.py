"""The contract of the supervisor: it reports the state of the roles, kills them and starts them."""

from __future__ import annotations

from typing import Literal, Protocol

from pydantic import Field

from siterig.azure_emu.contracts.reports import RoleStatus
from siterig.blockfs.core.deadlines import ANSWER_S, REPORT_S, STARTING_S, deadline
from siterig.blockfs.core.wire_model import Whole, WireModel


class RigStatus(WireModel):
    """The supervisor and its roles, in the order of their start."""

    folder: str
    pid: int
    roles: list[RoleStatus]
    faults: Whole = 0
    """Number of fault rules that are armed."""


class RoleFault(WireModel):
    """A fault of a role's process that lasts: it is in force until it is lifted, and a status of the role names it."""

    fault: str
    """The name of the rule."""
    role: str
    pause: bool = False
    """The process is stopped (SIGSTOP); ends with the process."""
    hold: bool = False
    """The role is killed, and is down until the fault is lifted: ``start_role`` does not start it."""
    files_max: Whole | None = None
    """The most files that the process may have open (RLIMIT_NOFILE); counts for later processes of the role, too."""
    memory_max: Whole | None = None
    """The most bytes of its address space (RLIMIT_AS); counts for later processes of the role, too."""
    ends_with_process: bool = False
    """True: the fault is over when the process that has it ends."""


class StartFaults(WireModel):
    """The faults that one start of a role meets."""

    delay_ns: Whole = 0
    """The time by which the start is delayed."""
    fault: str = ""
    """The names of the rules."""
    lasting: list[RoleFault] = Field(default_factory=list)
    """Faults that are put in force when the process exists."""
    kill: str | None = None
    """The name of a signal that the process gets as soon as it exists."""
    when_ready: bool = False
    """True: the signal and the pause come when the role is ready."""


class RoleChange(WireModel):
    """A role became ready, or its process ended."""

    role: str
    change: Literal["RoleReady", "RoleEnded"]
    pid: int


class RoleChanges(WireModel):
    """The changes after a number; ``last`` is the number of the newest one."""

    last: Whole
    changes: list[RoleChange]


class RoleStarts(Protocol):
    """The calls of the supervisor to the director of faults."""

    @deadline(REPORT_S)
    async def role_starts(self, *, role: str) -> StartFaults:
        """Count a start of a role, which is about to happen, and return the faults that it meets."""
        ...


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

    @deadline(ANSWER_S)
    async def signal_role(self, *, name: str, signal: str, fault: str) -> RoleStatus | None:
        """Send a signal to the process of a role for a fault rule; the end of the process then counts as no failure.

        Returns:
            The state of the role, after the end of its process if the signal is SIGKILL; None if it had no process.
        """
        ...

    @deadline(ANSWER_S)
    async def impose_role_fault(self, *, fault: RoleFault) -> None:
        """Put a lasting fault in force; returns when it is.  One of the same rule and role is replaced."""
        ...

    @deadline(ANSWER_S)
    async def lift_role_faults(self, *, fault: str) -> None:
        """Lift all lasting faults of a rule; a role that one of them held down is started, without a wait for it."""
        ...

    @deadline(REPORT_S)
    async def role_faults(self) -> list[RoleFault]:
        """Return the lasting faults that are in force."""
        ...

    @deadline(REPORT_S)
    async def ask_before_starts(self, *, ask: bool) -> None:
        """Ask the director of faults, the contract ``RoleStarts``, before each start of a role, or no more."""
        ...

    @deadline(REPORT_S)
    async def note_armed_faults(self, *, count: Whole) -> None:
        """Note the number of fault rules that are armed, for the status."""
        ...

    @deadline(REPORT_S)
    async def role_changes(self, *, after: Whole, patience_s: float) -> RoleChanges:
        """Return the changes of roles after a number; waits for one at most ``patience_s`` seconds, below 4.

        With a number that lies ahead of the newest one, or behind those that are kept, the answer has no changes.
        """
        ...
