"""The contracts of fault injection: of the role that has all rules, and of the injectors in the other roles.

The director has the schedule (:mod:`siterig.scenarios.faults.schedule`).  Where it can, it decides for each operation
itself: blob service, links, processes, clock, machine.  The operations of disks, change logs and managed disks are too many
for a call each: the roles that do them get the rules, decide in the same way, because a decision depends on the seed, the
rule's name and the number of the operation only, and report counts and injections.  The director opens and closes the
windows of their rules.

Fault contract: rules are not durable.  A role that starts while there is a director asks it for its rules
(:class:`RoleRules`), and arms them before it opens a disk, a change log or a managed disk: no operation of the new process
escapes them.  The numbers of operations continue from the last counts that the director got, and faults of former processes
count for ``times``.  A director that is away keeps no role down: after ``RULES_WAIT_S`` the role logs a warning, serves
without rules, and gets them as soon as the director is back.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from pydantic import Field

from siterig.blockfs.core.deadlines import ANSWER_S, REPORT_S, deadline
from siterig.blockfs.core.wire_model import Whole, WireModel
from siterig.scenarios.faults.catalog import LayerName
from siterig.scenarios.faults.records import FaultVerdict, Injection, RuleStatus

INJECTOR_LAYERS: tuple[LayerName, ...] = ("disk", "log", "store")
"""The layers whose operations are decided in other roles."""
LAYERS_OF_ROLE: Mapping[str, tuple[LayerName, ...]] = {
    "site": ("disk", "log"),
    "agent": ("log",),
    "applier": ("store",),
    "azure": ("disk", "log", "store"),
}
"""The roles that serve a ``FaultInjector``, and the layers that it has."""
DIRECTOR = "faults"
"""The role that directs the faults of a rig."""

NO_OPEN_DISK = "no disk that the rule matches is open"
"""The end of the reason of a role that has no disk for a rule with ``file``."""
ASK_FOR_RULES = "--ask-for-rules"
"""The option with which the supervisor starts a role that has to ask the director for its rules."""
RULES_WAIT_S = 5.0
"""The time for which a role that starts waits for its rules."""


class FaultPlan(WireModel):
    """One rule for an injector."""

    name: str
    """The label of the rule; unique in the schedule."""
    rule: dict[str, Any]
    """The document of the rule (:meth:`siterig.scenarios.faults.rules.FaultRule.document`)."""
    seed: Whole
    """The seed of its random choices."""
    is_open: bool
    """False: the rule does nothing and counts nothing until its window opens."""
    matched_before: Whole = 0
    """Operations that matched it in former processes of this role: their numbers continue."""
    fired_before: Whole = 0
    """Faults that it had in other processes, and in former ones of this role: they count for ``times``."""
    atlas_seed: Whole | None = None
    """The seed of the atlas of the rig; None if it needs none, and where there is no recovery side."""
    is_awaited: bool = False
    """Other rules follow its first fault: the operation that meets it is answered when their windows are open, if the
    injector and the director are in one process."""


class ArmedFaults(WireModel):
    """The effect of a change of rules: it is in force."""

    position: Whole | None = None
    """All operations of the matched disks that were done before are at or below this position; None if there are none."""
    targets: dict[str, list[str]]
    """The disks or files that each rule matches now, as text for people, by the name of the rule."""
    without_file: dict[str, str] = Field(default_factory=dict)
    """Rules that are not armed here, with the reason: the file of a guest that they name is on no disk of this process."""


class InjectedFault(WireModel):
    """One injection in a role."""

    name: str
    """The rule."""
    operation: str
    """The operation in words: ``write web01/data, 4096 bytes at 1048576``."""
    n: Whole
    """The number of the operation among those that match the rule, from 1."""
    time_ns: Whole
    """Wall time in nanoseconds since the epoch."""
    position: Whole | None = None
    done: str
    """The action, in words."""
    ranges: tuple[tuple[int, int], ...] = ()
    """Start and length of the bytes that were changed, lost or not delivered."""


class FaultCount(WireModel):
    """The counts of one rule in one role."""

    matched: Whole
    fired: Whole
    last_ns: Whole | None = None
    """Wall time of the last fault, in nanoseconds since the epoch."""
    waiting: Whole = 0
    """Operations that the rule keeps waiting now."""
    spared: Whole = 0
    """Operations that met no fault, because its damage might have been that of the last copy."""


class DiskCopies(WireModel):
    """The disks, as ``VM/NAME``, whose blocks are at hand on the other side; those that are not listed are spared."""

    at_site: list[str] = Field(default_factory=list)
    """The site has the whole disk: copies on the recovery side may be damaged."""
    at_both: list[str] = Field(default_factory=list)
    """The recovery side has the whole disk, too: the disk at the site may be damaged."""


class FaultReport(WireModel):
    """Everything that an injector did after a sequence number."""

    epoch: str
    """Changes when the role was started again: its sequence numbers and counts begin again."""
    sequence: Whole
    """The number of the last injection of this report; the next question has it as ``after``."""
    dropped: Whole = 0
    """Injections that were too many to keep."""
    injections: list[InjectedFault]
    counts: dict[str, FaultCount]


class FaultInjector(Protocol):
    """The injector in a role.  Each call returns when the change is in force."""

    @deadline(ANSWER_S)
    async def arm_faults(self, *, plans: list[FaultPlan]) -> ArmedFaults:
        """Arm rules, all or none; rules for several disks come into force at one position.  Armed ones stay as they are.

        A role leaves out rules whose file it does not have (``without_file``): another role may have it.

        Raises:
            RigError: ``FaultNotPossible``; the message names the rule, the key, its value, and what is allowed.
        """
        ...

    @deadline(ANSWER_S)
    async def disarm_faults(self, *, names: list[str]) -> ArmedFaults:
        """Remove rules, at one position for all disks; waiting operations continue.  Unknown names are ignored."""
        ...

    @deadline(ANSWER_S)
    async def set_fault_window(self, *, name: str, is_open: bool) -> ArmedFaults:
        """Let a rule count and act from now on, or no more."""
        ...

    @deadline(REPORT_S)
    async def fault_report(self, *, after: Whole, epoch: str, patience_s: float) -> FaultReport:
        """Return what happened after a sequence number; waits for it at most ``patience_s`` seconds, below 4.

        ``after`` counts only if ``epoch`` is that of the role; otherwise the report begins with the first injection.
        """
        ...

    @deadline(ANSWER_S)
    async def note_copies(self, *, copies: DiskCopies) -> None:
        """Limit rules with ``recoverable = true`` to these disks from now on; before the first call they spare all disks."""
        ...


class RoleRules(Protocol):
    """The calls of a role that starts to the director of faults."""

    @deadline(REPORT_S)
    async def rules_of_role(self, *, role: str, last: FaultReport | None = None) -> list[FaultPlan]:
        """Return the rules for a process that is about to open its files; changes of rules then wait until it serves.

        Args:
            role: the role.
            last: the last report of a former process, which a rule killed before the director could get it.
        """
        ...


class FaultSummary(WireModel):
    """All rules, as ``siterig fault list`` shows them."""

    seed: Whole
    rules: list[RuleStatus]


class FaultControl(Protocol):
    """The calls of the director of a rig, or of one mount.  Each returns when the change is in force."""

    @deadline(ANSWER_S)
    async def add_faults(self, *, rules: list[dict[str, Any]], seed: Whole | None = None) -> FaultSummary:
        """Arm rules, all or none.  A rule that is armed already, with the same document, stays as it is.

        Args:
            rules: documents of rules.
            seed: the seed of the rules' random choices; None for the seed of the rig.
        Raises:
            RigError: ``InvalidFault`` or ``FaultNotPossible``.
        """
        ...

    @deadline(ANSWER_S)
    async def list_faults(self) -> FaultSummary:
        """Return all rules that are armed."""
        ...

    @deadline(ANSWER_S)
    async def remove_fault(self, *, name: str) -> FaultSummary:
        """Remove a rule, and return the others; operations that it keeps waiting continue.

        Raises:
            RigError: ``InvalidFault`` if there is none of this name.
        """
        ...

    @deadline(ANSWER_S)
    async def clear_faults(self) -> int:
        """Remove all rules, and return their number."""
        ...

    async def wait_fired(self, *, name: str, times: Whole) -> RuleStatus:
        """Wait until a rule has fired so often.

        Raises:
            RigError: ``InvalidFault`` if there is no such rule, or it is removed meanwhile.
        """
        ...

    @deadline(ANSWER_S)
    async def note_mark(self, *, name: str) -> None:
        """Set a mark: rules with ``after = mark:NAME`` follow it."""
        ...

    @deadline(REPORT_S)
    async def injections(self, *, after: Whole) -> list[Injection]:
        """Return the injections with a sequence number above ``after``, oldest first."""
        ...

    @deadline(ANSWER_S)
    async def verdicts(self) -> list[FaultVerdict]:
        """Return for each rule of the run, also a removed one, whether it fired as often as it should."""
        ...
