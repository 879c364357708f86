"""A disk host cuts over several disks, and creates or deletes a VM completely or not at all."""

from __future__ import annotations

import errno
import json
import os
import random
import time
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.changelog.position_counter import read_position
from siterig.blockfs.contracts.control import AppliedLog
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk import disk_files as disk_module
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_files import DiskPaths
from siterig.blockfs.disk.disk_options import DiskOptions
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.disk.disk_tracking import DiskTracking
from siterig.blockfs.disk.views import PlainViews, Views
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.layers.layer import Layer, RawLayer
from siterig.cext.checksums import crc32c
from tests.support.disks.disk_model import replay

SIZE = 256 << 10


@pytest.fixture
def host(tmp_path: Path) -> Iterator[DiskHost]:
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    yield host
    host.abandon()


async def two_disks(host: DiskHost) -> None:
    for name in ("a", "b"):
        await host.create_disk(vm="web01", name=name, size_bytes=SIZE)
    await host.start_tracking(vm="web01")


def restart(host: DiskHost) -> DiskHost:
    host.abandon()
    return DiskHost(host.root, host.mountpoint)


async def test_disks_are_found_again_after_a_kill(host: DiskHost) -> None:
    await two_disks(host)
    before = await host.list_disks()
    again = await restart(host).list_disks()
    assert [(d.vm, d.name, d.disk_id, d.tracked) for d in again] == [(d.vm, d.name, d.disk_id, d.tracked) for d in before]
    assert again[0].path == str(host.mountpoint / "web01" / "a.img")


async def test_each_disk_that_is_opened_is_reported_before_its_guest_can_use_it(host: DiskHost) -> None:
    found: list[tuple[str, bool]] = []
    host.registry.report_opened = lambda disk: found.append(
        (str(disk.paths), disk.paths.name in host.vms.get(disk.paths.vm, {}))
    )
    await host.create_disk(vm="web01", name="a", size_bytes=SIZE)
    await host.rename_vm(vm="web01", name="db01")
    assert found == [("web01/a", False), ("db01/a", False)]


async def test_a_disk_keeps_the_sector_size_that_it_declares(host: DiskHost) -> None:
    made = await host.create_disk(vm="web01", name="os", size_bytes=SIZE, sector_bytes=4096)
    assert made.sector_bytes == 4096
    again = restart(host)
    (found,) = await again.list_disks()
    assert found.sector_bytes == 4096
    with pytest.raises(RigError, match="it must be a multiple of 4096, at least"):
        await again.resize_disk(vm="web01", disk="os", size_bytes=SIZE + 512)
    assert (await again.resize_disk(vm="web01", disk="os", size_bytes=SIZE + 4096)).size_bytes == SIZE + 4096
    with pytest.raises(RigError, match="it must be a positive multiple of 4096"):
        await again.create_disk(vm="web01", name="data", size_bytes=SIZE + 512, sector_bytes=4096)
    again.abandon()


def test_a_state_file_of_format_1_means_sectors_of_512_bytes(tmp_path: Path) -> None:
    body = {
        "disk_id": "5a0f3b0e-6f0c-4a77-9d26-6f5d3b7c1e42",
        "size_bytes": 4096,
        "kind": "raw",
        "generation": 0,
        "tracked": False,
        "needs_resync": None,
    }
    crc = crc32c(json.dumps(body, sort_keys=True).encode())
    (tmp_path / "os.disk").write_text(json.dumps({"format": 1, "crc32c": crc, "disk": body}))
    assert DiskState.load(tmp_path / "os.disk").sector_bytes == 512


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "-x", "a" * 64, "a.b"])
async def test_invalid_names_are_refused(host: DiskHost, name: str) -> None:
    with pytest.raises(RigError, match="allowed: 1 to 63 letters") as failed:
        await host.create_disk(vm=name, name="os", size_bytes=SIZE)
    assert failed.value.code == "InvalidName"
    assert host.vms == {}


async def test_unknown_names_are_refused_with_the_known_ones(host: DiskHost) -> None:
    await two_disks(host)
    with pytest.raises(RigError, match="there is no VM 'web02' here; there are: web01"):
        await host.list_disks(vm="web02")
    with pytest.raises(RigError, match="VM 'web01' has no disk 'c'; it has: a, b"):
        host.disk("web01", "c")
    with pytest.raises(RigError, match="VM 'web01' has a disk 'a' already"):
        await host.create_disk(vm="web01", name="a", size_bytes=SIZE)


@pytest.mark.parametrize("method", ["trim", "segments"])
async def test_a_lack_of_descriptors_is_a_temporary_error_of_the_host(
    host: DiskHost, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """The agent repeats the call; an error of another kind would end replication until somebody acts."""
    await two_disks(host)

    def out_of_descriptors(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), "/")

    monkeypatch.setattr(DiskTracking, method, out_of_descriptors)
    disk_id = (await host.list_disks())[0].disk_id
    with pytest.raises(RigError) as failed:
        if method == "trim":
            await host.trim_log(disk_id=disk_id, generation=1, last_seq=1)
        else:
            await host.segments(vm="web01")
    assert (failed.value.code, failed.value.recoverable) == ("HostIoError", True)
    assert "Too many open files" in failed.value.message


async def test_only_the_log_of_the_present_opening_is_deleted_as_applied(host: DiskHost) -> None:
    await two_disks(host)
    (first, second) = await host.start_tracking(vm="web01")
    await host.cut(vm="web01", kind="CrashConsistent", name="one")
    state = await host.log_state(vm="web01", applied=[])
    assert [segment.disk_id for segment in state.segments] == [first.disk_id, second.disk_id]
    newest = {segment.disk_id: segment.last_seq for segment in state.segments}
    applied = [
        AppliedLog(disk_id=disk.disk_id, opening=opening, generation=disk.generation, last_seq=newest[disk.disk_id])
        for disk, opening in ((first, first.opening), (second, "another"))
    ]
    left = await host.log_state(vm="web01", applied=applied)
    assert left.segments == state.segments[1:]
    listed = await host.list_disks(vm="web01")
    # Other tests fill the file system meanwhile.
    assert [disk.model_copy(update={"free_bytes": None}) for disk in left.disks] == [
        disk.model_copy(update={"free_bytes": None}) for disk in listed
    ]


async def test_a_failed_creation_leaves_nothing(host: DiskHost) -> None:
    with pytest.raises(RigError, match="size is 1000 bytes"):
        await host.create_disk(vm="web01", name="os", size_bytes=1000)
    with pytest.raises(RigError) as failed:
        await host.create_disk(vm="web01", name="os", size_bytes=1 << 62)
    assert failed.value.code in ("InvalidDiskSize", "HostIoError")
    assert [p.name for p in host.root.iterdir()] == ["position"]


async def test_partly_made_or_deleted_folders_are_removed_at_the_start(host: DiskHost) -> None:
    await two_disks(host)
    (host.root / ".new-web02").mkdir()
    (host.root / ".gone-1").mkdir()
    (host.root / ".gone-1" / "os.img").write_bytes(b"x")
    restart(host)
    assert sorted(p.name for p in host.root.iterdir()) == ["position", "web01"]


async def test_a_disk_that_met_a_full_host_is_opened_when_there_is_space(
    host: DiskHost, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    await two_disks(host)
    host.vms["web01"]["a"].write(0, b"kept")
    opened, tries = Disk.open, list[str]()

    def open_disk(paths: DiskPaths, options: DiskOptions, views: Views | None = None) -> Disk:
        tries.append(paths.name)
        if paths.name == "a" and tries.count("a") < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opened(paths, options, views)

    monkeypatch.setattr(Disk, "open", open_disk)
    again = restart(host)
    with pytest.raises(RigError, match=r"disk web01/a cannot be opened: .*No space left") as caught:
        await again.list_disks(vm="web01")
    assert (caught.value.code, caught.value.recoverable) == ("DiskFull", True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.run_maintenance)
        with trio.fail_after(3600):
            while again.broken:  # noqa: ASYNC110 (the clock jumps)
                await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert tries == ["a", "b", "a", "a", "a"]
    assert sorted(again.vms["web01"]) == ["a", "b"]
    assert again.vms["web01"]["a"].read(0, 4) == b"kept"
    assert [disk.needs_resync for disk in await again.list_disks(vm="web01")] == [None, None]
    again.abandon()


async def test_one_broken_disk_does_not_hide_the_others(host: DiskHost) -> None:
    await two_disks(host)
    await host.create_disk(vm="web02", name="os", size_bytes=SIZE)
    (host.root / "web01" / "a.disk").write_bytes(b"rubbish")
    again = restart(host)
    with pytest.raises(RigError, match=r"disk web01/a cannot be opened: .*is not a disk state file"):
        await again.list_disks(vm="web01")
    assert [d.vm for d in await again.list_disks(vm="web02")] == ["web02"]


@pytest.mark.slow
async def test_a_cut_is_one_position_over_all_disks(host: DiskHost) -> None:
    """Each number is written to disk a, then to disk b: at every cut, b has the number of a or the one before."""
    await two_disks(host)
    a, b = host.disk("web01", "a"), host.disk("web01", "b")
    rng, cuts = random.Random(7), []
    for n in range(1, 301):
        if rng.random() < 0.2:
            cuts.append((await host.cut(vm="web01", kind="CrashConsistent", name="")).position)
        a.write(0, n.to_bytes(8, "little"))
        if rng.random() < 0.2:
            cuts.append((await host.cut(vm="web01", kind="CrashConsistent", name="")).position)
        b.write(0, n.to_bytes(8, "little"))
    assert len(cuts) > 50
    for position in [*cuts[::4], *range(cuts[0], cuts[-1], 29)]:
        at_a = int.from_bytes(replay(bytes(SIZE), a, upto=position)[:8], "little")
        at_b = int.from_bytes(replay(bytes(SIZE), b, upto=position)[:8], "little")
        assert at_b <= at_a <= at_b + 1


async def test_a_cut_of_an_untracked_vm_tags_nothing(host: DiskHost) -> None:
    await host.create_disk(vm="web01", name="a", size_bytes=SIZE)
    with pytest.raises(RigError, match="disk web01/a is not tracked"):
        await host.cut(vm="web01", kind="CrashConsistent", name="")


async def test_a_cut_after_the_freeze_expired_tags_nothing(host: DiskHost) -> None:
    await two_disks(host)
    with pytest.raises(RigError, match="the file-system freeze expired"):
        await host.cut(vm="web01", kind="ApplicationConsistent", name="", not_after_ns=time.monotonic_ns() - 1)
    assert [disk.tracking.log.last_seq for disk in host.registry.disks("web01")] == [0, 0]
    await host.cut(vm="web01", kind="ApplicationConsistent", name="", not_after_ns=time.monotonic_ns() + 10**10)
    assert [disk.tracking.log.last_seq for disk in host.registry.disks("web01")] == [1, 1]


async def test_the_position_file_shows_the_position_to_other_processes(host: DiskHost) -> None:
    await two_disks(host)
    host.disk("web01", "a").write(0, b"x")
    assert read_position(host.root / "position") == await host.position() > 0


async def test_a_vm_with_an_open_disk_is_not_removed(host: DiskHost) -> None:
    await two_disks(host)
    host.disk("web01", "b").handles = 1
    with pytest.raises(RigError, match=r"disk web01/b is in use \(open handles: 1\)"):
        await host.remove_vm(vm="web01")
    host.disk("web01", "b").handles = 0
    await host.remove_vm(vm="web01")
    assert [p.name for p in host.root.iterdir()] == ["position"]


async def test_a_second_snapshot_is_refused(host: DiskHost) -> None:
    await two_disks(host)
    snapshot = await host.begin_snapshot(vm="web01")
    assert [d.name for d in snapshot.disks] == ["a", "b"]
    with pytest.raises(RigError, match="disk web01/a has a snapshot already"):
        await host.begin_snapshot(vm="web01")
    await host.end_snapshot(vm="web01")
    await host.begin_snapshot(vm="web01")


class TestReplace:
    async def staged(self, host: DiskHost, data: bytes) -> None:
        await two_disks(host)
        host.disk("web01", "a").write(0, b"old")
        for name in ("a", "b"):
            staging = await host.begin_replace(vm="web01", disk=name, size_bytes=SIZE)
            Path(staging.path).write_bytes(data)

    async def test_a_returned_disk_replaces_the_old_disk(self, host: DiskHost) -> None:
        await self.staged(host, b"new" * (SIZE // 3) + b"!")
        infos = await host.commit_replace(vm="web01", keep=[])
        assert {(d.tracked, d.needs_resync) for d in infos} == {(False, "DiskReplaced")}
        assert host.disk("web01", "a").read(0, 3) == b"new"
        assert restart(host).disk("web01", "a").read(0, 3) == b"new"

    async def test_a_disk_that_grew_at_the_recovery_side_returns_with_that_size(self, host: DiskHost) -> None:
        await two_disks(host)
        staging = await host.begin_replace(vm="web01", disk="a", size_bytes=2 * SIZE)
        Path(staging.path).write_bytes(b"new" + bytes(2 * SIZE - 6) + b"end")
        infos = await host.commit_replace(vm="web01", keep=[])
        assert [d.size_bytes for d in infos] == [2 * SIZE, SIZE]
        disk = restart(host).disk("web01", "a")
        assert (disk.state.size_bytes, disk.read(2 * SIZE - 3, 9)) == (2 * SIZE, b"end")

    async def test_a_disk_that_grew_at_the_site_keeps_that_size(self, host: DiskHost) -> None:
        await two_disks(host)
        await host.resize_disk(vm="web01", disk="a", size_bytes=2 * SIZE)
        staging = await host.begin_replace(vm="web01", disk="a", size_bytes=SIZE)
        assert (staging.size_bytes, Path(staging.path).stat().st_size) == (2 * SIZE, 2 * SIZE)
        infos = await host.commit_replace(vm="web01", keep=[])
        assert infos[0].size_bytes == 2 * SIZE

    async def test_a_staged_disk_that_is_too_short_is_refused(self, host: DiskHost) -> None:
        await two_disks(host)
        await self.staged_too_short(host)

    async def staged_too_short(self, host: DiskHost) -> None:
        staging = await host.begin_replace(vm="web01", disk="a", size_bytes=SIZE)
        Path(staging.path).write_bytes(b"short")
        with pytest.raises(RigError, match=f"has 5 bytes; the disk has {SIZE}"):
            await host.commit_replace(vm="web01", keep=[])

    @pytest.mark.parametrize(("renames", "marked"), [(0, None), (1, "DiskReplaced")])
    async def test_a_kill_never_leaves_new_bytes_with_the_old_log(
        self, host: DiskHost, monkeypatch: pytest.MonkeyPatch, renames: int, marked: str | None
    ) -> None:
        await self.staged(host, b"n" * SIZE)
        real, left = os.rename, [renames]

        def killed(path: str, target: str, **folders: int) -> None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            real(path, target, **folders)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", killed)
            with pytest.raises(KeyboardInterrupt):
                await host.commit_replace(vm="web01", keep=[])
        again = restart(host)
        disk = again.disk("web01", "a")
        assert (disk.read(0, 3), disk.state.needs_resync) == (b"old", marked)
        again.abandon()


class HeldViews(PlainViews):
    """Plain files in ``folder`` in place of managed disks; ``held`` has the pairs of managed disk and holder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.held: set[tuple[str, str]] = set()

    def open(self, managed_disk: str, position: int, holder: str, *, stored: bool = False) -> Layer:
        assert position == 42
        self.held.add((managed_disk, holder))
        return RawLayer(self._folder / managed_disk)

    def release(self, managed_disk: str, holder: str) -> None:
        self.held.discard((managed_disk, holder))

    def reconcile(self, kind: str, holders: Collection[str]) -> None:
        self.held = {(held, holder) for held, holder in self.held if not holder.startswith(f"{kind} ") or holder in holders}


class TestOpenPoint:
    async def test_the_backing_of_a_disk_is_held_as_long_as_the_disk_exists(self, tmp_path: Path) -> None:
        (tmp_path / "base").write_bytes(bytes(SIZE))
        views = HeldViews(tmp_path)
        views.held |= {("base", "vm killed/os"), ("base", "export 1")}
        host = DiskHost(tmp_path / "vms", tmp_path / "mnt", views=views)
        assert views.held == {("base", "export 1")}
        for vm in ("web01", "web02"):
            await host.create_disk_from_point(vm=vm, name="os", managed_disk="base", position=42)
        host.abandon()
        (tmp_path / "vms/web02/os.disk").write_text("rot")
        host = DiskHost(tmp_path / "vms", tmp_path / "mnt", views=views)
        both = {("base", "export 1"), ("base", "vm web01/os"), ("base", "vm web02/os")}
        assert views.held == both
        await host.remove_vm(vm="web01")
        assert views.held == both - {("base", "vm web01/os")}
        host.abandon()

    async def test_a_disk_from_a_point_is_writable_tracked_and_survives_a_kill(self, tmp_path: Path) -> None:
        (tmp_path / "base").write_bytes(b"point" + bytes(SIZE - 5))
        views = HeldViews(tmp_path)
        host = DiskHost(tmp_path / "vms", tmp_path / "mnt", views=views)
        info = await host.create_disk_from_point(vm="web01-test", name="os", managed_disk="base", position=42)
        assert info.tracked
        host.disk("web01-test", "os").write(2, b"!!")
        host.abandon()
        again = DiskHost(tmp_path / "vms", tmp_path / "mnt", views=views)
        assert again.disk("web01-test", "os").read(0, 5) == b"po!!t"
        assert (tmp_path / "base").read_bytes()[:5] == b"point"
        again.abandon()

    @pytest.mark.parametrize("failing", ["save", "OverlayLayer", "start"])
    async def test_a_creation_from_a_point_that_fails_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
    ) -> None:
        (tmp_path / "base").write_bytes(bytes(SIZE))
        views = HeldViews(tmp_path)
        host = DiskHost(tmp_path / "vms", tmp_path / "mnt", views=views)

        def full(*_args: object, **_kwargs: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            owner = {"save": DiskState, "OverlayLayer": disk_module, "start": DiskTracking}[failing]
            patch.setattr(owner, failing, full)
            with pytest.raises(RigError, match="the host's disk is full"):
                await host.create_disk_from_point(vm="web01", name="os", managed_disk="base", position=42)
        assert (host.vms, [path.name for path in host.root.iterdir()]) == ({}, ["position"])
        assert views.held == set()
        await host.create_disk_from_point(vm="web01", name="os", managed_disk="base", position=42)
        host.abandon()

    async def test_a_site_cannot_create_a_disk_from_a_point(self, host: DiskHost) -> None:
        with pytest.raises(RigError, match="this host serves a site"):
            await host.create_disk_from_point(vm="v", name="os", managed_disk="base", position=42)
