"""Settings of the tests of the repository."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module", autouse=True)
def no_garbage_collector() -> Iterator[None]:
    """Switch the garbage collector off: to examine the nodes of syntax trees was a third of the time of these tests."""
    gc.disable()
    yield
    gc.freeze()  # trees that a module keeps are not examined in later tests either
    gc.enable()
