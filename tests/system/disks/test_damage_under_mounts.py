"""Tests of files of a managed disk that are truncated under mounts: only reads that need them report errors."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from siterig.azure_emu.disks.store import ManagedDiskStore
from tests.support.disks.disk_history import SIZE_BYTES
from tests.support.disks.disk_server_process import DiskServer
from tests.support.stores.managed_disk import assert_same, seeded

pytestmark = pytest.mark.system

OTHER_ID = "0b6f3a52-63f4-4c2f-8f0e-6f8b1c9d0e1f"


@pytest.fixture
def server(tmp_path: Path, front_end: str) -> Iterator[DiskServer]:
    server = DiskServer(tmp_path, disk_bytes=1 << 20, front_end=front_end)
    try:
        server.start()
        yield server
    finally:
        server.clean_up()


def mounted(server: DiskServer, folder: Path, position: int, name: str) -> Path:
    source = {"name": "os", "disk_id": folder.name}
    info = server.call("open_mounted_point", vm="web01", name=name, position=position, disks=[source])
    return Path(info["disks"][0]["path"])


def failed_over(server: DiskServer, store: ManagedDiskStore, position: int) -> Path:
    made = {"managed_disk": store.folder.name, "position": position}
    return Path(server.call("create_disk_from_point", vm="web01-test", name="os", **made)["path"])


def read(path: Path) -> bytes:
    """Read a whole disk past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        memory = mmap.mmap(-1, SIZE_BYTES)
        assert os.preadv(fd, [memory], 0) == SIZE_BYTES
        return memory[:]
    finally:
        os.close(fd)


@pytest.mark.parametrize("cut", ["base.sums", "base.img", "journal"])
def test_a_truncated_file_under_mounts_is_an_error_of_the_read(tmp_path: Path, server: DiskServer, cut: str) -> None:
    managed, elsewhere = tmp_path / "managed", tmp_path / "elsewhere"
    managed.mkdir()
    elsewhere.mkdir()
    disk, store = seeded(managed)
    other_disk, other_store = seeded(elsewhere)
    other_store.close()
    other = other_store.folder.rename(managed / OTHER_ID)  # the disk host finds a managed disk by the name of its folder
    unharmed = mounted(server, other, other_disk.position, "other")
    harmed = [mounted(server, store.folder, disk.position, "newest"), failed_over(server, store, disk.position)]
    if cut != "journal":
        harmed.append(mounted(server, store.folder, store.oldest_position, "oldest"))
    for path in harmed[:2]:
        assert_same(read(path), bytes(disk.data), str(path))
    whole = managed / store.folder.name / cut
    for file in whole.iterdir() if whole.is_dir() else [whole]:
        os.truncate(file, 0)
    for path in harmed:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)) as refused:
            read(path)
        assert refused.value.errno == errno.EIO
    assert_same(read(unharmed), bytes(other_disk.data), "a state of another disk")
    if cut == "journal":
        oldest = mounted(server, store.folder, store.oldest_position, "oldest")
        assert_same(read(oldest), disk.states[store.oldest_position], "a state that does not need the truncated file")
    assert {info["name"]: info["broken"] for info in server.call("list_mounted_points")} == dict.fromkeys(
        ["newest", "oldest", "other"]
    )
    server.os_disk.write_bytes(b"the host's own disks")
    server.stop()
