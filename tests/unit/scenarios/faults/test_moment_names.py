"""The names of events in rules are those that the vault and the supervisor have."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
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


def codes_in(folder: str) -> Iterator[tuple[str, str]]:
    """Return each code that a module writes as text, with the module."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            texts: list[ast.expr] = []
            if isinstance(node, ast.Call):
                function = node.func
                name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
                texts = [*node.args, *(word.value for word in node.keywords)] if name in RECORDERS else []
            elif isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["CODE"]:
                texts = [node.value]
            for text in texts:
                code = text.value if isinstance(text, ast.Constant) else None
                if isinstance(code, str) and re.fullmatch(r"([A-Z][a-z]+){2,}", code) and code not in KINDS:
                    yield path.name, code


def test_every_code_of_an_event_is_known() -> None:
    found = [each for folder in ("azure_emu", "replication", "siterig", "blockfs") for each in codes_in(folder)]
    assert {code for _, code in found} >= set(moment_names.EVENT_CODES), "the code has none of these events any more"
    assert [each for each in found if each[1] not in event_names()] == [], "add them to EVENT_CODES"


@pytest.mark.parametrize(
    "pattern", ["Protected", "Protected/web01", "*Failed/web01", "Role*/agent", "*", "HostIoError", "*/x"]
)
def test_a_name_with_or_without_a_subject_and_a_pattern_are_allowed(pattern: str) -> None:
    assert require_event(pattern) == pattern
