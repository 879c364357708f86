"""An old primary that keeps running after a failover: it is reported, and a failback does not destroy what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from siterig.azure_emu.vault.service import Vault
from siterig.blockfs.changelog.disk_log import find_segments
from siterig.blockfs.changelog.segment import HEADER_BYTES
from siterig.blockfs.contracts.control import DownloadedDisk
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.host.disk_host import DiskHost
from tests.support.rigs.fake_world import World
from tests.support.rigs.vault_fakes import ended, protected, running

SIZE = 64 * 1024


async def committed(vault: Vault) -> None:
    await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
    await ended(vault, await vault.failovers.commit_failover(vm="web01"))


async def source_errors(vault: Vault) -> list[str]:
    (item,) = await vault.status.items()
    return [error.summaryMessage for error in item.healthErrors if error.errorCode == "SourceInUse"]


@pytest.mark.slow
@pytest.mark.parametrize("commit", [False, True])
async def test_writes_at_the_site_after_a_failover_are_a_warning_and_one_event(tmp_path: Path, commit: bool) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        job = await ended(vault, await vault.failovers.unplanned_failover(vm="web01", point="Latest"))
        assert job.recovery_point is not None
        if commit:
            await ended(vault, await vault.failovers.commit_failover(vm="web01"))
        await vault.sources.round()
        assert world.asked_after == [job.recovery_point.position]
        assert await source_errors(vault) == []
        world.written_bytes = {"os": 4096}
        world.site["web01"]["data"] = world.site["web01"]["data"].model_copy(update={"open_handles": 2})
        for _ in range(3):
            await vault.sources.round()
        (text,) = await source_errors(vault)
        assert text == (
            "VM 'web01' was failed over, but at the site after the recovery point: disk data: 0 bytes written, open "
            "handles: 2; disk os: 4096 bytes written; a failback replaces this, and keeps the old disks as files; it is "
            "refused while a disk is open"
        )
        assert (await vault.status.items())[0].replicationHealth == "Warning"
        assert [event.severity for event in await vault.status.events() if event.eventCode == "SourceInUse"] == ["Warning"]


@pytest.mark.slow
async def test_a_lost_site_keeps_the_last_known_state(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await committed(vault)
        world.written_bytes = {"os": 512}
        await vault.sources.round()
        world.lose_site()
        await vault.sources.round()
        assert len(await source_errors(vault)) == 1


@pytest.mark.slow
async def test_a_protected_vms_disks_are_not_watched(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        world.written_bytes = {"os": 512}
        await vault.sources.round()
        assert (world.asked_after, await source_errors(vault)) == ([], [])


@pytest.mark.slow
async def test_a_failback_names_the_lost_writes_and_keeps_these_disks_only(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await committed(vault)
        world.written_bytes = {"os": 4096}
        job = await ended(vault, await vault.failovers.failback(vm="web01"))
        assert job.state == "Succeeded"
        assert [(error.code, error.message) for error in job.errors] == [
            (
                "SourceChanged",
                "VM 'web01': at the site after the recovery point: disk os: 4096 bytes written; a failback replaces these "
                "disks, and keeps the old ones as files",
            ),
            (
                "SourceKept",
                "VM 'web01': old disks are kept as /kept/os-1.img, until siterig disk kept delete removes them",
            ),
        ]
        assert [disk.kept != [] for disk in world.site["web01"].values()] == [False, True]
        await vault.sources.round()
        assert await source_errors(vault) == []


@pytest.mark.slow
async def test_a_disk_that_is_written_to_while_the_failback_downloads_is_kept_too(tmp_path: Path) -> None:
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await committed(vault)
        real = world.called

        async def called(name: str) -> None:
            if name == "recovery.export_disk":
                world.written_bytes = {"data": None}
            await real(name)

        world.called = called  # type: ignore[method-assign]
        job = await ended(vault, await vault.failovers.failback(vm="web01"))
        assert [error.code for error in job.errors] == ["SourceKept"]
        assert [disk.kept != [] for disk in world.site["web01"].values()] == [True, False]


@pytest.mark.slow
async def test_a_second_failback_keeps_the_disks_of_the_first(tmp_path: Path) -> None:
    """Nothing tells whether they were written to since: their log begins with the reverse replication."""
    world = World()
    async with running(world, tmp_path) as vault:
        await protected(vault)
        await committed(vault)
        await ended(vault, await vault.failovers.failback(vm="web01"))
        await ended(vault, await vault.failovers.failback(vm="web01"))
        assert [disk.kept != [] for disk in world.site["web01"].values()] == [True, True]


# --- the site's disk host -----------------------------------------------------------------------------------------


@pytest.fixture
async def host(tmp_path: Path) -> DiskHost:
    host = DiskHost(tmp_path / "site", tmp_path / "mnt")
    await host.create_disk(vm="web01", name="os", size_bytes=SIZE)
    await host.start_tracking(vm="web01")
    return host


async def replace(host: DiskHost, keep: list[str]) -> None:
    staging = await host.begin_replace(vm="web01", disk="os", size_bytes=SIZE)
    Path(staging.path).write_bytes(b"n" * SIZE)
    await host.commit_replace(vm="web01", keep=keep)


async def test_bytes_written_after_a_position_are_counted(host: DiskHost) -> None:
    disk = host.disk("web01", "os")
    disk.write(0, b"a" * 4096)
    after = await host.position()
    assert [use.written_bytes for use in await host.source_use(vm="web01", after=after)] == [0]
    await host.cut(vm="web01", kind="CrashConsistent", name="tags are no writes")
    assert [use.written_bytes for use in await host.source_use(vm="web01", after=after)] == [0]
    disk.write(8192, b"b" * 512)
    await host.cut(vm="web01", kind="CrashConsistent", name="another segment")
    disk.write(0, b"c" * 1024)
    assert [use.written_bytes for use in await host.source_use(vm="web01", after=after)] == [1536]
    assert [use.written_bytes for use in await host.source_use(vm="web01", after=0)] == [1536 + 4096]
    await host.stop_tracking(vm="web01")
    assert [use.written_bytes for use in await host.source_use(vm="web01", after=after)] == [None]
    host.close()


@pytest.mark.parametrize("hurt", ["a closed segment", "the newest segment"])
async def test_if_the_log_cannot_be_read_the_written_ranges_are_unknown(host: DiskHost, hurt: str) -> None:
    disk = host.disk("web01", "os")
    after = await host.position()
    disk.write(0, b"a" * 512)
    await host.cut(vm="web01", kind="CrashConsistent", name="another segment")
    if hurt == "the newest segment":
        disk.write(0, b"b" * 512)
    segments = [path for _, path in find_segments(disk.paths.folder, disk.paths.name)]
    path = segments[0] if hurt == "a closed segment" else segments[-1]
    with path.open("r+b") as file:
        file.seek(HEADER_BYTES)
        file.write(b"x" * 64)
    assert [use.written_bytes for use in await host.source_use(vm="web01", after=after)] == [None]
    host.close()


async def test_a_kept_disk_is_an_image_with_the_old_bytes_until_it_is_deleted(host: DiskHost) -> None:
    host.disk("web01", "os").write(0, b"old")
    await replace(host, keep=["os"])
    await replace(host, keep=["os"])
    await replace(host, keep=[])
    (info,) = await host.list_disks()
    first, second = info.kept
    assert (first.disk, first.size_bytes) == ("os", SIZE)
    assert {Path(first.path).read_bytes()[:3], Path(second.path).read_bytes()[:3]} == {b"old", b"nnn"}
    host.close()
    again = DiskHost(host.root, host.mountpoint)
    assert [image.file for image in (await again.list_disks())[0].kept] == [first.file, second.file]
    with pytest.raises(RigError, match=f"has no kept image '../os.img'; it has: {first.file}, {second.file}"):
        await again.delete_kept(vm="web01", file="../os.img")
    await again.delete_kept(vm="web01", file=first.file)
    assert [image.file for image in (await again.list_disks())[0].kept] == [second.file]
    again.close()


async def test_a_replacement_is_checked_for_names_handles_and_room(host: DiskHost) -> None:
    coming = DownloadedDisk(name="os", size_bytes=SIZE, data_bytes=4096)
    await host.check_replace(vm="web01", disks=[coming])
    for disk, code in (
        (coming.model_copy(update={"name": "data"}), "DiskNotFound"),
        (coming.model_copy(update={"data_bytes": 1 << 60}), "NotEnoughSpace"),
    ):
        with pytest.raises(RigError) as caught:
            await host.check_replace(vm="web01", disks=[disk])
        assert caught.value.code == code
    with pytest.raises(RigError, match="there is no VM 'db02'"):
        await host.check_replace(vm="db02", disks=[coming])
    host.close()
