"""The seeds of the simulation that every run of the tests has, in shares for several test files.

``--dist=loadfile`` keeps a file in one process, so each share is a file.
"""

from __future__ import annotations

import os

from siterig.scenarios.simulation.coverage import Coverage
from siterig.scenarios.simulation.many_seeds import run_seeds
from siterig.scenarios.simulation.rig import plan as plans
from siterig.scenarios.simulation.simulation import Simulator
from tests.support.memory import folder_in_memory

FIRST = int(os.environ.get("SITERIG_SEED", "1"))
SEEDS = int(os.environ.get("SITERIG_SIMULATIONS", "1000"))
SHARES = 4
ENOUGH_SEEDS = 250
"""So many seeds meet everything that a plan can have."""
JOBS = {
    "AddDisks",
    "CommitFailover",
    "ModifyProtectionProfile",
    "PauseReplication",
    "PlannedFailover",
    "RemoveDisks",
    "RepairVMReplication",
    "ReprotectReplicationGroup",
    "ResumeReplication",
    "TestFailover",
    "TestFailoverCleanup",
    "UnplannedFailover",
}
"""The scenarios of jobs of which one at least succeeds in each share."""


def check_share(number: int) -> None:
    """Run a share of the seeds, of which none may break an invariant, and which must meet every fault and operation."""
    size = SEEDS // SHARES
    seeds = range(FIRST + number * size, FIRST + (number + 1) * size)
    with folder_in_memory("siterig-simulation") as folder:
        results = run_seeds(Simulator(folder), seeds)
    lines = [f"{results.seeds} seeds from {seeds.start}, {results.points} recovery points compared"]
    print("\n".join([*lines, *results.coverage.lines()]))
    assert [f"seed {each.plan.seed}: {finding}" for each in results.failed for finding in each.findings] == []
    assert results.points > results.seeds
    if size >= ENOUGH_SEEDS:
        assert missing(results.coverage) == set()


def missing(coverage: Coverage) -> set[str]:
    """Return the faults, operations and jobs that did not occur."""
    faults, operations = set(plans.KINDS) - set(coverage.faults), set(plans.OPERATIONS) - set(coverage.operations)
    return faults | operations | (JOBS - set(coverage.jobs))
