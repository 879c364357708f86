"""Unit tests of the vault run its transactions in place: to hand each one to a thread took most of their time.

Tests with the mark ``threads`` are of the threads themselves.  The system tests run the vault with its threads.
"""

from __future__ import annotations

import pytest

from tests.support.threads import without_threads


@pytest.fixture(autouse=True)
def in_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run functions for threads in place."""
    if request.node.get_closest_marker("threads") is None:
        without_threads(monkeypatch)
