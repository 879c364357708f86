"""Tests of a corrupt byte in a managed disk's journal: it is found, it is never served, and a resync repairs the disk."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from siterig.azure_emu.vault.model.resources import MountedPoint
from siterig.blockfs.core.errors import ExitStatus
from siterig.testing.testbed import Testbed
from tests.support.rigs.protected_vm import SITERIG, Images, protected, same, siterig
from tests.support.stores.stored_bytes import stored

pytestmark = pytest.mark.system

BLOCK = 4096


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a short name: it contains a socket, and the kernel allows 107 bytes for the socket's path."""
    return tmp_path_factory.mktemp("r")


def rot(journal: Path, kept: bytes, at: int) -> tuple[Path, int]:
    """Change byte ``at`` of data in the journal, given as the journal keeps them.

    Returns:
        The journal file, and the offset of the byte in it.
    """
    for path in journal.iterdir():
        byte = path.read_bytes().find(kept[at : at + 100])
        if byte >= 0:
            with path.open("r+b") as journal_file:
                journal_file.seek(byte)
                journal_file.write(bytes([kept[at] ^ 0x10]))
            return path, byte
    raise AssertionError("the data is in no journal file")


async def scrubbed(testbed: Testbed) -> tuple[int, dict[str, list[dict[str, Any]]]]:
    """Scrub the disks with the command, and return its exit status and the damages that it reports for each disk."""
    words = [*SITERIG, "disk", "scrub", "web01", "--json", "--dir", str(testbed.layout.root)]
    done = await trio.to_thread.run_sync(partial(subprocess.run, words, capture_output=True, text=True, check=False))
    return done.returncode, {disk["name"]: disk["damages"] for disk in json.loads(done.stdout)}


def wrong_blocks(copy: Images, mounted: MountedPoint) -> list[tuple[str, int]]:
    """Compare a mounted point with a copy, and return disk and offset of all blocks that cannot be read."""
    found = []
    for disk in mounted.disks:
        expected = copy[disk.name].read_bytes()
        fd = os.open(disk.path, os.O_RDONLY)
        assert os.fstat(fd).st_size == len(expected)
        for at in range(0, len(expected), BLOCK):
            try:
                data = os.pread(fd, BLOCK, at)
            except OSError as exc:
                assert exc.errno == errno.EIO
                found.append((disk.name, at))
            else:
                assert data == expected[at : at + BLOCK], (disk.name, at)
        os.close(fd)
    return found


async def test_a_corrupt_byte_is_named_never_served_and_repaired_by_a_resync(folder: Path) -> None:
    async with protected(folder) as (testbed, source):
        vault = testbed.vault
        before, early = await source.point("before")
        written, offset = os.urandom(10 * BLOCK), 8 * 1024 * 1024 + 512
        await source.write_at("os", offset, written)
        copy = await source.copy("hurt")
        hurt = await vault.create_point(vm="web01", kind="CrashConsistent", name="hurt")
        assert (await scrubbed(testbed))[0] == ExitStatus.OK

        (disk_id,) = [disk.disk_id for disk in await testbed.site.list_disks(vm="web01") if disk.name == "os"]
        at = 3 * BLOCK + 1000
        kept = await stored(testbed, "os", written, offset)
        path, byte = rot(testbed.layout.managed_disks / disk_id / "journal", kept, at)
        block = (offset + at) // BLOCK * BLOCK
        status, damages = await scrubbed(testbed)
        assert status == ExitStatus.FAILED
        assert damages["odd"] == []
        (damage,) = damages["os"]
        assert (damage["path"], damage["offset"]) == (str(path), byte - (offset + at - block))
        assert early.position < damage["first_position"] < hurt.position
        assert damage["last_position"] is None
        assert hurt.id in damage["points"]  # each cycle takes another point, so there may be more
        assert early.id not in damage["points"]

        mounted = await vault.mount_point(vm="web01", point=hurt.id)
        assert await trio.to_thread.run_sync(wrong_blocks, copy, mounted) == [("os", block)]
        await same(before, await vault.mount_point(vm="web01", point=early.id))

        await source.write()
        await siterig(testbed, "resync", "web01")
        whole, later = await source.point("whole")
        await same(whole, await vault.mount_point(vm="web01", point=later.id))
        latest = await vault.mount_point(vm="web01", point="Latest", name="latest")
        await same(whole, latest)
        assert await trio.to_thread.run_sync(wrong_blocks, copy, mounted) == [("os", block)]
        status, damages = await scrubbed(testbed)
        assert status == ExitStatus.FAILED
        (still,) = damages["os"]
        assert [still[key] for key in ("path", "offset", "first_position")] == [
            damage[key] for key in ("path", "offset", "first_position")
        ]
        assert hurt.position <= still["last_position"] < later.position
        assert hurt.id in still["points"]
        assert later.id not in still["points"]
