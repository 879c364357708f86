"""Fixtures of the tests that mount one image by ``siterig mount``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.disks.mount_process import IMAGE_BYTES, Start, mounts


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts mounts with default options."""
    with mounts() as start:
        yield start


@pytest.fixture(params=["server", "one-thread", "pyfuse3"])
def start_each(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Return a function that starts mounts, for each front end."""
    options = {"server": (), "one-thread": ("--fuse-threads=1", "--fuse-queue=1"), "pyfuse3": ("--portable-fuse",)}
    with mounts(*options[request.param]) as start:
        yield start


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """Make an empty raw image in a folder of its own."""
    path = tmp_path / "images" / "disk.img"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    return path


@pytest.fixture
def where(tmp_path: Path) -> Path:
    """Return a mount point that does not exist."""
    return tmp_path / "mnt"
