"""The names of events in rules are those that the vault and the supervisor have."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from siterig.azure_emu.vault import service
from siterig.azure_emu.vault.context.states import ProtectionState
from siterig.azure_emu.vault.db import moments
from siterig.scenarios.faults import moment_names
from siterig.scenarios.faults.moment_names import event_names, require_event

ROOT = Path(__file__).parents[4]
RECORDERS = {"record", "_event", "Standstill", "set", "RoleChange"}
"""The calls that give an event its code, or a wait, whose code becomes that of an event."""
KINDS = {"JobStatus", "ServerHealth", "VmHealth", "VmReplication"}


def test_jobs_tasks_and_states_are_those_of_the_vault() -> None:
    jobs = service.SCENARIOS
    assert sorted({job.name for job in jobs}) == list(moment_names.JOBS)
    assert sorted({task.name for job in jobs for task in job.tasks}) == list(moment_names.TASKS)
    assert sorted({*map(str, ProtectionState), *moments.ALIASES.values()}) == list(moment_names.STATES)


def modules_in(folders: Iterable[str]) -> list[tuple[str, ast.Module]]:
    """Return the name and the text of each module in some folders."""
    return [(path.name, ast.parse(path.read_text())) for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def constants_of(modules: list[tuple[str, ast.Module]]) -> dict[str, set[str]]:
    """Return the texts of the constants at the top of modules, by the names of the constants."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for _, module in modules:
        for node in module.body:
            if isinstance(node, ast.Assign):
                pairs = zip(_elements(node.targets[0]), _elements(node.value), strict=False)
                for name, value in pairs:
                    if isinstance(name, ast.Name) and isinstance(value, ast.Constant) and isinstance(value.value, str):
                        found[name.id].add(value.value)
    return found


def _elements(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _branches(node: ast.expr) -> list[ast.expr]:
    return [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]


def codes_in(modules: list[tuple[str, ast.Module]]) -> Iterator[tuple[str, str]]:
    """Return each code that a module gives to a recorder, as text or by a constant, with the module."""
    constants = constants_of(modules)
    for module, tree in modules:
        for node in ast.walk(tree):
            texts: list[ast.expr] = []
            if isinstance(node, ast.Call):
                function = node.func
                name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                texts = [*node.args, *(word.value for word in node.keywords)] if name in RECORDERS else []
            elif isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["CODE"]:
                texts = [node.value]
            for text in (branch for each in texts for branch in _branches(each)):
                constant = text.id if isinstance(text, ast.Name) else getattr(text, "attr", "")
                codes = {text.value} if isinstance(text, ast.Constant) else constants.get(constant, set())
                for code in codes:
                    if isinstance(code, str) and re.fullmatch(r"([A-Z][a-z]+){2,}", code) and code not in KINDS:
                        yield module, code


def test_every_code_of_an_event_is_known() -> None:
    found = list(codes_in(modules_in(("azure_emu", "replication", "siterig", "blockfs"))))
    assert {code for _, code in found} >= set(moment_names.EVENT_CODES), "the code has none of these events any more"
    assert [each for each in found if each[1] not in event_names()] == [], "add them to EVENT_CODES"


@pytest.mark.parametrize(
    "pattern", ["Protected", "Protected/web01", "*Failed/web01", "Role*/agent", "*", "HostIoError", "*/x"]
)
def test_a_name_with_or_without_a_subject_and_a_pattern_are_allowed(pattern: str) -> None:
    assert require_event(pattern) == pattern
