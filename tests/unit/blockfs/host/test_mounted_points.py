"""Mounted points of a disk host: names, read-only files, restarts, and the holders of managed disks."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from siterig.blockfs.core.errors import RigError
from siterig.blockfs.fuse.filesystem import DiskFileSystem
from siterig.blockfs.host.disk_host import DiskHost
from tests.support.disks.fuse_calls import NOBODY, listed
from tests.support.stores.plain_stores import Stores

MIB = 1 << 20


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    (tmp_path / "stores").mkdir()
    return Stores(tmp_path / "stores")


def host_over(stores: Stores) -> DiskHost:
    return DiskHost(stores.folder.parent / "vms", stores.folder.parent / "mnt", views=stores)


async def test_each_mounted_state_of_a_disk_has_its_own_folder(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    os_disk = stores.make("os", p1=b"one" + bytes(MIB - 3), p2=b"two" + bytes(MIB - 3))
    odd = stores.make("odd", p1=bytes(512), p2=bytes(512))
    host = host_over(stores)
    files = DiskFileSystem(host)
    assert "recovery" not in await listed(files, pyfuse3.ROOT_INODE, monkeypatch)
    made = await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[os_disk, odd])
    await host.open_mounted_point(vm="web01", name="2026-11-21T22:13:17Z", position=2, disks=[os_disk, odd])
    assert [(disk.path, disk.vhd_path) for disk in made.disks] == [
        (f"{host.mountpoint}/recovery/web01/@1/os.img", f"{host.mountpoint}/recovery/web01/@1/os.vhd"),
        (f"{host.mountpoint}/recovery/web01/@1/odd.img", None),
    ]
    found: dict[str, pyfuse3.InodeT] = {}
    folder = pyfuse3.ROOT_INODE
    for name in ("recovery", "web01", "@1"):
        there = await listed(files, folder, monkeypatch)
        parent = folder
        entry = await files.lookup(folder, name.encode(), NOBODY)
        folder = entry.st_ino
        assert there[name] == folder
        assert (await files.lookup(folder, b"..", NOBODY)).st_ino == parent
        found[name] = folder
    assert list(await listed(files, found["web01"], monkeypatch)) == ["2026-11-21T22:13:17Z", "@1"]
    assert list(await listed(files, folder, monkeypatch)) == ["odd.img", "odd.stats", "os.img", "os.stats", "os.vhd"]
    image = await files.lookup(folder, b"os.img", NOBODY)
    assert image.st_mode & 0o777 == 0o400
    handle = (await files.open(image.st_ino, os.O_RDONLY, NOBODY)).fh
    assert await files.read(handle, 0, 3) == b"one"
    await files.release(handle)
    stats = await files.lookup(folder, b"os.stats", NOBODY)
    handle = (await files.open(stats.st_ino, os.O_RDONLY, NOBODY)).fh
    assert json.loads(await files.read(handle, 0, 1 << 16))["requests"]["read"]["ops"] == 1
    await files.release(handle)
    assert stores.held == {
        (disk, position, f"recovery web01/{name}")
        for disk in ("os", "odd")
        for position, name in ((1, "@1"), (2, "2026-11-21T22:13:17Z"))
    }
    host.close()


async def test_a_mounted_state_cannot_be_written_or_grown(stores: Stores) -> None:
    host = host_over(stores)
    await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[stores.make("os", p1=bytes(MIB))])
    files = DiskFileSystem(host)
    inode = pyfuse3.ROOT_INODE
    for name in (b"recovery", b"web01", b"@1", b"os.img"):
        inode = (await files.lookup(inode, name, NOBODY)).st_ino
    for flags in (os.O_RDWR, os.O_WRONLY):
        with pytest.raises(pyfuse3.FUSEError) as failed:
            await files.open(inode, flags, NOBODY)
        assert failed.value.errno == errno.EROFS
    wanted = pyfuse3.EntryAttributes()
    wanted.st_size = 2 * MIB
    fields: Any = SimpleNamespace(update_size=True, update_mode=False, update_uid=False, update_gid=False)
    with pytest.raises(pyfuse3.FUSEError) as failed:
        await files.setattr(inode, wanted, cast(pyfuse3.SetattrFields, fields), None, NOBODY)
    assert failed.value.errno == errno.EROFS
    host.close()


async def test_mounted_states_survive_a_kill_and_end_when_closed(stores: Stores) -> None:
    disk = stores.make("os", p1=b"one" + bytes(509), p2=bytes(512))
    host = host_over(stores)
    for position in (1, 2):
        await host.open_mounted_point(vm="web01", name=f"@{position}", position=position, disks=[disk])
    before = await host.list_mounted_points()
    host.abandon()
    host = host_over(stores)
    assert await host.list_mounted_points() == before
    await host.close_mounted_point(vm="web01", name="@1")
    await host.close_mounted_point(vm="web01", name="@1")  # to close it again is no error
    host.abandon()
    host = host_over(stores)
    assert [info.name for info in await host.list_mounted_points(vm="web01")] == ["@2"]
    assert stores.held == {("os", 2, "recovery web01/@2")}
    await host.close_mounted_point(vm="web01", name="@2")
    assert host.folders("") == []
    assert stores.held == set()
    host.close()


async def test_a_state_that_cannot_be_reopened_has_a_reason_and_can_be_closed(stores: Stores) -> None:
    disk = stores.make("os", p1=bytes(512))
    host = host_over(stores)
    await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[disk])
    host.abandon()
    (stores.folder / "os" / "1").unlink()
    host = host_over(stores)
    (info,) = await host.list_mounted_points()
    assert (info.disks, info.broken) == ([], "os: position 1 is not valid")
    with pytest.raises(
        RigError, match="recovery/web01/@1 is there already and cannot be opened: os: position 1 is not valid"
    ):
        await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[disk])
    await host.close_mounted_point(vm="web01", name="@1")
    assert await host.list_mounted_points() == []
    host.close()


async def test_a_corrupt_record_is_one_broken_state_and_its_holders_stay(stores: Stores) -> None:
    disk = stores.make("os", p1=bytes(512), p2=bytes(512))
    host = host_over(stores)
    for position in (1, 2):
        await host.open_mounted_point(vm="web01", name=f"@{position}", position=position, disks=[disk])
    host.abandon()
    path = host.root / "recovery" / "web01" / "@1.json"
    good = path.read_bytes()
    for at in range(0, len(good) - 1, 7):  # a changed byte never gives another state with this name
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        host = host_over(stores)
        assert [i.name for i in await host.list_mounted_points() if i.broken is None] == ["@2"], at
        host.abandon()
    path.write_bytes(good[:-5])
    host = host_over(stores)
    infos = {info.name: info for info in await host.list_mounted_points()}
    assert infos["@2"].broken is None
    assert infos["@1"].broken is not None
    assert str(path) in infos["@1"].broken
    assert len(stores.held) == 2  # the corrupt record does not show which holder is its own
    host.close()


async def test_a_state_that_fails_to_open_leaves_nothing(stores: Stores) -> None:
    good, bad = stores.make("os", p1=bytes(512)), stores.make("data")
    host = host_over(stores)
    with pytest.raises(RigError, match="data: position 1 is not valid"):
        await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[good, bad])
    assert (stores.held, list(host.root.glob("recovery/*/*"))) == (set(), [])
    host.close()


async def test_a_state_in_use_is_not_closed(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("siterig.blockfs.host.mounted_points.RELEASE_S", 0.05)
    host = host_over(stores)
    await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[stores.make("os", p1=bytes(512))])
    disks = host.disks_in("recovery/web01/@1")
    assert disks is not None
    disks["os"].handles += 1
    with pytest.raises(RigError) as caught:
        await host.close_mounted_point(vm="web01", name="@1")
    assert (caught.value.code, caught.value.message) == (
        "RecoveryInUse",
        "recovery/web01/@1/os is in use (open handles: 1); unmount it and detach its loop devices",
    )
    disks["os"].handles -= 1
    await host.close_mounted_point(vm="web01", name="@1")
    host.close()


async def test_folders_of_a_record_become_durable_even_if_they_existed(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = stores.make("os", p1=bytes(512))
    host = host_over(stores)
    (host.root / "recovery" / "web01").mkdir(parents=True)
    synced: list[Path] = []
    fsync = os.fsync

    def record(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").readlink())
        fsync(fd)

    monkeypatch.setattr(os, "fsync", record)
    await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[disk])
    assert {host.root, host.root / "recovery", host.root / "recovery" / "web01"} <= set(synced)
    host.close()


async def test_a_name_is_reopened_only_after_all_its_holders_are_released(stores: Stores) -> None:
    disk = stores.make("os", p1=bytes(512), p2=bytes(512))
    host = host_over(stores)
    await host.open_mounted_point(vm="web01", name="@", position=1, disks=[disk])
    stores.opened.clear()
    stores.slow_at = "release"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: host.close_mounted_point(vm="web01", name="@"))
        await trio.to_thread.run_sync(stores.begun.wait)
        nursery.start_soon(lambda: host.open_mounted_point(vm="web01", name="@", position=2, disks=[disk]))
        await trio.to_thread.run_sync(stores.opened.wait, 0.2)  # it is not opened within this time
        stores.go_on.set()
    assert stores.held == {("os", 2, "recovery web01/@")}
    host.abandon()
    host = host_over(stores)
    assert [(info.position, info.broken) for info in await host.list_mounted_points()] == [(2, None)]
    host.close()


async def test_closing_a_state_waits_until_it_is_opened_completely(stores: Stores) -> None:
    disk = stores.make("os", p1=bytes(512))
    host = host_over(stores)
    stores.slow_at = "open"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: host.open_mounted_point(vm="web01", name="@1", position=1, disks=[disk]))
        await trio.to_thread.run_sync(stores.begun.wait)
        (info,) = await host.list_mounted_points()
        assert info.broken == "it is not open completely"
        nursery.start_soon(lambda: host.close_mounted_point(vm="web01", name="@1"))
        await wait_all_tasks_blocked()
        stores.go_on.set()
    assert (await host.list_mounted_points(), stores.held, list(host.root.glob("recovery/*/*"))) == ([], set(), [])
    host.close()


async def test_a_state_stays_listed_until_it_is_released_completely(stores: Stores) -> None:
    disk = stores.make("os", p1=bytes(512))
    host = host_over(stores)
    await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[disk])
    stores.failing = [OSError(errno.EIO, "Input/output error")]
    with pytest.raises(RigError, match="Input/output error"):
        await host.close_mounted_point(vm="web01", name="@1")
    (info,) = await host.list_mounted_points()
    assert (info.disks, info.broken, len(stores.held)) == ([], "it was not unmounted completely", 1)
    await host.close_mounted_point(vm="web01", name="@1")
    assert (await host.list_mounted_points(), stores.held, list(host.root.glob("recovery/*/*"))) == ([], set(), [])
    bad = stores.make("bad")
    stores.failing = [OSError(errno.EIO, "Input/output error")]
    with pytest.raises(RigError, match="Input/output error"):  # it can neither be opened nor released
        await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[disk, bad])
    assert [(info.name, info.broken) for info in await host.list_mounted_points()] == [("@1", "it is not open completely")]
    await host.close_mounted_point(vm="web01", name="@1")
    assert (await host.list_mounted_points(), stores.held, list(host.root.glob("recovery/*/*"))) == ([], set(), [])
    host.close()


async def test_names_in_use_and_invalid_names_are_refused(stores: Stores) -> None:
    disk = stores.make("os", p1=bytes(512), p2=bytes(512))
    host = host_over(stores)
    await host.open_mounted_point(vm="web01", name="@1", position=1, disks=[disk])
    with pytest.raises(RigError, match="recovery/web01/@1 is there already and is position 1; unmount it first"):
        await host.open_mounted_point(vm="web01", name="@1", position=2, disks=[disk])
    for name in ("", "..", ".x", "a/b", "a" * 128):
        with pytest.raises(RigError, match=r"^mounted point is named"):
            await host.open_mounted_point(vm="web01", name=name, position=1, disks=[disk])
    with pytest.raises(RigError, match="VM is named 'recovery': a recovery side's mount has its mounted points there"):
        await host.create_disk(vm="recovery", name="os", size_bytes=MIB)
    host.close()
    site = DiskHost(stores.folder.parent / "site", stores.folder.parent / "mnt2")
    with pytest.raises(RigError, match="this host serves a site"):
        await site.open_mounted_point(vm="web01", name="@1", position=1, disks=[disk])
    site.close()
