"""The plan of a simulation: its faults and their times, drawn from the seed before anything runs.

A plan is data, so it can be printed, replayed and shrunk.  Everything else that is random (delays, writes, the order of
tasks) comes from streams of its own, so that leaving out a fault does not change the others.
"""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass
from typing import Literal

ROLES = ("agent", "applier", "vault", "site", "azure", "azurite")
HOSTS = ("site", "recovery")
LINKS = (
    "agent-site",
    "agent-vault",
    "agent-azurite",
    "applier-vault",
    "applier-azurite",
    "vault-agent",
    "vault-applier",
    "vault-azure",
)
PlannedKind = Literal[
    "cut",
    "swallow",
    "lossy",
    "slow-link",
    "failing-account",
    "lost-blobs",
    "damaged-blobs",
    "kill",
    "kill-at-point",
    "hold",
    "slow-role",
    "clock-step",
    "freeze-refuses",
    "freeze-hangs",
    "disk-full",
    "power-loss",
]
OperationKind = Literal[
    "test-failover",
    "unplanned-failover",
    "planned-failover",
    "next-step",
    "resync",
    "verify",
    "pause",
    "rotate-key",
    "revoke-key",
    "change-policy",
    "pin-point",
    "create-point",
    "attach-disk",
    "protect-disk",
    "unprotect-disk",
]
OPERATIONS: tuple[OperationKind, ...] = OperationKind.__args__  # type: ignore[attr-defined]
FAILOVERS = ("unplanned-failover", "planned-failover")
OF_DISKS = ("attach-disk", "protect-disk", "unprotect-disk")
KINDS: tuple[PlannedKind, ...] = PlannedKind.__args__  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One fault.

    Attributes:
        at_s: its time, from the beginning of the simulation.
        lasts_s: how long it lasts; 0 for one that is over at once.
        target: the link, role or host that it is about; empty if there is only one.
        amount: a share, a delay in seconds, a number of points or a step in seconds, by its kind.
    """

    at_s: float
    kind: PlannedKind
    lasts_s: float = 0.0
    target: str = ""
    amount: float = 0.0

    def __str__(self) -> str:
        lasts = f" for {self.lasts_s:g} s" if self.lasts_s else ""
        amount = f" {self.amount:g}" if self.amount else ""
        return f"at {self.at_s:g} s: {self.kind} {self.target}{amount}".rstrip() + lasts


@dataclass(frozen=True, slots=True)
class PlannedOperation:
    """An operation of the administrator.

    Attributes:
        at_s: its time, from the beginning of the simulation; it begins when the one before has ended.
        kind: the operation; ``next-step`` is the commit, failback or cleanup that is due.
        amount: a number from 0 to 1 that chooses between variants.
    """

    at_s: float
    kind: OperationKind
    amount: float = 0.0

    def __str__(self) -> str:
        return f"at {self.at_s:g} s: {self.kind} {self.amount:g}"


@dataclass(frozen=True, slots=True)
class RunPlan:
    """The plan of one run.

    Attributes:
        seed: the seed of all streams.
        faults: the faults, by time.
        active_s: the time during which guests write and faults occur; then everything heals.
        interval_s: the replication interval of the policy.
        app_consistent_every_s: the schedule of application-consistent points; None for none.
        writes_per_s: the mean rate of the guest's writes.
        begins_protected: True to begin with a VM that was protected before, and whose roles were all killed; False to begin
            with nothing, so that faults meet the enabling and the initial replication.
        operations: the operations of the administrator, by time.
        heals_within_s: a healed rig is healthy again after this time at the latest.
    """

    seed: int
    faults: tuple[PlannedFault, ...]
    active_s: float
    interval_s: float
    app_consistent_every_s: float | None
    writes_per_s: float
    begins_protected: bool = False
    operations: tuple[PlannedOperation, ...] = ()
    heals_within_s: float = 900.0

    def to_json(self) -> str:
        """Return the plan as JSON, for :meth:`from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> RunPlan:
        """Return the plan that :meth:`to_json` returned."""
        fields = json.loads(text)
        lists = {
            "faults": tuple(PlannedFault(**fault) for fault in fields["faults"]),
            "operations": tuple(PlannedOperation(**each) for each in fields.get("operations", ())),
        }
        return cls(**fields | lists)

    @property
    def loses_power(self) -> bool:
        """True if the site loses power: then, and only then, unsynced writes may be gone."""
        return any(fault.kind == "power-loss" for fault in self.faults)


def draw(seed: int) -> RunPlan:
    """Draw the plan of a seed."""
    draws = random.Random(f"{seed} plan")  # noqa: S311 (a simulation has no secrets)
    active_s = draws.choice((20.0, 35.0, 50.0))
    count = draws.choice((0, 1, 2, 3, 3, 4, 5, 6))
    faults = sorted((_fault(draws, active_s) for _ in range(count)), key=lambda fault: fault.at_s)
    return RunPlan(
        seed,
        tuple(faults),
        active_s,
        interval_s=30.0,
        app_consistent_every_s=draws.choice((None, 60.0)),
        writes_per_s=draws.choice((0.2, 0.5, 1.0)),
        begins_protected=draws.random() < 0.92,
        operations=_operations(draws, active_s, faults),
    )


def _operations(draws: random.Random, active_s: float, faults: list[PlannedFault]) -> tuple[PlannedOperation, ...]:
    """Draw the operations; a failover is followed by the steps of the way back."""
    kinds: list[OperationKind] = draws.choices(OPERATIONS, k=draws.choice((0, 0, 1, 1, 2, 3)))
    if any(fault.kind == "power-loss" for fault in faults):  # the new disks of a failback are not prepared for one
        kinds = [kind for kind in kinds if kind not in FAILOVERS]
    if any(kind in FAILOVERS for kind in kinds):
        kinds = [kind for kind in kinds if kind not in OF_DISKS]  # the model of a failback has the same disks on both sides
        kinds += ["next-step"] * draws.choice((0, 1, 2, 4))
    times = sorted(round(draws.uniform(0, active_s), 3) for _ in kinds)
    return tuple(PlannedOperation(at_s, kind, round(draws.random(), 3)) for at_s, kind in zip(times, kinds, strict=True))


_AMOUNTS: dict[PlannedKind, tuple[float, ...]] = {
    "lossy": (0.05, 0.3),
    "slow-link": (0.5, 4.0),
    "failing-account": (0.2, 0.5, 1.0),
    "lost-blobs": (0.3, 1.0),
    "damaged-blobs": (0.3, 1.0),
    "kill-at-point": tuple(float(points) for points in range(1, 60)),
    "slow-role": (0.1, 1.0),
    "clock-step": (-7200.0, -30.0, 30.0, 86400.0),
}
_TARGETS: dict[PlannedKind, tuple[str, ...]] = {
    "cut": LINKS,
    "swallow": LINKS,
    "lossy": LINKS,
    "slow-link": LINKS,
    "kill": ROLES,
    "kill-at-point": ROLES,
    "hold": ROLES,
    "slow-role": ROLES,
    "clock-step": HOSTS,
    "disk-full": HOSTS,
}
_AT_ONCE = {"lost-blobs", "damaged-blobs", "kill", "kill-at-point", "clock-step", "power-loss"}


def _fault(draws: random.Random, active_s: float) -> PlannedFault:
    # A loss of power ends in a resync, which hides other faults: it is rarer than the others.
    kind = draws.choices(KINDS, weights=[1 if kind == "power-loss" else 3 for kind in KINDS])[0]
    return PlannedFault(
        at_s=round(draws.uniform(0, active_s), 3),
        kind=kind,
        lasts_s=0.0 if kind in _AT_ONCE else draws.choice((1.0, 5.0, 20.0, 45.0)),
        target=draws.choice(_TARGETS.get(kind, ("",))),
        amount=draws.choice(_AMOUNTS.get(kind, (0.0,))),
    )
