"""Unit tests keep their files in memory: nearly all of their time went into syncs of a disk, which prove nothing here.

``SITERIG_UNIT_FILES=disk`` keeps them where pytest keeps the files of other tests, also after the test.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.memory import folder_in_memory, has_room


@pytest.fixture(scope="session")
def memory() -> Iterator[Path | None]:
    """A folder on a tmpfs; None if there is none with room, or the files are wanted on the disk."""
    if os.environ.get("SITERIG_UNIT_FILES") == "disk" or not has_room():
        yield None
        return
    with folder_in_memory("siterig-unit") as folder:
        yield folder


@pytest.fixture
def tmp_path(
    request: pytest.FixtureRequest, memory: Path | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """An empty folder, in memory unless the test has the mark ``real_disk``."""
    name = re.sub(r"\W", "_", request.node.name)[:30]
    if memory is None or request.node.get_closest_marker("real_disk") is not None:
        yield tmp_path_factory.mktemp(name)
        return
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
