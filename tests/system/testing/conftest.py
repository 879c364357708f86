"""Runs of pytest with the plugin, each in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.leftovers import leftovers

INI = """
[pytest]
filterwarnings = error
addopts = --strict-markers --strict-config -p no:cacheprovider
"""


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check after each test of a run of pytest that nothing of the run is left on this machine."""
    if "pytester" not in request.fixturenames:
        yield
        return
    run: pytest.Pytester = request.getfixturevalue("pytester")
    run.makeini(INI)
    yield
    assert leftovers(Path(run.path)) == []
