"""Tests of mounted disks whose counters are read under load, and which grow while they are used and replicated."""

from __future__ import annotations

import os
import random
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from siterig.azure_emu.vault.model.resources import Job
from siterig.blockfs.contracts.counters import DiskCounters
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.images.vhd import FOOTER_BYTES
from siterig.testing.testbed import Testbed
from tests.support.disks.disk_server_process import VM, DiskServer, StartServer
from tests.support.disks.guest import FSCK, MKFS, loop_device, make_tree, mounted, run, tree, write_durably
from tests.support.disks.shadowed_disk import ShadowedDisk
from tests.support.needs import needs_file_system
from tests.support.rigs.jobs import ended

pytestmark = pytest.mark.system

MIB = 1 << 20
PATIENCE_S = 30.0
SEED = int(os.environ.get("SITERIG_SEED", str(time.time_ns() % 1_000_000)))


# --- one host -----------------------------------------------------------------------------------------------------


def stats(server: DiskServer) -> DiskCounters:
    """Return the counters that ``cat`` reads from the mount."""
    return DiskCounters.model_validate_json(run("cat", server.mountpoint / VM / "os.stats"))


def test_the_counters_can_be_read_while_the_disk_is_written_to(start_server: StartServer) -> None:
    server = start_server(64 * MIB)
    begun, stop = threading.Event(), threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        with server.os_disk.open("r+b", buffering=0) as disk:
            while not stop.is_set():
                disk.seek(written % 8192 * 4096)
                disk.write(b"x" * 4096)
                written += 1
                begun.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert begun.wait(30)
        seen = [stats(server) for _ in range(20)]
    finally:
        stop.set()
        writer.join()
    ops = [found.requests["write"].ops for found in seen]
    assert ops == sorted(ops)
    assert ops[0] < ops[-1] <= written, "a reading does not show the moment when the file was opened"
    last = stats(server)
    found = last.requests["write"]
    assert (found.ops, found.bytes, found.errors, sum(found.latency_log2_us)) == (written, written * 4096, 0, written)
    assert last.log.written_records >= written
    assert (server.mountpoint / VM / "os.stats").stat().st_size == 0
    copied = server.folder / "copied"
    run("cp", server.mountpoint / VM / "os.stats", copied)
    assert DiskCounters.model_validate_json(copied.read_text()).requests["write"].ops == written
    with pytest.raises(PermissionError):
        (server.mountpoint / VM / "os.stats").write_text("")


def by_truncate(server: DiskServer, size_bytes: int) -> None:
    run("truncate", "-s", str(size_bytes), server.os_disk)


def by_control(server: DiskServer, size_bytes: int) -> None:
    vhd = server.os_disk.with_suffix(".vhd")
    sizes = [file.stat().st_size for file in (server.os_disk, vhd)]  # now they are in the kernel's cache
    server.call("resize_disk", vm=VM, disk="os", size_bytes=size_bytes)
    assert sizes[1] == sizes[0] + FOOTER_BYTES < size_bytes
    until(lambda: server.os_disk.stat().st_size == size_bytes)  # the kernel may learn the size after the answer
    until(lambda: vhd.stat().st_size == size_bytes + FOOTER_BYTES)


def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition is true, or fail the test."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@needs_file_system("ext4")
@pytest.mark.parametrize("grow", [by_truncate, by_control])
def test_a_disk_with_a_mounted_file_system_grows_and_its_log_replays(
    start_server: StartServer, tmp_path: Path, grow: Any
) -> None:
    print(f"SITERIG_SEED={SEED}")
    rng = random.Random(SEED)
    server = start_server(64 * MIB)
    assert server.call("remember") == "done"
    disk = ShadowedDisk(server, "os")
    guest = tmp_path / "guest"
    make_tree(tmp_path / "source", rng, files=120)
    with loop_device(server.os_disk, direct_io=True) as device:
        run(*MKFS["ext4"], device)
        with mounted(device, guest):
            (guest / "small").write_bytes(b"before")
            assert server.os_disk.stat().st_size == 64 * MIB  # the kernel has the old size in its cache
            grow(server, 256 * MIB)
            assert server.os_disk.stat().st_size == 256 * MIB
            run("losetup", "--set-capacity", device)
            assert int(run("blockdev", "--getsize64", device)) == 256 * MIB
            (guest / "small").write_bytes(b"after")
        run("e2fsck", "-fp", device)  # growing a mounted one needs a right that containers lack (CAP_SYS_RESOURCE)
        run("resize2fs", device)
        with mounted(device, guest):
            run("cp", "-r", tmp_path / "source", guest / "tree")
            with (guest / "filler").open("wb") as filler:
                filler.write(rng.randbytes(70 * MIB))  # more than the smaller disk had room for
            run("sync", "--file-system", guest)
            assert tree(guest / "tree") == tree(tmp_path / "source")
            assert (guest / "small").read_bytes() == b"after"
    with loop_device(server.os_disk, direct_io=False) as device:
        run(*FSCK["ext4"], device)
    disk.check()
    assert (disk.model.size_bytes, disk.model.counts["RESIZE"]) == (256 * MIB, 1)


def test_an_open_file_sees_the_new_end_which_survives_a_kill(start_server: StartServer) -> None:
    server = start_server(16 * MIB)
    assert server.call("remember") == "done"
    with server.os_disk.open("r+b", buffering=0) as disk:
        by_control(server, 32 * MIB)
        assert os.fstat(disk.fileno()).st_size == 32 * MIB
        disk.seek(32 * MIB - 3)
        assert disk.write(b"end") == 3
        os.fsync(disk.fileno())
    server.kill()
    server.start()
    assert server.os_disk.stat().st_size == 32 * MIB
    with server.os_disk.open("rb") as disk:
        disk.seek(-3, os.SEEK_END)
        assert disk.read() == b"end"
    for size_bytes, refusal in ((16 * MIB, "Operation not permitted"), (32 * MIB + 1, "Invalid argument")):
        with pytest.raises(OSError, match=refusal):
            os.truncate(server.os_disk, size_bytes)


# --- a rig --------------------------------------------------------------------------------------------------------


def disk_of(job: Job) -> Path:
    """Return the path of the only disk of the VM that a failover made."""
    assert job.result is not None
    return Path(job.result.disks[0].path)


async def test_a_protected_disk_grows_and_keeps_its_size_through_failover(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # The folder has a short name: a socket is below it, and the kernel allows 107 bytes for the socket's path.
    async with Testbed.up(tmp_path_factory.mktemp("g")) as testbed:
        vault, site = testbed.vault, testbed.site
        vm = await vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=8 * MIB)])
        image = Path(vm.disks[0].path)
        write_durably(image, 4 * MIB, b"first")
        await ended(testbed, await vault.enable_protection(vm=VM, interval_s=30))
        small = await vault.create_point(vm=VM, kind="CrashConsistent", name="small")
        small_bytes = image.read_bytes()

        grown = await site.resize_disk(vm=VM, disk="os", size_bytes=16 * MIB)
        assert (grown.needs_resync, grown.generation) == (None, 1)
        write_durably(image, 16 * MIB - 4, b"grew")
        large_bytes = image.read_bytes()
        large = await vault.create_point(vm=VM, kind="CrashConsistent", name="large")
        (resize,) = [event for event in await vault.events(vm=VM) if event.eventCode == "DiskResized"]
        assert f"to {16 * MIB} bytes" in resize.description
        for point, expected in ((small, small_bytes), (large, large_bytes)):
            job = await ended(testbed, await vault.test_failover(vm=VM, point=point.id))
            assert disk_of(job).read_bytes() == expected
            await ended(testbed, await vault.cleanup_test_failover(vm=VM))
        await ended(testbed, await vault.resync(vm=VM))
        assert [disk.generation for disk in await site.list_disks(vm=VM)] == [2]

        # The site is lost.  The recovery point is older than the growth: the new VM is smaller than the VM of the site.
        job = await ended(testbed, await vault.unplanned_failover(vm=VM, point=small.id))
        assert disk_of(job).read_bytes() == small_bytes
        (failover,) = [event for event in await vault.events(vm=VM) if event.eventCode == "UnplannedFailoverSucceeded"]
        assert re.search(rf"point {small.id} .*, position {small.position}, RPO \d", failover.description)
        await ended(testbed, await vault.commit_failover(vm=VM))
        write_durably(image, 12 * MIB, bytes(4096))  # at the site, which has not noticed its loss
        write_durably(disk_of(job), 0, b"recovered")
        expected = b"recovered" + small_bytes[9:] + bytes(8 * MIB)
        for step in (vault.failback, vault.commit_failover, vault.reprotect):
            await ended(testbed, await step(vm=VM))
        assert image.read_bytes() == expected, "the disk was made smaller"
        known = await vault.events(vm=VM, with_points=True)
        (overwritten,) = [event for event in known if event.eventCode == "SourceOverwritten"]
        assert f"overwrote {4096 + len(b'grew')} bytes" in overwritten.description  # since the point
        created = [event.description for event in known if event.eventCode == "RecoveryPointCreated"]
        assert all(any(point.id in text for text in created) for point in (small, large))

        # Once more, but now the recovered VM grows beyond the size of the site's disk.
        job = await ended(testbed, await vault.planned_failover(vm=VM))
        assert disk_of(job).read_bytes() == expected
        await ended(testbed, await vault.commit_failover(vm=VM))
        await testbed.azure.resize_disk(vm=VM, disk="os", size_bytes=24 * MIB)
        write_durably(disk_of(job), 24 * MIB - 4, b"more")
        for step in (vault.failback, vault.commit_failover, vault.reprotect):
            await ended(testbed, await step(vm=VM))
        expected += bytes(8 * MIB - 4) + b"more"
        assert image.read_bytes() == expected
        job = await ended(testbed, await vault.test_failover(vm=VM, point="LatestProcessed"))
        assert disk_of(job).read_bytes() == expected
