"""Free space on the host is checked before an operation uses it; errors name the needed and free bytes, and the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from siterig.blockfs.contracts.control import BackingImage, DownloadedDisk
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.disk.hydration import FREE_BYTES_MIN
from siterig.blockfs.files.free_space import require_free_space
from siterig.blockfs.host.disk_host import DiskHost
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.stores.plain_bases import make_store, open_host

MIB = 1 << 20
BLOCK_BYTES = 4096


def limit_room(monkeypatch: pytest.MonkeyPatch, free_bytes: int) -> None:
    blocks = free_bytes // BLOCK_BYTES
    small = os.statvfs_result((BLOCK_BYTES, BLOCK_BYTES, 1 << 30, blocks, blocks, 10, 10, 10, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _path: small)


def test_needed_bytes_on_one_file_system_are_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    limit_room(monkeypatch, 2 * MIB)
    require_free_space([(first, MIB), (second, MIB)], "VM 'x'", "its disks need")
    with pytest.raises(RigError) as caught:
        require_free_space([(first, MIB), (second, MIB + 1)], "VM 'x'", "its disks need")
    assert caught.value.code == "NotEnoughSpace"
    assert caught.value.message == f"VM 'x': {2 * MIB} bytes are free at {second}; its disks need {2 * MIB + 1}"


async def test_keeping_a_thin_disk_needs_room_for_its_flat_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = tmp_path / "parent.img"
    parent.write_bytes(b"\1" * (2 * MIB))
    host = DiskHost(tmp_path / "disks", tmp_path / "mnt")
    backing = BackingImage(path=str(parent), format="raw")
    await host.create_disk(vm="web01", name="os", size_bytes=2 * MIB, backing=backing)
    coming = DownloadedDisk(name="os", size_bytes=2 * MIB, data_bytes=MIB)
    limit_room(monkeypatch, 3 * MIB - BLOCK_BYTES)
    await host.check_replace(vm="web01", disks=[coming])
    kept = coming.model_copy(update={"keeps_old": True})
    with pytest.raises(RigError, match=rf"are free at {tmp_path}/disks/web01; .* need {3 * MIB}$") as caught:
        await host.check_replace(vm="web01", disks=[kept])
    assert caught.value.code == "NotEnoughSpace"
    limit_room(monkeypatch, 3 * MIB)
    await host.check_replace(vm="web01", disks=[kept])
    host.abandon()


async def test_disks_become_independent_only_with_room_for_all_their_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = open_host(tmp_path)
    await host.create_disk_from_point(vm="web01", name="os", managed_disk=make_store(tmp_path / "store").name, position=1)
    layer = host.disk("web01", "os").layer
    lacking_bytes = sum(length for _, length in layer.data_ranges())
    assert lacking_bytes > 0
    room_bytes = -(-(lacking_bytes + FREE_BYTES_MIN) // BLOCK_BYTES) * BLOCK_BYTES
    limit_room(monkeypatch, room_bytes - BLOCK_BYTES)
    with pytest.raises(RigError, match=rf"bytes are free at {tmp_path}/disks/web01; .* its disks need \d+$") as caught:
        await host.check_hydration(vm="web01")
    assert caught.value.code == "NotEnoughSpace"
    limit_room(monkeypatch, room_bytes)
    await host.check_hydration(vm="web01")
    with pytest.raises(RigError, match="there is no VM 'nobody'"):
        await host.check_hydration(vm="nobody")
    host.abandon()


async def test_a_vm_whose_images_do_not_fit_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path / "rig")
    images = {name: tmp_path / f"{name}.img" for name in ("os", "data")}
    for image in images.values():
        image.write_bytes(b"\1" * MIB)
    disks = [DiskSpec(name=name, size_bytes=4 * MIB, image=str(image)) for name, image in images.items()]
    async with rig.agent() as agent:
        limit_room(monkeypatch, 2 * MIB - BLOCK_BYTES)
        with pytest.raises(
            RigError, match=r"VM 'new': \d+ bytes are free at .*; the contents of its images need "
        ) as caught:
            await agent.create_vm(vm="new", disks=disks)
        assert caught.value.code == "NotEnoughSpace"
        assert rig.guests.filled == []
        assert {disk.vm for disk in await agent.list_vms()} == set()
        limit_room(monkeypatch, 3 * MIB)
        await agent.create_vm(vm="new", disks=disks)
        assert len(rig.guests.filled) == 2


async def test_a_loop_device_on_an_image_is_found_by_the_prerequisites_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path / "rig")

    async def loops_on(_identity: tuple[int, int], path: str) -> list[str]:
        return ["/dev/loop7"] if path.endswith("data.img") else []

    monkeypatch.setattr("siterig.blockfs.guests.loop_devices.loops_on", loops_on)
    await rig.make_vm()
    async with rig.agent() as agent:
        with pytest.raises(RigError, match=r"loop device /dev/loop7 is attached to .*data.img") as caught:
            await agent.check_vm(vm=VM)
        assert caught.value.code == "DiskInUse"
