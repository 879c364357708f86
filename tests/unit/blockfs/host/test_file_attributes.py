"""Attributes of a disk's file in a mount: backup programs use them to decide whether they read the disk."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
from pyfuse3 import EntryAttributes

from siterig.blockfs.core import boot
from siterig.blockfs.disk.disk import Disk
from siterig.blockfs.disk.disk_state import DiskState
from siterig.blockfs.fuse.filesystem import DiskFileSystem
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.host.standalone import open_disk
from siterig.blockfs.images.image_file import open_image
from siterig.cext._core import lib
from tests.support.io_faults import WRITE, failing
from tests.support.stores.plain_stores import Stores

SIZE = 1 << 20
LONG_AGO_NS = 1_000_000_000 * 10**9 + 123_456_789
NOBODY: Any = None


def now_shown(entry: EntryAttributes) -> tuple[int, int]:
    """Return the times of the last modification and of the last change, in nanoseconds."""
    return entry.st_mtime_ns, entry.st_ctime_ns


class Mounted:
    """A host with disk ``web01/os`` and its file system, as they are after each start."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = DiskHost(folder / "disks", folder / "mnt")
        self.files = DiskFileSystem(self.host)

    @property
    def disk(self) -> Disk:
        return self.host.disk("web01", "os")

    @property
    def backing(self) -> Path:
        return self.disk.paths.file("img")

    async def inode(self, name: str) -> pyfuse3.InodeT:
        inode = pyfuse3.ROOT_INODE
        for part in name.split("/"):
            inode = (await self.files.lookup(inode, part.encode(), NOBODY)).st_ino
        return inode

    async def stat(self, name: str = "web01/os.img") -> EntryAttributes:
        return await self.files.getattr(await self.inode(name), NOBODY)

    async def set(self, name: str = "web01/os.img", **wanted: int) -> EntryAttributes:
        """Set attributes: ``mode``, ``uid``, ``gid``, ``size``, ``atime_ns`` or ``mtime_ns``."""
        names = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
        asked = {key.removesuffix("_ns") for key in wanted}
        fields = SimpleNamespace(**{f"update_{each}": each in asked for each in names})
        attributes = EntryAttributes()
        for key, value in wanted.items():
            setattr(attributes, f"st_{key}", value)
        return await self.files.setattr(
            await self.inode(name), attributes, cast("pyfuse3.SetattrFields", fields), None, NOBODY
        )

    def again(self, *, orderly: bool) -> None:
        """End the host and start it again."""
        if orderly:
            self.host.close()
        else:
            self.host.abandon()
        self.host = DiskHost(self.folder / "disks", self.folder / "mnt")
        self.files = DiskFileSystem(self.host)


@pytest.fixture
async def mounted(tmp_path: Path) -> Any:
    mounted = Mounted(tmp_path)
    await mounted.host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    yield mounted
    mounted.host.abandon()


def tick_slowly(disk: Disk) -> None:
    """Set the file's time back, like a coarse clock, which gives one time before and after a change."""
    found = os.fstat(disk.layer.fileno())
    os.utime(disk.layer.fileno(), ns=(found.st_atime_ns, LONG_AGO_NS))


def a_discard(disk: Disk) -> None:
    disk.zero(0, 4096, discard=True)


CHANGES: dict[str, Callable[[Disk], object]] = {
    "write": lambda disk: disk.write(0, b"x"),
    "write across the end": lambda disk: disk.write(SIZE - 1, b"xx"),
    "zero": lambda disk: disk.zero(0, 4096),
    "discard": a_discard,
    "resize": lambda disk: disk.resize(2 * SIZE),
    "growth by a request": lambda disk: lib.sr_disk_reach(disk.c, 2 * SIZE),
}


# --- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("tracked", [False, True], ids=["untracked", "tracked"])
@pytest.mark.parametrize("slow", [False, True], ids=["fine-clock", "slow-clock"])
async def test_each_change_moves_both_times_of_the_disk_and_of_its_vhd(
    mounted: Mounted, change: str, tracked: bool, slow: bool
) -> None:
    if tracked:
        mounted.disk.tracking.start(new_generation=False)
    if slow:
        tick_slowly(mounted.disk)
    before = await mounted.stat()
    CHANGES[change](mounted.disk)
    if slow:
        tick_slowly(mounted.disk)
    after, vhd = await mounted.stat(), await mounted.stat("web01/os.vhd")
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
    assert now_shown(vhd) == now_shown(after)
    for orderly in (True, False):
        mounted.again(orderly=orderly)
        again = await mounted.stat()
        assert again.st_mtime_ns >= after.st_mtime_ns, "the times never go back"
        assert again.st_ctime_ns >= after.st_ctime_ns


async def test_without_a_change_the_times_stay_the_same_after_clean_ends(mounted: Mounted) -> None:
    mounted.disk.tracking.start(new_generation=False)
    mounted.disk.write(0, b"x")
    before = await mounted.stat()
    mounted.disk.read(0, SIZE)
    await mounted.disk.flush()
    for _ in range(2):
        assert now_shown(await mounted.stat()) == now_shown(before)
        mounted.again(orderly=True)
    assert now_shown(await mounted.stat()) == now_shown(before)


async def test_each_change_within_one_tick_of_a_slow_clock_has_its_own_time(mounted: Mounted) -> None:
    seen = []
    for number in range(50):
        mounted.disk.write(number, b"x")
        tick_slowly(mounted.disk)
        seen.append((await mounted.stat()).st_mtime_ns)
    assert len(set(seen)) == 50
    assert seen == sorted(seen)
    mounted.again(orderly=False)
    assert (await mounted.stat()).st_mtime_ns >= seen[-1], "the time does not go back after a kill"


async def test_a_write_that_changes_no_byte_leaves_the_times(mounted: Mounted) -> None:
    mounted.disk.tracking.start(new_generation=False)
    before = await mounted.stat()
    with failing(WRITE, ".img", errno.ENOSPC), pytest.raises(OSError, match="No space"):
        mounted.disk.write(0, b"x")
    with pytest.raises(OSError, match="past the end"):
        mounted.disk.write(SIZE, b"x")
    assert now_shown(await mounted.stat()) == now_shown(before)


async def test_a_partial_write_moves_the_times(mounted: Mounted) -> None:
    before = await mounted.stat()
    with failing(WRITE, ".img", errno.ENOSPC, after_bytes=10):
        assert mounted.disk.write(0, b"x" * 100) == 10
    assert (await mounted.stat()).st_mtime_ns > before.st_mtime_ns


async def test_a_tracked_disk_that_lost_power_is_shown_as_changed(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power loss may lose the file's times but not the written bytes."""
    mounted.disk.tracking.start(new_generation=False)
    mounted.disk.write(0, b"x")
    tick_slowly(mounted.disk)
    before = await mounted.stat()
    monkeypatch.setattr(boot, "current_boot_id", lambda: "00000000-0000-4000-8000-000000000000")
    mounted.again(orderly=False)
    assert mounted.disk.state.needs_resync == "PowerLoss"
    assert (await mounted.stat()).st_mtime_ns > before.st_mtime_ns


async def test_the_log_has_the_time_of_its_last_record(mounted: Mounted) -> None:
    mounted.disk.tracking.start(new_generation=False)
    name = "web01/os.000001.hrl"
    before = await mounted.stat(name)
    began_ns = time.time_ns() - 10**9
    mounted.disk.write(0, b"x")
    after = await mounted.stat(name)
    assert before.st_mtime_ns <= after.st_mtime_ns
    assert began_ns < after.st_mtime_ns < time.time_ns() + 10**9
    assert after.st_size > before.st_size


async def test_the_counters_have_a_new_time_only_when_they_change(mounted: Mounted) -> None:
    before = await mounted.stat("web01/os.stats")
    assert now_shown(await mounted.stat("web01/os.stats")) == now_shown(before)
    handle = (await mounted.files.open(await mounted.inode("web01/os.img"), os.O_RDONLY, NOBODY)).fh
    await mounted.files.read(handle, 0, 512)
    after = await mounted.stat("web01/os.stats")
    assert after.st_mtime_ns > before.st_mtime_ns
    await mounted.files.release(handle)


async def test_a_snapshot_has_the_time_when_it_was_taken(mounted: Mounted) -> None:
    mounted.disk.tracking.start(new_generation=False)
    mounted.disk.begin_snapshot()
    before = await mounted.stat("web01/os.snapshot")
    assert abs(before.st_mtime_ns - time.time_ns()) < 60 * 10**9
    mounted.disk.write(0, b"x")
    assert now_shown(await mounted.stat("web01/os.snapshot")) == now_shown(before)


async def test_a_folder_has_the_time_of_the_last_change_of_its_names(mounted: Mounted) -> None:
    root, folder = await mounted.stat("."), await mounted.stat("web01")
    os.utime(mounted.host.root, ns=(0, LONG_AGO_NS))
    os.utime(mounted.host.root / "web01", ns=(0, LONG_AGO_NS))
    assert (await mounted.stat("web01")).st_mtime_ns == LONG_AGO_NS
    await mounted.host.create_disk(vm="web01", name="data", size_bytes=SIZE)
    assert (await mounted.stat("web01")).st_mtime_ns >= folder.st_mtime_ns
    await mounted.host.create_disk(vm="db", name="os", size_bytes=SIZE)
    assert (await mounted.stat(".")).st_mtime_ns >= root.st_mtime_ns


async def test_the_shown_space_is_the_space_that_the_disk_uses_on_the_host(mounted: Mounted) -> None:
    assert ((await mounted.stat()).st_blocks, (await mounted.stat("web01/os.vhd")).st_blocks) == (0, 1)
    mounted.disk.write(SIZE // 2, b"x" * 65536)
    stored = mounted.backing.stat().st_blocks
    assert 128 <= stored < SIZE // 512
    assert ((await mounted.stat()).st_blocks, (await mounted.stat("web01/os.vhd")).st_blocks) == (stored, stored + 1)


async def test_the_kernel_does_not_cache_attributes_that_can_change(mounted: Mounted) -> None:
    mounted.disk.tracking.start(new_generation=False)
    for name in ("os.img", "os.vhd", "os.stats", "os.000001.hrl"):
        assert (await mounted.stat(f"web01/{name}")).attr_timeout == 0


# --- another disk of the same name ----------------------------------------------------------------------------------


async def test_a_disk_that_replaces_another_one_has_another_inode(mounted: Mounted) -> None:
    before = await mounted.stat()
    await mounted.host.begin_replace(vm="web01", disk="os", size_bytes=SIZE)
    await mounted.host.commit_replace(vm="web01", keep=[])
    after = await mounted.stat()
    assert after.st_ino != before.st_ino
    assert after.st_ctime_ns > before.st_ctime_ns
    old = await mounted.files.getattr(before.st_ino, NOBODY)
    assert old.st_ino == after.st_ino, "the old inode number leads to the new disk"


async def test_a_disk_created_again_with_the_same_name_has_another_inode(mounted: Mounted) -> None:
    before = await mounted.stat()
    await mounted.host.remove_vm(vm="web01")
    await mounted.host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    after = await mounted.stat()
    assert after.st_ino != before.st_ino
    assert after.st_mtime_ns > before.st_mtime_ns


@pytest.mark.parametrize("orderly", [True, False], ids=["down", "kill"])
async def test_inode_numbers_survive_restarts_in_any_order_of_lookups(mounted: Mounted, orderly: bool) -> None:
    mounted.disk.tracking.start(new_generation=False)
    mounted.disk.write(0, b"x")  # a segment without records is removed
    names = ["web01", "web01/os.img", "web01/os.vhd", "web01/os.stats", "web01/os.000001.hrl"]
    before = {name: (await mounted.stat(name)).st_ino for name in names}
    mounted.again(orderly=orderly)
    assert {name: (await mounted.stat(name)).st_ino for name in reversed(names)} == before
    assert len(set(before.values())) == len(names)


async def test_states_of_several_points_keep_different_times_and_inodes(tmp_path: Path) -> None:
    stores = Stores(tmp_path)
    host = DiskHost(tmp_path / "azure", tmp_path / "mnt", views=stores)
    mounted = SimpleNamespace(files=DiskFileSystem(host))
    disk = stores.make("os", p1=bytes(SIZE), p2=b"x" * SIZE, p3=bytes(SIZE))
    await host.open_mounted_point(vm="web01", name="a", position=1, disks=[disk], time_ns=LONG_AGO_NS)
    await host.open_mounted_point(vm="web01", name="b", position=2, disks=[disk], time_ns=LONG_AGO_NS + 1)
    await host.open_mounted_point(vm="web01", name="c", position=3, disks=[disk])

    async def shown(name: str, file: str = "os.img") -> tuple[int, int, int]:
        entry = await Mounted.stat(cast("Mounted", _Looking(mounted.files)), f"recovery/web01/{name}/{file}")
        return entry.st_mtime_ns, entry.st_ctime_ns, entry.st_ino

    first = {name: await shown(name) for name in "abc"}
    assert first["a"][:2] == (LONG_AGO_NS, LONG_AGO_NS)
    assert first["b"][:2] == (LONG_AGO_NS + 1, LONG_AGO_NS + 1)
    assert abs(first["c"][0] - time.time_ns()) < 60 * 10**9, "a state without a time has the time of its mount"
    assert (await shown("a", "os.vhd"))[:2] == first["a"][:2]
    assert len({ino for _, _, ino in first.values()}) == 3
    host.close()
    host = DiskHost(tmp_path / "azure", tmp_path / "mnt", views=stores)
    mounted.files = DiskFileSystem(host)
    assert {name: await shown(name) for name in "cba"} == first
    host.close()


class _Looking:
    """The part of :class:`Mounted` that looks up a path."""

    def __init__(self, files: DiskFileSystem) -> None:
        self.files = files

    inode = Mounted.inode


# --- touch, chmod, chown --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orderly", [True, False], ids=["down", "kill"])
async def test_times_that_a_program_sets_stay_until_the_disk_changes(mounted: Mounted, orderly: bool) -> None:
    mounted.disk.tracking.start(new_generation=False)
    await mounted.disk.flush()
    before = await mounted.stat()
    set_to = await mounted.set(mtime_ns=LONG_AGO_NS, atime_ns=5)
    assert (set_to.st_mtime_ns, set_to.st_atime_ns) == (LONG_AGO_NS, 5)
    assert set_to.st_ctime_ns > before.st_ctime_ns, "setting the time is a change too"
    mounted.again(orderly=orderly)
    again = await mounted.stat()
    assert (again.st_mtime_ns, again.st_atime_ns, again.st_ctime_ns) == (LONG_AGO_NS, 5, set_to.st_ctime_ns)
    mounted.disk.write(0, b"x")
    after = await mounted.stat()
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > set_to.st_ctime_ns


async def test_a_time_in_the_future_is_replaced_at_the_next_write(mounted: Mounted) -> None:
    future_ns = time.time_ns() + 10**18
    await mounted.set(mtime_ns=future_ns)
    tick_slowly(mounted.disk)
    mounted.disk.write(0, b"x")
    assert LONG_AGO_NS < (await mounted.stat()).st_mtime_ns < future_ns


async def test_the_access_time_alone_can_be_set(mounted: Mounted) -> None:
    before = await mounted.stat()
    after = await mounted.set(atime_ns=7)
    assert (after.st_atime_ns, after.st_mtime_ns) == (7, before.st_mtime_ns)


@pytest.mark.parametrize("orderly", [True, False], ids=["down", "kill"])
async def test_mode_and_owner_that_a_program_sets_stay(mounted: Mounted, orderly: bool) -> None:
    before = await mounted.stat()
    assert before.st_mode & 0o7777 == 0o600
    await mounted.set(mode=0o660)
    await mounted.set(gid=1234)
    await mounted.set(uid=4321)
    mounted.disk.write(0, b"x")
    mounted.again(orderly=orderly)
    after = await mounted.stat()
    assert (after.st_mode & 0o7777, after.st_uid, after.st_gid) == (0o660, 4321, 1234)
    assert after.st_ctime_ns > before.st_ctime_ns
    assert mounted.backing.stat().st_mode & 0o777 == 0o600, "only its owner can still access the file on the host"
    assert (mounted.backing.stat().st_uid, mounted.backing.stat().st_gid) == (os.getuid(), os.getgid())
    await mounted.host.begin_replace(vm="web01", disk="os", size_bytes=SIZE)
    await mounted.host.commit_replace(vm="web01", keep=[])
    replaced = await mounted.stat()
    assert (replaced.st_mode & 0o7777, replaced.st_gid) == (0o660, 1234)


async def refused(mounted: Mounted, name: str, **wanted: int) -> int:
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await mounted.set(name, **wanted)
    return int(failed.value.errno)


@pytest.mark.parametrize("mode", [0o4600, 0o2600, 0o1600])
async def test_setuid_setgid_and_sticky_bits_are_refused(mounted: Mounted, mode: int) -> None:
    assert await refused(mounted, "web01/os.img", mode=mode) == errno.EPERM


@pytest.mark.parametrize("name", ["web01", "web01/os.vhd", "web01/os.stats", "web01/os.000001.hrl", "web01/os.snapshot"])
@pytest.mark.parametrize("wanted", [{"mode": 0o666}, {"uid": 7}, {"gid": 7}, {"mtime_ns": 5}, {"atime_ns": 5}, {"size": 0}])
async def test_attributes_of_folders_and_derived_files_cannot_be_set(
    mounted: Mounted, name: str, wanted: dict[str, int]
) -> None:
    mounted.disk.tracking.start(new_generation=False)
    mounted.disk.begin_snapshot()
    before = (await mounted.stat(name)).st_mode
    assert await refused(mounted, name, **wanted) == errno.EPERM
    assert (await mounted.stat(name)).st_mode == before


@pytest.mark.parametrize("wanted", [{"mode": 0o666}, {"uid": 7}, {"mtime_ns": 5}, {"size": 0}])
async def test_attributes_of_a_mounted_point_cannot_be_set(tmp_path: Path, wanted: dict[str, int]) -> None:
    stores = Stores(tmp_path)
    host = DiskHost(tmp_path / "azure", tmp_path / "mnt", views=stores)
    await host.open_mounted_point(vm="web01", name="a", position=1, disks=[stores.make("os", p1=bytes(SIZE))])
    looking = _Looking(DiskFileSystem(host))
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await Mounted.set(cast("Mounted", looking), "recovery/web01/a/os.img", **wanted)
    assert failed.value.errno == errno.EROFS
    host.close()


async def test_a_state_file_without_shown_attributes_is_read_as_before(mounted: Mounted) -> None:
    path = mounted.disk.paths.file("disk")
    assert DiskState.load(path).shown.mode is None
    await mounted.set(mode=0o640)
    assert DiskState.load(path).shown.mode == 0o640


async def test_attributes_that_cannot_be_saved_are_not_shown(mounted: Mounted, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_state: DiskState, _path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = await mounted.stat()
    monkeypatch.setattr(DiskState, "save", full)
    assert await refused(mounted, "web01/os.img", mode=0o660) == errno.ENOSPC
    assert await refused(mounted, "web01/os.img", mtime_ns=5) == errno.ENOSPC
    after = await mounted.stat()
    assert (after.st_mode, now_shown(after)) == (before.st_mode, now_shown(before))


# --- a stand-alone disk --------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    yield path


async def shown_of(
    image: Path, use: Callable[[Disk], object], *, tracked: bool, kill: bool = False
) -> list[EntryAttributes]:
    """Mount the image, use the disk and end; return the attributes from before and after the use."""
    opened = await open_image(image, read_only=False)
    alone = open_disk(opened, "disk", tracked=tracked)
    looking = _Looking(DiskFileSystem(alone.tree))
    seen = [await Mounted.stat(cast("Mounted", looking), "disk.img")]
    use(alone.disk)
    seen.append(await Mounted.stat(cast("Mounted", looking), "disk.img"))
    if kill:
        alone.abandon()
    else:
        alone.close()
    opened.close()
    return seen


@pytest.mark.parametrize("kill", [False, True], ids=["end", "kill"])
@pytest.mark.parametrize("tracked", [False, True], ids=["untracked", "tracked"])
async def test_a_disk_has_the_times_of_its_image_and_the_image_keeps_them(image: Path, tracked: bool, kill: bool) -> None:
    before, after = await shown_of(image, lambda disk: disk.write(0, b"x"), tracked=tracked, kill=kill)
    assert before.st_mtime_ns == LONG_AGO_NS
    assert after.st_mtime_ns > LONG_AGO_NS
    again, _ = await shown_of(image, lambda _: None, tracked=tracked)
    assert again.st_mtime_ns >= after.st_mtime_ns
    assert again.st_ctime_ns >= after.st_ctime_ns
    assert again.st_ino == after.st_ino
    assert image.stat().st_mtime_ns == again.st_mtime_ns


async def test_an_image_without_a_log_has_the_same_inode_in_the_next_mount(image: Path) -> None:
    first, _ = await shown_of(image, lambda _: None, tracked=False)
    second, _ = await shown_of(image, lambda _: None, tracked=False)
    assert (second.st_ino, now_shown(second)) == (first.st_ino, now_shown(first))


async def test_a_time_set_in_a_mount_without_a_log_stays_on_the_image(image: Path) -> None:
    opened = await open_image(image, read_only=False)
    alone = open_disk(opened, "disk", tracked=False)
    looking = _Looking(DiskFileSystem(alone.tree))
    alone.disk.write(0, b"x")
    await Mounted.set(cast("Mounted", looking), "disk.img", mtime_ns=5 * 10**9, atime_ns=10**9)
    alone.close()
    opened.close()
    assert image.stat().st_mtime_ns == 5 * 10**9
    assert list(image.parent.iterdir()) == [image]
