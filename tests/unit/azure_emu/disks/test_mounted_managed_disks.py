"""Mounted states of real managed disks, while parts are applied and the journal is folded away beside them."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.disks.pins import pins
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view_provider import ManagedDiskViews
from siterig.blockfs.contracts.control import MountedPointSource
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.host.disk_host import DiskHost
from tests.support.disks.disk_history import DISK_ID, SiteDisk
from tests.support.stores.managed_disk import apply, assert_same, new_store, site


@pytest.fixture(autouse=True)
def small_journal_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fold deletes some of many journal files."""
    monkeypatch.setattr("siterig.azure_emu.disks.journal.JOURNAL_FILE_BYTES", 50_000)


@pytest.fixture
def managed(tmp_path: Path) -> Path:
    """The folder of all managed disks."""
    folder = tmp_path / "disks"
    folder.mkdir()
    return folder


def history(managed: Path) -> tuple[SiteDisk, ManagedDiskStore, list[int]]:
    """A disk with its positions of ten log parts."""
    disk, store = site(managed.parent), new_store(managed)
    disk.scribble(10)
    disk.close_log()
    apply(store, disk.sync())
    ends = []
    for number in range(10):
        disk.scribble(15)
        disk.tag(str(number))
        ends.append(disk.position)
        apply(store, [disk.close_log()])
    return disk, store, ends


def host_over(managed: Path) -> DiskHost:
    return DiskHost(managed.parent / "vms", managed.parent / "mnt", views=ManagedDiskViews(managed))


def read(host: DiskHost, name: str) -> bytes:
    disks = host.disks_in(f"recovery/web01/{name}")
    assert disks is not None
    return disks["os"].read(0, disks["os"].size_bytes)


async def test_compaction_does_not_change_mounted_states(managed: Path) -> None:
    disk, store, ends = history(managed)
    source = MountedPointSource(name="os", disk_id=DISK_ID)
    host = host_over(managed)
    mounted = {f"@{position}": position for position in (ends[2], ends[4] - 3, ends[7])}
    for name, position in mounted.items():
        await host.open_mounted_point(vm="web01", name=name, position=position, disks=[source])

    def all_the_same(what: str) -> None:
        for name, position in mounted.items():
            want = disk.states[max(at for at in disk.states if at <= position)]
            assert_same(read(host, name), want, f"{what}: {name}")

    all_the_same("mounted")
    assert store.compactor.compact(ends[9]) == ends[2]  # never past what is mounted
    all_the_same("folded")
    disk.scribble(15)
    apply(store, [disk.close_log()])
    host.abandon()
    host = host_over(managed)  # killed, and started again
    all_the_same("opened again")
    oldest = f"@{ends[2]}"
    await host.close_mounted_point(vm="web01", name=oldest)
    del mounted[oldest]
    floor = store.compactor.compact(ends[9])
    assert ends[2] < floor <= ends[4] - 3
    all_the_same("folded further")
    with pytest.raises(RigError) as caught:
        await host.open_mounted_point(vm="web01", name=oldest, position=ends[2], disks=[source])
    assert caught.value.code == "InvalidPosition"
    for name in list(mounted):
        await host.close_mounted_point(vm="web01", name=name)
    assert pins(store.folder) == []
    assert store.compactor.compact(ends[9]) == ends[9]
    host.close()
    store.close()


async def test_a_managed_disk_that_is_gone_is_a_broken_state_that_can_be_unmounted(managed: Path) -> None:
    _, store, ends = history(managed)
    source = MountedPointSource(name="os", disk_id=DISK_ID)
    host = host_over(managed)
    await host.open_mounted_point(vm="web01", name="@x", position=ends[3], disks=[source])
    host.abandon()
    store.delete()
    host = host_over(managed)
    (info,) = await host.list_mounted_points()
    assert info.broken is not None
    assert "there is no managed disk" in info.broken
    await host.close_mounted_point(vm="web01", name="@x")
    assert await host.list_mounted_points() == []
    host.close()


async def test_a_byte_that_rots_is_an_error_of_the_read_and_never_served(managed: Path) -> None:
    disk, store, ends = history(managed)
    source = MountedPointSource(name="os", disk_id=DISK_ID)
    host = host_over(managed)
    await host.open_mounted_point(vm="web01", name="@x", position=ends[9], disks=[source])
    want = disk.states[ends[9]]
    rotten = 0
    for journal_file in (store.folder / "journal").iterdir():
        data = bytearray(journal_file.read_bytes())
        for at in range(2000, len(data) - 2000, 3001):
            data[at] ^= 1
        journal_file.write_bytes(data)
    disks = host.disks_in("recovery/web01/@x")
    assert disks is not None
    for at in range(0, len(want), 4096):
        try:
            assert_same(disks["os"].read(at, 4096), want[at : at + 4096], f"byte {at}")
        except OSError:
            rotten += 1
    assert rotten > 0
    host.abandon()
    store.close()
