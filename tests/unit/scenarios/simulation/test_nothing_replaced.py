"""A simulation runs the production code: no function, class or method of siterig is another one while it runs."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.scenarios.simulation.rig import plan as plans
from siterig.scenarios.simulation.rig import runtime
from siterig.scenarios.simulation.rig.plan import PlannedFault, RunPlan
from siterig.scenarios.simulation.rig.world import World, WorldParts
from siterig.scenarios.simulation.simulation import Simulator

ROOM = "siterig.scenarios.simulation"


def names() -> dict[str, int]:
    """Return the identity of every function and class of the loaded production modules, and of the members of classes."""
    found: dict[str, int] = {}
    for module_name, module in list(sys.modules.items()):
        if not module_name.startswith("siterig.") or module_name.startswith(ROOM):
            continue
        for name, value in list(vars(module).items()):
            if callable(value):
                found[f"{module_name}.{name}"] = id(value)
            if inspect.isclass(value) and value.__module__ == module_name:
                members = [
                    (member, each) for member, each in vars(value).items() if callable(each) or isinstance(each, property)
                ]
                found |= {f"{module_name}.{name}.{member}": id(each) for member, each in members}
    return found


class Looking(WorldParts):
    """Looks at all names whenever a role ends."""

    def __init__(self) -> None:
        self.seen: list[dict[str, int]] = []

    def killed(self, world: World, role: str) -> None:
        self.seen.append(names())


@pytest.fixture
def plan() -> RunPlan:
    kills = tuple(PlannedFault(float(10 * at), "kill", target=role) for at, role in enumerate(plans.ROLES, 1))
    full = PlannedFault(30.0, "disk-full", 10.0)
    faults = sorted((*kills, full, PlannedFault(50.0, "power-loss")), key=lambda fault: fault.at_s)
    return RunPlan(1, tuple(faults), 70.0, 30.0, 60.0, 1.0)


def changed(before: dict[str, int], after: dict[str, int]) -> list[str]:
    """Return the names that are other objects; new names are those of modules that were loaded meanwhile."""
    return sorted(name for name, identity in before.items() if after.get(name) != identity)


def test_no_production_name_is_replaced_while_a_simulation_runs(tmp_path: Path, plan: RunPlan) -> None:
    Simulator(tmp_path).run(plan)  # everything is loaded
    before, looking = names(), Looking()
    result = Simulator(tmp_path).run(plan, looking)
    assert result.findings == []
    assert len(looking.seen) > len(plans.ROLES)
    assert len(before) > 3000
    for seen in looking.seen:
        assert changed(before, seen) == []


def test_a_replaced_name_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from siterig.replication.engine.outbox import Outbox

    before = names()
    monkeypatch.setattr(Outbox, "send", lambda _self, _disks: None)
    assert changed(before, names()) == ["siterig.replication.engine.outbox.Outbox.send"]


def assignments(tree: ast.AST) -> Iterator[str]:
    """Yield the calls of ``setattr``, and the assignments to attributes of imported modules."""
    modules = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in modules:
                    yield ast.unparse(target)


def test_no_module_of_the_room_assigns_to_an_imported_name() -> None:
    folder = Path(inspect.getfile(runtime)).parent
    assert {path.name: list(assignments(ast.parse(path.read_text()))) for path in folder.glob("*.py")} == {
        path.name: [] for path in folder.glob("*.py")
    }


def test_the_runtime_replaces_four_names_of_python_and_trio() -> None:
    assert runtime.REPLACED == ("os.urandom", "random._urandom", "os.cpu_count", "trio.to_thread.run_sync")
