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

MEMORY = Path("/dev/shm")  # noqa: S108 (the folder in it is made by mkdtemp)
ROOM_BYTES_MIN = 2 << 30
"""Less free memory than this is left to the processes that the tests start."""
_PREFIX = "siterig-unit-"


@pytest.fixture(scope="session")
def memory() -> Iterator[Path | None]:
    """A folder on a tmpfs; None if there is none with room, or the files are wanted on the disk."""
    if os.environ.get("SITERIG_UNIT_FILES") == "disk" or not _has_room():
        yield None
        return
    for left in MEMORY.glob(f"{_PREFIX}*"):  # of a killed process
        if not Path("/proc", left.name.removeprefix(_PREFIX).partition("-")[0]).exists():
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=MEMORY))
    yield folder
    shutil.rmtree(folder)


def _has_room() -> bool:
    if not any(line.split()[1:3] == [str(MEMORY), "tmpfs"] for line in Path("/proc/mounts").read_text().splitlines()):
        return False
    status = os.statvfs(MEMORY)
    return os.access(MEMORY, os.W_OK) and status.f_bavail * status.f_frsize >= ROOM_BYTES_MIN


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
