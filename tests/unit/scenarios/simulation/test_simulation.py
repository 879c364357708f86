"""The simulation: seeds pass, a seed replays exactly, planted bugs are found, a failing plan is shrunk."""

from __future__ import annotations

import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import ClassVar

import pytest

from siterig.scenarios.simulation.__main__ import main
from siterig.scenarios.simulation.many_seeds import SeedResults, collect
from siterig.scenarios.simulation.rig import plan as plans
from siterig.scenarios.simulation.rig.plan import OperationKind, PlannedFault, PlannedOperation, RunPlan
from siterig.scenarios.simulation.rig.world import World, WorldParts
from siterig.scenarios.simulation.shrink import shrink
from siterig.scenarios.simulation.simulation import Simulator
from tests.support.memory import folder_in_memory
from tests.support.rigs.checked_answers import check_answers
from tests.support.rigs.planted_bugs import BUGS, LostNews, PlantedBug
from tests.support.rigs.simulated_seeds import FIRST


@pytest.fixture(scope="module")
def simulator() -> Iterator[Simulator]:
    with folder_in_memory("siterig-simulation") as folder:
        yield Simulator(folder)


@pytest.mark.slow
def test_a_seed_replays_exactly_in_another_process(simulator: Simulator) -> None:
    seed = FIRST + 4
    here = simulator.run(plans.draw(seed))
    code = (
        "import sys, pathlib; from siterig.scenarios.simulation.rig import plan; "
        "from siterig.scenarios.simulation.simulation import Simulator; "
        f"print(Simulator(pathlib.Path(sys.argv[1])).run(plan.draw({seed})).digest)"
    )
    with folder_in_memory("siterig-simulation") as folder:
        there = subprocess.run(
            [sys.executable, "-c", code, folder],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": "77"},
        )
    assert there.stdout.strip() == here.digest


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.parts.__name__)
def test_a_planted_bug_is_found(simulator: Simulator, bug: PlantedBug) -> None:
    found = simulator.run(bug.plan(), bug.parts())
    assert bug.invariant in {finding.invariant for finding in found.findings}, [str(each) for each in found.findings]


def test_the_plans_of_planted_bugs_pass_without_them(simulator: Simulator) -> None:
    for plan in {bug.plan() for bug in BUGS}:
        assert simulator.run(plan).findings == []


def test_the_kept_answers_of_the_vault_are_those_of_its_rows(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = check_answers(monkeypatch)
    kinds: tuple[OperationKind, ...] = ("pin-point", "change-policy", "planned-failover", "next-step", "next-step")
    operations = tuple(PlannedOperation(5.0 + 10 * number, kind) for number, kind in enumerate(kinds))
    faults = (PlannedFault(12.0, "swallow", 20.0, "agent-azurite"), PlannedFault(40.0, "kill", target="vault"))
    plan = RunPlan(5, faults, 60.0, 30.0, 60.0, 1.0, begins_protected=True, operations=operations)
    assert simulator.run(plan).findings == []
    assert len(compared) > 20
    assert len({key if isinstance(key, str) else key[0] for key in compared}) >= 5  # type: ignore[index]


def test_the_world_of_a_run_does_not_outlive_it(simulator: Simulator) -> None:
    """Worlds that stayed made a process larger and slower with each seed."""

    class Watched(WorldParts):
        worlds: ClassVar[list[weakref.ref[World]]] = []

        def killed(self, world: World, role: str) -> None:
            self.worlds.append(weakref.ref(world))

    simulator.run(RunPlan(7, (PlannedFault(1.0, "kill", target="agent"),), 5.0, 30.0, None, 1.0, True), Watched())
    assert Watched.worlds
    assert [each() for each in Watched.worlds if each() is not None] == []


def test_lost_news_of_parts_cost_time_only(simulator: Simulator) -> None:
    result = simulator.run(plans.draw(FIRST), LostNews())
    assert not result.findings, f"seed {FIRST}: {result.findings[0]}"
    assert result.points


def test_a_failing_plan_is_shrunk_to_the_fault_that_matters() -> None:
    faults = tuple(PlannedFault(float(at), "kill", target="agent") for at in range(5))
    guilty = PlannedFault(7.0, "cut", 20.0, "agent-vault")
    plan = RunPlan(1, (*faults, guilty), 120.0, 30.0, 60.0, 1.0)
    smallest = shrink(plan, lambda each: any(fault.kind == "cut" and fault.lasts_s >= 5 for fault in each.faults))
    assert smallest.faults == (PlannedFault(7.0, "cut", 5.0, "agent-vault"),)
    assert (smallest.active_s, smallest.app_consistent_every_s, smallest.begins_protected) == (42.0, None, True)


def test_a_failing_plan_is_shrunk_to_the_operation_that_matters() -> None:
    kinds: tuple[OperationKind, ...] = ("resync", "pause", "planned-failover", "next-step", "verify")
    operations = tuple(PlannedOperation(10.0 * number, kind) for number, kind in enumerate(kinds))
    plan = RunPlan(1, (PlannedFault(3.0, "kill", target="vault"),), 90.0, 30.0, None, 1.0, operations=operations)
    smallest = shrink(plan, lambda each: any(operation.kind == "planned-failover" for operation in each.operations))
    assert (smallest.faults, smallest.operations) == ((), (operations[2],))
    assert smallest.active_s == 50.0


def test_a_plan_is_read_back_from_json() -> None:
    plan = plans.draw(3)
    assert RunPlan.from_json(plan.to_json()) == plan


def test_the_command_counts_its_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--from", "2", "--seeds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "2 seeds, 0 failed" in printed
    assert "faults: " in printed


def test_all_seeds_before_the_next_one_are_done_after_an_interrupt() -> None:
    begun: list[int] = []
    shown: list[int] = []

    def submit(group: range) -> Future[SeedResults]:
        begun.extend(group)
        future: Future[SeedResults] = Future()
        future.set_running_or_notify_cancel()
        future.set_result(SeedResults(len(group), group.stop))
        return future

    def progress(results: SeedResults, _newest: SeedResults) -> None:
        shown.append(results.following)

    results = collect(submit, range(5, 1000), 3, progress, lambda: len(shown) >= 7)
    assert begun == list(range(5, results.following))
    assert results.seeds == len(begun) < 60
    assert shown == sorted(shown)
    assert shown[-1] == results.following
    assert collect(submit, range(7, 20), 3, progress, lambda: False).following == 20
