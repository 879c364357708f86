"""Tests of ``siterig bisect`` on a real rig: it names the one write among many that broke a file system."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.guests import loop_devices
from siterig.testing.testbed import Testbed
from tests.support.disks.guest import FSCK, MKFS, loop_device, make_tree, mounted, run, write_durably
from tests.support.needs import needs_file_system
from tests.support.rigs.jobs import ended
from tests.support.warm_command import run_warm

pytestmark = [pytest.mark.system, needs_file_system("ext4")]

MIB = 1 << 20
VM = "web01"
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))
REPAIR = "e2fsck -fp {os}; test $? -lt 4"
"""Replays the journal, and repairs all damage that a crash may leave; any other damage counts as broken."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a short name: it contains a socket, and the kernel allows 107 bytes for the socket's path."""
    folder = tmp_path_factory.mktemp("b")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def siterig(testbed: Testbed, *arguments: str) -> subprocess.CompletedProcess[str]:
    before, found = arguments, False
    if "--" in arguments:
        at = arguments.index("--")
        before, found = arguments[:at], True
    words = [*before, "--dir", testbed.layout.root, *(arguments[len(before) :] if found else ())]
    return run_warm(*words, timeout_s=300)


def inode_table(image: Path) -> int:
    """Return the offset of the block with the root directory's inode."""
    found = re.search(r"located at block (\d+)", run("debugfs", "-R", "imap <2>", image))
    assert found is not None
    return int(found[1]) * 4096


def use(image: Path, folder: Path, rng: random.Random) -> None:
    """Use a file system as a guest does: files are created, overwritten and removed, and some of that is synced."""
    with loop_device(image, direct_io=True) as device, mounted(device, folder / "guest") as guest:
        make_tree(guest, rng, files=60)
        os.sync()
        for path in sorted(guest.rglob("file*"))[::2]:
            path.unlink()
        make_tree(guest, rng, files=30)


async def edge(testbed: Testbed, *arguments: str) -> dict[str, Any]:
    done = await trio.to_thread.run_sync(siterig, testbed, "bisect", VM, "--json", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stderr)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


async def test_the_write_that_broke_a_file_system_is_named(folder: Path) -> None:
    print(f"SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    async with Testbed.up(folder / "rig") as testbed:
        vault = testbed.vault
        disks = [DiskSpec(name="os", size_bytes=64 * MIB), DiskSpec(name="data", size_bytes=8 * MIB)]
        vm = await vault.create_vm(vm=VM, disks=disks)
        paths = {disk.name: Path(disk.path) for disk in vm.disks}
        run(*MKFS["ext4"], "-b", "4096", paths["os"])
        await ended(testbed, await vault.enable_protection(vm=VM, interval_s=30))
        first = await vault.create_point(vm=VM, kind="CrashConsistent", name="first")
        await trio.to_thread.run_sync(use, paths["os"], folder, rng)
        clean = await vault.create_point(vm=VM, kind="CrashConsistent", name="clean")

        # Only one write in the middle concerns the file system.
        where = inode_table(paths["os"])
        old = bytearray(64 * MIB)
        old[:] = paths["os"].read_bytes()
        for number in range(40):
            write_durably(paths["data"], number * 8192, rng.randbytes(5000))
            if number == 23:
                write_durably(paths["os"], where, bytes(range(256)) * 16)
        last = await vault.create_point(vm=VM, kind="CrashConsistent", name="last")

        # The read-only search, between two recovery points at which the file system was not mounted.
        found = await edge(testbed, "--good", clean.id, "--bad", last.id, "--", *FSCK["ext4"], "{os}")
        (change,) = found["changes"]
        assert (change["disk"], change["kind"], change["offset"], change["length"]) == ("os", "WRITE", where, 4096)
        assert change["position"] == found["first_bad"]["position"]
        assert clean.position <= found["last_good"]["position"] < change["position"] <= last.position
        for line in change["lines"]:
            at = line["offset"]
            assert bytes.fromhex(line["before"]) == old[at : at + 16]
            assert bytes.fromhex(line["after"]) == bytes(range(256))[at % 256 :][:16]
        assert (found["point_before"]["name"], found["point_after"]["name"]) == ("clean", "last")
        assert len(found["trials"]) <= 2 + 6

        # The search on copies, from a point before the guest's use: fsck can repair each position before the bad write.
        again = await edge(testbed, "--good", first.id, "--bad", "latest-processed", "--writable", "--", "sh", "-c", REPAIR)
        assert again["changes"] == found["changes"]
        assert again["point_before"]["name"] == "clean"

        # Nothing is left.
        assert await vault.mounted_points(vm=VM) == []
        assert await testbed.azure.list_mounted_points() == []
        assert await testbed.azure.list_disks() == []

        # The output for people; and the two states stay mounted if the user asks for that.
        done = siterig(testbed, "bisect", VM, "--good", clean.id, "--keep", "--", *FSCK["ext4"], "{os}")
        assert done.returncode == 0, done.stderr
        assert f"WRITE on disk os: 4096 bytes at {where} ({where:#x})" in done.stdout
        assert "1. position" in done.stderr
        assert "output of CMD when it failed last" in done.stderr
        bad, good = await vault.mounted_points(vm=VM)
        images = {state.position: Path(next(d.path for d in state.disks if d.name == "os")) for state in (good, bad)}
        assert images[good.position].read_bytes() == old
        assert images[bad.position].read_bytes()[where : where + 4096] == bytes(range(256)) * 16
        for state in (good, bad):
            assert siterig(testbed, "point", "unmount", VM, state.name).returncode == 0


async def test_an_interrupted_or_killed_search_leaves_nothing(folder: Path) -> None:
    async with Testbed.up(folder / "rig") as testbed:
        vault = testbed.vault
        vm = await vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=8 * MIB)])
        await ended(testbed, await vault.enable_protection(vm=VM, interval_s=30))
        first = await vault.create_point(vm=VM, kind="CrashConsistent", name="first")
        write_durably(Path(vm.disks[0].path), 0, b"EVIL")
        await vault.create_point(vm=VM, kind="CrashConsistent", name="last")
        command = [sys.executable, "-m", "siterig", "bisect", VM, "--dir", str(testbed.layout.root), "--good", first.id]
        for number in (signal.SIGKILL, signal.SIGINT):
            process = await trio.lowlevel.open_process(
                [*command, "--writable", "--", "sh", "-c", "exec sleep 1000 < {os}"], stderr=subprocess.PIPE
            )
            with trio.fail_after(60):
                while not (copies := [disk for disk in await testbed.azure.list_disks() if disk.open_handles]):  # noqa: ASYNC110
                    await trio.sleep(0.05)
            left = await vault.mounted_points(vm=VM)
            process.send_signal(number)
            status = await process.wait()
            if number == signal.SIGKILL:
                (use,) = await loop_devices.uses(Path(copies[0].path))
                (sleeper,) = use.processes  # it has its own session
                os.kill(int(sleeper.split("(")[1].rstrip(")")), signal.SIGKILL)
                assert len(left) == 2
                with trio.fail_after(60):
                    while await testbed.azure.list_disks() or await vault.mounted_points(vm=VM):  # noqa: ASYNC110
                        await trio.sleep(0.05)
            else:
                assert status == 130
        assert [disk.vm for disk in await testbed.azure.list_disks()] == []
        assert await vault.mounted_points(vm=VM) == []


async def test_resources_that_the_command_leaves_on_a_state_are_named(folder: Path) -> None:
    async with Testbed.up(folder / "rig") as testbed:
        vault = testbed.vault
        vm = await vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=8 * MIB)])
        await ended(testbed, await vault.enable_protection(vm=VM, interval_s=30))
        first = await vault.create_point(vm=VM, kind="CrashConsistent", name="first")
        write_durably(Path(vm.disks[0].path), 0, b"EVIL")
        await vault.create_point(vm=VM, kind="CrashConsistent", name="last")
        script = "losetup --find --read-only {os}"
        done = siterig(testbed, "bisect", VM, "--good", first.id, "--", "sh", "-c", script)
        loops = [line.split(":")[0] for line in run("losetup", "--list", "--all").splitlines() if str(folder) in line]
        try:
            assert done.returncode == 1, done.stdout + done.stderr
            assert "CMD left resources in use: /dev/loop" in done.stderr
            assert "(LeftBehind)" in done.stderr
        finally:
            for line in loops:
                run("losetup", "--detach", line.split()[0])
        with trio.fail_after(60):
            while await vault.mounted_points(vm=VM):  # noqa: ASYNC110 (in another process)
                await trio.sleep(0.05)
