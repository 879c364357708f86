"""The disk host has the keys of managed disks before it starts, and asks the vault at each opening later."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.azure_emu.applier.disk_keys import START_S, DiskKeys
from siterig.azure_emu.disks.store import ManagedDiskStore
from siterig.azure_emu.disks.view_provider import ManagedDiskViews
from siterig.blockfs.contracts.control import MountedPointSource
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.waits import Waits
from siterig.blockfs.disk.disk_files import DiskPaths, make_over_managed_disk
from siterig.blockfs.host import disk_host
from siterig.blockfs.host.disk_host import DiskHost
from siterig.blockfs.transfer.data_keys import DataKeyGrant, DataKeys
from siterig.blockfs.transfer.envelope import DataKey
from tests.support.disks.disk_history import DISK_ID, SIZE_BYTES
from tests.support.stores.managed_disk import apply, site

ENCRYPTED, PLAIN, LATER = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
AWAY = RigError(Code.RoleUnavailable, "the vault is down", recoverable=True)
REVOKED = RigError(Code.KeyRevoked, "version 1 was revoked")


def key_of(disk_id: str) -> DataKey:
    return DataKey(uuid.UUID(disk_id), bytes(range(64)))


class Vault(DataKeys):
    """Gives out keys, and raises ``trouble`` for the next calls while it has some."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.trouble: list[RigError] = []

    async def part_key(self, *, disk_id: str, generation: int) -> DataKeyGrant:
        raise NotImplementedError

    async def disk_key(self, *, disk_id: str) -> DataKeyGrant:
        self.asked.append(disk_id)
        if self.trouble:
            raise self.trouble.pop(0)
        key = key_of(disk_id)
        return DataKeyGrant(key_id=str(key.key_id), secret_hex=key.secret.hex())


def make_disk(folder: Path, disk_id: str, key: DataKey | None) -> None:
    ManagedDiskStore.create(folder / disk_id, disk_id=disk_id, size_bytes=SIZE_BYTES, created_ns=1, key=key).close()


@pytest.fixture
def disks(tmp_path: Path) -> Path:
    make_disk(tmp_path, ENCRYPTED, key_of(ENCRYPTED))
    make_disk(tmp_path, PLAIN, None)
    (tmp_path / ".export").mkdir()
    return tmp_path


async def test_keys_are_there_on_the_trio_thread_after_the_start(disks: Path) -> None:
    vault = Vault()
    keys = DiskKeys(disks, disks.parent / "vms", vault, Waits())
    await keys.load_all()
    assert vault.asked == [ENCRYPTED]
    assert keys.get(ENCRYPTED) == key_of(ENCRYPTED)
    with pytest.raises(RigError) as caught:
        keys.get(PLAIN)
    assert caught.value.code == Code.KeyMissing
    assert vault.asked == [ENCRYPTED]


async def test_the_keys_of_vms_are_asked_for_after_their_managed_disks_are_deleted(tmp_path: Path) -> None:
    vm = tmp_path / "vms" / "web01-test"
    vm.mkdir(parents=True)
    paths = DiskPaths(vm, vm.name, "os")
    make_over_managed_disk(paths, managed_disk=LATER, position=1, size_bytes=SIZE_BYTES, key_id=LATER)
    (vm / "bad.disk").write_bytes(b"no document")
    keys = DiskKeys(tmp_path / "managed", tmp_path / "vms", Vault(), Waits())
    await keys.load_all()
    assert keys.get(LATER) == key_of(LATER)


async def test_threads_of_the_start_do_not_wait_for_the_trio_thread(disks: Path) -> None:
    """The disk host opens mounted points in threads while the trio thread waits for them."""
    keys = DiskKeys(disks, disks.parent / "vms", Vault(), Waits())
    await keys.load_all()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(keys.get, ENCRYPTED).result(timeout=10) == key_of(ENCRYPTED)


async def test_each_opening_asks_the_vault_before(disks: Path) -> None:
    vault = Vault()
    keys = DiskKeys(disks, disks.parent / "vms", vault, Waits())
    views = ManagedDiskViews(disks, keys=keys)
    await keys.load_all()
    make_disk(disks, LATER, key_of(LATER))
    await views.prepare(LATER)
    assert keys.get(LATER) == key_of(LATER)
    await views.prepare(PLAIN)
    await views.prepare(ENCRYPTED)
    assert vault.asked == [ENCRYPTED, LATER, ENCRYPTED]
    vault.trouble = [AWAY]
    await views.prepare(LATER)
    assert keys.get(LATER) == key_of(LATER)
    vault.trouble = [REVOKED, AWAY]
    for error in (REVOKED, AWAY):  # a revoked key is not held any more
        with pytest.raises(RigError) as caught:
            await views.prepare(LATER)
        assert caught.value.code == error.code
        with pytest.raises(RigError) as caught:
            keys.get(LATER)
        assert caught.value.code == error.code
    await views.prepare(LATER)
    assert keys.get(LATER) == key_of(LATER)


async def test_the_start_waits_for_a_vault_that_is_down(disks: Path, autojump_clock: trio.testing.MockClock) -> None:
    vault, waits = Vault(), Waits()
    vault.trouble = [AWAY] * 5
    keys = DiskKeys(disks, disks.parent / "vms", vault, waits)
    await keys.load_all()
    assert len(vault.asked) == 6
    assert keys.get(ENCRYPTED) == key_of(ENCRYPTED)
    assert waits.list() == []


async def test_a_start_without_a_key_names_the_reason_at_the_opening(
    disks: Path, autojump_clock: trio.testing.MockClock
) -> None:
    for error, least_s in ((AWAY, START_S), (REVOKED, 0.0)):
        vault = Vault()
        vault.trouble = [error] * 1000
        keys, begun = DiskKeys(disks, disks.parent / "vms", vault, Waits()), trio.current_time()
        await keys.load_all()
        assert least_s <= trio.current_time() - begun <= least_s + 1
        with pytest.raises(RigError) as caught:
            keys.get(ENCRYPTED)
        assert caught.value.code == error.code


async def test_disks_and_mounted_points_open_by_themselves_when_their_key_can_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_host, "OPEN_AGAIN_S", 0.01)
    disk, key = site(tmp_path), key_of(DISK_ID)
    disk.write(0, b"of the guest")
    disk.close_log()
    managed = tmp_path / "managed"
    managed.mkdir()
    store = ManagedDiskStore.create(managed / DISK_ID, disk_id=DISK_ID, size_bytes=SIZE_BYTES, created_ns=1, key=key)
    apply(store, disk.sync())
    store.close()
    vault = Vault()

    async def started() -> DiskHost:
        keys = DiskKeys(managed, tmp_path / "vms", vault, Waits())
        await keys.load_all()
        return DiskHost(tmp_path / "vms", tmp_path / "mount", views=ManagedDiskViews(managed, keys=keys))

    host = await started()
    await host.create_disk_from_point(vm="web01", name="os", managed_disk=DISK_ID, position=disk.position)
    host.disk("web01", "os").write(100, b"of the recovered VM")
    source = MountedPointSource(name="os", disk_id=DISK_ID)
    await host.open_mounted_point(vm="web01", name="point", position=disk.position, disks=[source])
    host.close()
    vault.trouble = [REVOKED] * 6
    host = await started()
    with pytest.raises(RigError, match="version 1 was revoked") as caught:
        host.disk("web01", "os")
    assert caught.value.code == Code.KeyRevoked
    assert (await host.list_mounted_points())[0].broken == REVOKED.message
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(host.open_waiting)
            while host.broken or (await host.list_mounted_points())[0].broken is not None:  # noqa: ASYNC110 (it is polled)
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert vault.trouble == []
    opened = host.disk("web01", "os")
    assert (opened.read(0, 12), opened.read(100, 19)) == (b"of the guest", b"of the recovered VM")
    points = host.disks_in("recovery/web01/point")
    assert points is not None
    assert points["os"].read(0, 12) == b"of the guest"
    host.close()
