"""Thin disks over a parent image: the image is read in place, is never written to, and must not change."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.contracts.control import BackingImage, DiskInfo
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.images import vhd
from siterig.blockfs.images.image_file import open_image
from siterig.replication.hyperv.prerequisites import check_space
from tests.support.rigs.agent_rig import VM, ManagedDisk, Rig

MIB = 1 << 20
SIZE = 2 * MIB
BYTES = random.Random(1).randbytes(SIZE)


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    path = tmp_path / "parent.img"
    path.write_bytes(BYTES)
    os.utime(path, ns=(1_700_000_000_000_000_000, 1_700_000_000_000_000_000))
    return path


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DiskHost]:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    yield host
    host.abandon()


async def thin(host: DiskHost, parent: Path, size_bytes: int = SIZE) -> DiskInfo:
    backing = BackingImage(path=str(parent), format="vhd" if parent.suffix == ".vhd" else "raw")
    return await host.create_disk(vm="web01", name="os", size_bytes=size_bytes, backing=backing)


def restart(host: DiskHost, *, cleanly: bool = False) -> DiskHost:
    host.close() if cleanly else host.abandon()
    return DiskHost(host.root, host.mountpoint)


async def test_a_thin_disk_reads_as_its_parent_and_never_writes_to_it(host: DiskHost, parent: Path) -> None:
    made = await thin(host, parent, SIZE + MIB)
    assert (made.size_bytes, made.parent, made.broken_chain) == (SIZE + MIB, str(parent), None)
    disk = host.disk("web01", "os")
    assert disk.read(0, SIZE + MIB) == BYTES + bytes(MIB)
    before = parent.stat()
    disk.write(5000, b"changed")
    disk.zero(MIB, 4096)
    expected = bytearray(BYTES + bytes(MIB))
    expected[5000:5007], expected[MIB : MIB + 4096] = b"changed", bytes(4096)
    assert disk.read(0, SIZE + MIB) == expected
    again = restart(host, cleanly=True)
    assert again.disk("web01", "os").read(0, SIZE + MIB) == expected
    assert (parent.read_bytes(), parent.stat().st_mtime_ns) == (BYTES, before.st_mtime_ns)
    assert sum(path.stat().st_blocks for path in (host.root / "web01").glob("os.top*")) * 512 < MIB
    again.abandon()


async def test_a_vhd_is_a_parent_without_its_footer(tmp_path: Path, host: DiskHost) -> None:
    parent = tmp_path / "parent.vhd"
    parent.write_bytes(BYTES + vhd.fixed_footer(SIZE, "5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42"))
    await thin(host, parent, SIZE + MIB)
    assert host.disk("web01", "os").read(0, SIZE + MIB) == BYTES + bytes(MIB)


async def test_a_thin_disk_is_tracked_and_its_log_continues_after_a_kill(host: DiskHost, parent: Path) -> None:
    await thin(host, parent)
    await host.start_tracking(vm="web01")
    host.disk("web01", "os").write(0, b"logged")
    again = restart(host)
    (info,) = await again.list_disks()
    assert (info.tracked, info.needs_resync, info.last_seq) == (True, None, 1)
    assert again.disk("web01", "os").read(0, 6) == b"logged"
    await again.cut(vm="web01", kind="CrashConsistent", name="x")
    again.abandon()


def grown(parent: Path) -> None:
    parent.write_bytes(BYTES + bytes(512))


def written(parent: Path) -> None:
    with parent.open("r+b") as file:
        file.write(b"x")


def written_with_the_old_time(parent: Path) -> None:
    found = parent.stat()
    written(parent)
    os.utime(parent, ns=(found.st_atime_ns, found.st_mtime_ns))


def deleted(parent: Path) -> None:
    parent.unlink()


def replaced_by_a_fifo(parent: Path) -> None:
    parent.unlink()
    os.mkfifo(parent)


@pytest.mark.parametrize("change", [grown, written, written_with_the_old_time, deleted, replaced_by_a_fifo])
async def test_a_parent_that_is_missing_or_changed_is_a_broken_chain(host: DiskHost, parent: Path, change: object) -> None:
    await thin(host, parent)
    await host.create_disk(vm="web02", name="os", size_bytes=MIB)
    assert callable(change)
    host.abandon()
    change(parent)
    again = DiskHost(host.root, host.mountpoint)
    infos = {info.vm: info for info in await again.list_disks()}
    assert infos["web02"].broken_chain is None
    assert (infos["web01"].needs_resync, infos["web01"].parent) == ("BrokenVhdChain", str(parent))
    assert str(parent) in (infos["web01"].broken_chain or "")
    with pytest.raises(RigError, match=r"parent\.img: ") as failed:
        await again.start_tracking(vm="web01")
    assert (failed.value.code, failed.value.recoverable) == ("BrokenVhdChain", False)
    (obstacle,) = await again.tracking_obstacles(vm="web01")  # protect
    assert obstacle.code == "BrokenVhdChain"
    assert re.match(r"disk web01/os.*: .*parent\.img: ", obstacle.message)
    await again.remove_vm(vm="web01")
    assert [info.vm for info in await again.list_disks()] == ["web02"]
    again.abandon()


@pytest.mark.parametrize("change", [grown, written, deleted])
async def test_a_parent_that_changes_while_the_disk_is_in_use_fails_the_next_cut(
    host: DiskHost, parent: Path, change: object
) -> None:
    await thin(host, parent)
    await host.start_tracking(vm="web01")
    assert callable(change)
    change(parent)
    with pytest.raises(RigError, match=r"disk web01/os: .*parent\.img: was") as failed:
        await host.cut(vm="web01", kind="CrashConsistent", name="x")
    assert (failed.value.code, failed.value.recoverable) == ("BrokenVhdChain", False)
    (info,) = await host.list_disks()
    assert info.broken_chain is not None
    await host.stop_tracking(vm="web01")  # replication can still be disabled


async def test_a_copy_with_the_same_time_is_accepted_as_the_parent(host: DiskHost, parent: Path) -> None:
    await thin(host, parent)
    host.abandon()
    copy, found = parent.with_name("copy"), parent.stat()
    copy.write_bytes(BYTES)
    os.utime(copy, ns=(found.st_atime_ns, found.st_mtime_ns))
    copy.rename(parent)
    again = DiskHost(host.root, host.mountpoint)
    assert again.disk("web01", "os").read(0, SIZE) == BYTES
    again.abandon()


async def test_a_parent_in_use_cannot_be_mounted_for_writing(host: DiskHost, parent: Path) -> None:
    await thin(host, parent)
    with pytest.raises(RigError) as failed:
        await open_image(parent)
    assert failed.value.code == "ImageBusy"
    (await open_image(parent, read_only=True)).close()


@pytest.mark.parametrize(
    ("make", "size_bytes", "code"),
    [
        (lambda path: path.write_bytes(BYTES), MIB, "InvalidDiskSize"),
        (lambda path: path.write_bytes(bytes(1000)), SIZE, "InvalidDiskSize"),
        (lambda path: path.mkdir(), SIZE, "ImageUnusable"),
        (os.mkfifo, SIZE, "ImageUnusable"),
        (lambda _path: None, SIZE, "ImageUnusable"),
    ],
)
async def test_an_unusable_parent_is_refused_and_nothing_is_left(
    tmp_path: Path, host: DiskHost, make: object, size_bytes: int, code: str
) -> None:
    assert callable(make)
    make(tmp_path / "x")
    with pytest.raises(RigError) as failed:
        await thin(host, tmp_path / "x", size_bytes)
    assert failed.value.code == code
    assert [path.name for path in host.root.iterdir() if path.is_dir()] == []


async def test_a_replaced_thin_disk_is_kept_with_the_bytes_of_its_parent(host: DiskHost, parent: Path) -> None:
    await thin(host, parent)
    host.disk("web01", "os").write(0, b"own")
    before = host.disk("web01", "os").read(0, SIZE)
    staging = await host.begin_replace(vm="web01", disk="os", size_bytes=SIZE)
    Path(staging.path).write_bytes(b"\5" * SIZE)
    (info,) = await host.commit_replace(vm="web01", keep=["os"])
    assert Path(info.kept[0].path).read_bytes() == before
    assert (before[:3], host.disk("web01", "os").read(0, 3)) == (b"own", b"\5\5\5")
    host.abandon()


async def test_a_thin_disk_that_returns_by_failback_has_no_parent(host: DiskHost, parent: Path) -> None:
    await thin(host, parent)
    staging = await host.begin_replace(vm="web01", disk="os", size_bytes=SIZE)
    Path(staging.path).write_bytes(b"\5" * SIZE)
    (info,) = await host.commit_replace(vm="web01", keep=[])
    assert (info.parent, info.needs_resync) == (None, "DiskReplaced")
    parent.unlink()
    again = restart(host)
    assert again.disk("web01", "os").read(0, SIZE) == b"\5" * SIZE
    assert list((host.root / "web01").glob("os.top*")) == []
    again.abandon()


async def test_a_thin_disk_replicates_with_its_parent_a_broken_chain_fails(
    tmp_path: Path, parent: Path, autojump_clock: MockClock
) -> None:
    rig = Rig(tmp_path / "rig", sizes={"os": SIZE})
    backing = BackingImage(path=str(parent), format="raw")
    info = await rig.host.create_disk(vm=VM, name="os", size_bytes=SIZE, backing=backing)
    rig.recovery.disks[info.disk_id] = ManagedDisk(bytearray(SIZE))
    async with rig.agent() as agent:
        await rig.protect(agent)
        await trio.sleep(1)
        rig.write(5)
        cut = await rig.cycle(agent)
        expected = rig.host.disk(VM, "os").read(0, SIZE)
        rig.recovery.apply()
        assert rig.managed("os").points[cut.position] == expected != BYTES
        written(parent)
        await trio.sleep(2 * rig.interval_s)
        _, code, _, next_try_s = rig.vault.errors[-1]
        assert (code, next_try_s) == ("BrokenVhdChain", None)


async def test_the_space_for_a_snapshot_includes_the_parents_data(
    host: DiskHost, parent: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = await thin(host, parent)
    check_space("web01", [info])
    small = os.statvfs_result((4096, 4096, 1000, 100, 100, 10, 10, 10, 0, 255))  # 400 KiB free
    monkeypatch.setattr(os, "statvfs", lambda _path: small)
    with pytest.raises(RigError) as failed:
        check_space("web01", [info])
    assert failed.value.code == "NotEnoughSpace"
