"""Tests of ``siterig mount --log`` when another program truncates a file that the mount has mapped."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.blockfs.changelog.position_counter import read_position
from tests.support.disks.guest import write_durably
from tests.support.disks.mount_process import Start, mounts

pytestmark = pytest.mark.system

SIZE = 8 << 20


@pytest.fixture(params=["server", "pyfuse3"])
def start(request: pytest.FixtureRequest) -> Iterator[Start]:
    with mounts(*(["--portable-fuse"] if request.param == "pyfuse3" else [])) as start:
        yield start


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "images" / "disk.img"
    path.parent.mkdir()
    path.write_bytes(bytes(SIZE))
    return path


def test_after_truncation_of_its_dirty_file_a_disk_refuses_writes(image: Path, tmp_path: Path, start: Start) -> None:
    mount = start(image, tmp_path / "mnt", "--log")
    write_durably(mount.disk, 4096, b"before")
    os.truncate(image.with_suffix(".dirty"), 0)
    with pytest.raises(OSError, match="Input/output error") as refused:
        write_durably(mount.disk, 8192, b"after")
    assert refused.value.errno == errno.EIO
    with pytest.raises(OSError, match="Input/output error"):
        write_durably(mount.disk, 8192, b"and again")
    assert mount.disk.read_bytes()[4096:4102] == b"before"
    mount.signal(signal.SIGINT)
    status, _, stderr = mount.ended()
    assert status == 1, stderr
    assert f"{image.with_suffix('.dirty')} was truncated by another program" in stderr
    again = start(image, tmp_path / "mnt", "--log")
    assert again.mounted["log"]["generation"] == 2, "the previous log continues"
    again.end()


def test_no_position_is_repeated_after_truncation_of_its_file(image: Path, tmp_path: Path, start: Start) -> None:
    mount = start(image, tmp_path / "mnt", "--log")
    write_durably(mount.disk, 4096, b"before")
    newest = read_position(image.with_suffix(".position"))
    os.truncate(image.with_suffix(".position"), 0)
    write_durably(mount.disk, 8192, b"after")
    mount.signal(signal.SIGINT)
    status, _, stderr = mount.ended()
    assert status == 1, stderr
    assert f"{image.with_suffix('.position')} was truncated by another program" in stderr
    assert read_position(image.with_suffix(".position")) > newest, "the file was not rebuilt"
    assert image.read_bytes()[8192:8197] == b"after"
