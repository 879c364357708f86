"""Tests of file systems on a disk: created, filled, half emptied, trimmed and checked; the log replays to the disk.

``SITERIG_FILES`` files (default 150) are copied; ``SITERIG_SEED`` repeats a run.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.guests.file_ranges import ranges_of
from tests.support.disks.disk_server_process import CAN_MAKE_HOLES, StartServer
from tests.support.disks.guest import FSCK, MKFS, loop_device, make_tree, mounted, run, tree
from tests.support.disks.shadowed_disk import ShadowedDisk
from tests.support.needs import needs_file_system, needs_program

pytestmark = pytest.mark.system

FILES = int(os.environ.get("SITERIG_FILES", "150"))
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
DISK_BYTES = 1 << 30


@pytest.mark.parametrize("direct_io", [False, True], ids=["buffered", "direct"])
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("ext4", marks=needs_file_system("ext4")),
        pytest.param("xfs", marks=needs_file_system("xfs")),
        pytest.param("btrfs", marks=[needs_file_system("btrfs"), needs_program("mkfs.btrfs")]),
    ],
)
def test_a_file_system_is_sound_after_use_and_the_log_replays(
    start_server: StartServer, tmp_path: Path, kind: str, direct_io: bool
) -> None:
    print(f"SITERIG_FILES={FILES} SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    source, guest = tmp_path / "source", tmp_path / "guest"
    make_tree(source, rng, files=FILES)
    server = start_server(DISK_BYTES)
    disk = ShadowedDisk(server, "os")
    with loop_device(server.os_disk, direct_io=direct_io) as device:
        run(*MKFS[kind], device)
        with mounted(device, guest):
            shutil.copytree(source, guest / "copy")
            run("sync", "--file-system", guest)
            full_bytes = disk.file.stat().st_blocks * 512
            for path in sorted((guest / "copy").rglob("file*")):
                if rng.random() < 0.5:
                    path.unlink()
                    (source / path.relative_to(guest / "copy")).unlink()
            run("sync", "--file-system", guest)
            check_ranges(server.os_disk, guest, kind)
            trimmed = trim(guest)
        with mounted(device, guest):
            assert tree(guest / "copy") == tree(source)
        run(*FSCK[kind], device)
    disk.check()
    assert trimmed == (server.front_end in CAN_MAKE_HOLES)
    if trimmed:
        assert disk.model.counts["DISCARD"] > 0
        assert disk.file.stat().st_blocks * 512 < full_bytes - (FILES << 12), "deleted files still take space"


def check_ranges(disk: Path, guest: Path, kind: str) -> None:
    """Assert that the ranges of files, which a fault rule with `file` gets, have the bytes of these; btrfs is refused."""
    if kind == "btrfs":
        with pytest.raises(RigError, match=f"btrfs at {guest}: its files cannot be mapped to bytes of the disk"):
            ranges_of(disk, "/copy/*")
        return
    files = [path for path in sorted((guest / "copy").rglob("file*")) if path.stat().st_size > 0]
    for path in files[:10]:
        with disk.open("rb") as whole:
            stored = b""
            for start, length in ranges_of(disk, f"/{path.relative_to(guest)}"):
                whole.seek(start)
                stored += whole.read(length)
        assert stored.startswith(path.read_bytes())
        assert len(stored) < path.stat().st_size + 65536


def trim(guest: Path) -> bool:
    """Discard the free space of a file system, and return False if the disk does not support that."""
    done = subprocess.run(["fstrim", guest], capture_output=True, text=True, check=False)
    assert (done.returncode == 0) != ("the discard operation is not supported" in done.stderr), done.stderr
    return done.returncode == 0
