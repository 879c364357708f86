"""Only the clock module reads the time and sleeps; everything else uses an injected clock."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.support import rooms

CLOCK = "siterig.blockfs.core.clock"
FORBIDDEN = {
    "time": {"time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep", "clock_gettime_ns"},
    "trio": {"sleep", "sleep_until", "current_time"},
    "datetime.datetime": {"now", "utcnow"},
}


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
        if isinstance(node, ast.Attribute):
            of = names.get(ast.unparse(node.value), "")
            if node.attr in FORBIDDEN.get(of, ()):
                found.add(f"{of}.{node.attr}")
    return found


@pytest.mark.slow
def test_only_the_clock_module_reads_the_time_and_sleeps() -> None:
    found = {name: names for name, path in rooms.modules().items() if name != CLOCK and (names := uses(path))}
    assert {name: sorted(names) for name, names in found.items()} == {}


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
