"""Only the clock module reads the time and sleeps; everything else uses an injected clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support.repo import rooms

CLOCK = "siterig.blockfs.core.clock"
FORBIDDEN = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep", "clock_gettime_ns"},
    "trio": {"sleep", "sleep_until", "current_time"},
    "datetime.datetime": {"now", "utcnow"},
}
ATTRIBUTES = set().union(*FORBIDDEN.values())


def uses(path: Path) -> set[str]:
    """Forbidden functions that a module names, imported directly or by way of their module."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
                if alias.name in FORBIDDEN.get(node.module, ()):
                    found.add(f"{node.module}.{alias.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            of = names.get(ast.unparse(node.value), "")
            if node.attr in FORBIDDEN.get(of, ()):
                found.add(f"{of}.{node.attr}")
    return found


@pytest.mark.slow
def test_only_the_clock_module_reads_the_time_and_sleeps() -> None:
    found = {name: names for name, path in rooms.modules().items() if name != CLOCK and (names := uses(path))}
    assert {name: sorted(names) for name, names in found.items()} == {}


REAL_TIME = {
    "siterig.cli": "a command waits and measures for its user",
    "siterig.bisect": "a command of the user runs for so long",
    "siterig.supervisor": "processes start and end in real time",
    "siterig.scenario_runs": "a scenario uses a rig from outside, as a user does",
    "blockfs.clocks": "a controlled clock begins at real time",
    "siterig.thrash": "a thrash uses a rig from outside, as a user does",
    "siterig.testing": "a test waits for programs of its user",
    "siterig.core": "a command waits for the lock of a rig",
    "scenarios": "a drill uses a rig from outside, as a user does",
    "blockfs.guests": "file systems of the host are frozen for so long",
}
"""Rooms, with those below them, that may use the system's clock itself, and why."""


def own_reads(path: Path) -> list[int]:
    """Lines in which a module uses the system's clock itself, and not as a default."""
    text = path.read_text()
    if "SYSTEM_CLOCK" not in text:
        return []
    return [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "SYSTEM_CLOCK"
    ]


@pytest.mark.slow
def test_data_plane_replication_and_vault_use_only_a_clock_that_they_get() -> None:
    rooms_of_code = set(rooms.allowed())
    found = {name: lines for name, path in rooms.modules().items() if name != CLOCK and (lines := own_reads(path))}
    wrong = {
        name: lines
        for name, lines in found.items()
        if not any(f"{rooms.room_of(name, rooms_of_code)}.".startswith(f"{room}.") for room in REAL_TIME)
    }
    assert wrong == {}
    assert len(found) > 5


def test_the_rule_sees_each_way_to_name_a_function(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    for text, names in (
        ("import time\ntime.time()", {"time.time"}),
        ("import time as t\nf = t.monotonic_ns", {"time.monotonic_ns"}),
        ("from time import sleep as s\n", {"time.sleep"}),
        ("import trio\nasync def f(): await trio.sleep(1)", {"trio.sleep"}),
        ("import datetime\ndatetime.datetime.now()", set()),
        ("from datetime import datetime\ndatetime.now()", {"datetime.datetime.now"}),
        ("import trio\nasync def f(): await trio.sleep_forever()", set()),
    ):
        module.write_text(text)
        assert uses(module) == names, text
