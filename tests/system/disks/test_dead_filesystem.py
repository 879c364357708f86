"""Workloads on a file system whose disk has died: a step is acknowledged only if it is durable.

XFS reports success for the fsync of a folder after it has shut down, so a rename that it has dropped seems durable.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.scenarios.workloads import durable_file
from siterig.scenarios.workloads.ack_log import AckWriter, read_acks
from siterig.scenarios.workloads.file_tree import FileTree, present
from tests.support.disks.guest import MKFS, loop_device, mounted, run
from tests.support.needs import needs_file_system, needs_program

pytestmark = [pytest.mark.system, needs_program("mkfs.xfs"), needs_file_system("xfs")]

XFS_BYTES = 320 << 20
SHUT_DOWN = 0x8004587D  # XFS_IOC_GOINGDOWN, <xfs/xfs_fs.h>
WITHOUT_LOG = 2  # XFS_FSOP_GOING_FLAGS_NOLOGFLUSH: as if the disk had died


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    image = tmp_path / "disk.img"
    with image.open("xb") as file:
        file.truncate(XFS_BYTES)
    run(*MKFS["xfs"], image)
    with loop_device(image, direct_io=False) as device:
        yield device


def test_a_file_whose_name_is_lost_is_not_acknowledged(
    device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acks, position = tmp_path / "acks", tmp_path / "position"
    position.write_bytes(bytes(8))

    def die_meanwhile(folder: Path) -> None:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.ioctl(fd, SHUT_DOWN, struct.pack("=I", WITHOUT_LOG))
        os.fsync(fd)
        os.close(fd)

    with mounted(device, tmp_path / "mount") as mount:
        tree = FileTree(mount / "tree", AckWriter(acks), position)
        tree.step()
        monkeypatch.setattr(durable_file, "sync_folder", die_meanwhile)
        with pytest.raises(OSError, match="Input/output error"):
            tree.step()
        tree.close()
    with mounted(device, tmp_path / "mount") as mount:
        assert set(present(mount / "tree")) == {1} == {ack.n for ack in read_acks(acks)}
