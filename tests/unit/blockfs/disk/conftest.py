"""Fixtures of the tests of disks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.changelog.position_counter import PositionCounter


@pytest.fixture
def positions(tmp_path: Path) -> Iterator[PositionCounter]:
    """The positions that the disks of a test share."""
    counter = PositionCounter(tmp_path / "position")
    yield counter
    counter.close()
