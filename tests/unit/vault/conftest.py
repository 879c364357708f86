"""Unit tests of the vault run its transactions in place, because to hand each one to a thread took most of their time.

Their databases share the compiled statements: SQLAlchemy compiles each statement once for each engine, and a vault that
lives for one test uses most of them once.

Tests with the mark ``threads`` are of the threads themselves.  The system tests run the vault with its threads.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Engine, create_engine

from siterig.azure_emu.vault.db import database
from tests.support.threads import without_threads


@pytest.fixture(autouse=True)
def in_place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run functions for threads in place."""
    if request.node.get_closest_marker("threads") is None:
        without_threads(monkeypatch)


_first = create_engine("sqlite://")
with _first.connect():
    pass  # the dialect is complete from the first connection on
_first.dispose()
_compiled: dict[object, object] = {}


def _engine(url: str) -> Engine:
    own = create_engine(url)
    return Engine(own.pool, _first.dialect, own.url, execution_options={"compiled_cache": _compiled})


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share compiled statements between the databases of all tests."""
    monkeypatch.setattr(database, "create_engine", _engine)
