"""A marker that a guest writes is in no file of the recovery side: account, managed disks, database, logs, deleted files.

One rig is used for all steps: a spool and a killed applier with parts in the account, a mounted point, a VM of a test
failover, killed roles, and a revoked key; then the failover, its commit with the hydration of the disk, and the failback; at
last a VM whose managed disk begins with an image.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
from pathlib import Path

import pytest
import trio
import zstandard

from siterig.azure_emu.vault.model.seed_source import SeedSource
from siterig.blockfs.changelog.segment import SegmentReader, scan_tail
from siterig.blockfs.contracts.bandwidth import BYTES_S_MIN, BandwidthLimit
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import RigError
from siterig.testing.testbed import Testbed
from tests.support.rigs.jobs import ended
from tests.support.rigs.plaintext import deleted_files, files_below, has, new_marker, pieces_of, with_children

pytestmark = pytest.mark.system

VM, SEEDED = "web01", "seeded01"
DISK_BYTES, SEEDED_BYTES = 8 << 20, 64 << 20
INTERVAL_S = 1
WITHIN_S = 120
"""The time limit of a wait, far beyond the promised times: a loaded machine is slow, and no test asserts a duration."""
SEED = int(os.environ.get("SITERIG_SEED", random.SystemRandom().randrange(1 << 32)))
DRAWS = random.Random(SEED)
MARKER, GUEST = new_marker(DRAWS), new_marker(DRAWS)
"""Bytes that the source writes, and bytes that only the guest of a recovered VM writes."""
SEALED = b"SRIGSEAL"
SLOWEST = BandwidthLimit(work_days=[], work_begin_s=0, work_end_s=0, work_bytes_s=None, other_bytes_s=BYTES_S_MIN)


def write_marker(disk: Path, number: int, marker: bytes = MARKER) -> None:
    """Write the marker to aligned places and to others, within random bytes and within text, and sync."""
    fd = os.open(disk, os.O_RDWR)
    try:
        for at in range(number * 4096, DISK_BYTES - 65536, 1 << 20):
            os.pwrite(fd, marker * 50, at)
            os.pwrite(fd, marker, at + 32768 + 7 * number + 1)
            os.pwrite(fd, (b"level=info status=ok " * 40 + marker) * 3, at + 40_000)
            os.pwrite(fd, DRAWS.randbytes(5000) + marker + DRAWS.randbytes(5000), at + 44_000)
        os.fsync(fd)
    finally:
        os.close(fd)


async def assert_no_marker(rig: Testbed, what: str) -> None:
    """Search all files of the rig, but those of the site and the mounts, and all deleted files of the recovery side."""
    layout, pids, pieces = rig.layout, await pids_of(rig), pieces_of([MARKER, GUEST])
    others = {layout.site_disks, layout.agent, *mounts(rig)}

    def search() -> list[str]:
        paths = [*files_below(layout.root, others), *deleted_files(pids)]
        return [str(path) for path in paths if has(path, pieces)]

    assert await trio.to_thread.run_sync(search) == [], what


def mounts(rig: Testbed) -> set[Path]:
    return {rig.layout.site_mount, rig.layout.azure_mount}


async def pids_of(rig: Testbed) -> set[int]:
    """Return the processes of the recovery side, with the helpers that they have started."""
    roles = [role for role in (await rig.supervisor.status()).roles if role.name not in ("site", "agent")]
    return with_children(role.pid for role in roles if role.pid is not None)


async def the_search_finds_plaintext(rig: Testbed) -> None:
    """Plant a marker for a moment: compressed, at an odd byte behind a hole of a hidden file."""
    planted = rig.layout.managed_disks / ".planted"
    with planted.open("xb") as file:
        file.seek((3 << 20) + 7)
        file.write(zstandard.ZstdCompressor().compress(b"text " * 100 + MARKER))
    with pytest.raises(AssertionError, match=r"\.planted"):
        await assert_no_marker(rig, "planted")
    planted.unlink()


async def kill(rig: Testbed, name: str) -> None:
    """Kill a role (SIGKILL) and start it again, so that the supervisor does not count it as one that ends by itself."""
    await rig.supervisor.kill_role(name=name, hold=True)
    await rig.supervisor.start_role(name=name)


async def newest(rig: Testbed) -> int:
    return (await rig.vault.points(vm=VM, limit=1))[0].position


async def opens_again(rig: Testbed) -> None:
    """Wait until the disk host has opened the disk of the test VM by itself."""
    with trio.fail_after(WITHIN_S):
        while True:
            try:
                await rig.azure.counters(vm=f"{VM}-test", disk="os")
            except RigError as error:
                assert error.code == "KeyRevoked", error.message
                await trio.sleep(0.2)
            else:
                return


async def points_come(rig: Testbed) -> None:
    seen = await newest(rig)
    with trio.fail_after(WITHIN_S):
        while await newest(rig) <= seen:  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.2)


async def writes_of_a_recovered_vm(rig: Testbed, disk: Path) -> None:
    """Write to a recovered disk, end its host, and read its log, which the mount decrypts."""
    for number in (3, 4):
        await trio.to_thread.run_sync(write_marker, disk, number, GUEST)
        await assert_no_marker(rig, "after writes of a guest")
        await kill(rig, "azure")
        await assert_no_marker(rig, "after a kill of the disk host")
        assert await trio.to_thread.run_sync(has, disk, [GUEST])
    (log,) = sorted(disk.parent.glob("os.*.hrl"))[:1]
    with SegmentReader(log) as reader:
        assert GUEST in b"".join(reader.payload(record) for record in scan_tail(reader).records)


async def seeded_protection(rig: Testbed, folder: Path) -> None:
    """Protect a disk of which one block differs from its image (qcow2), and kill the applier while it reads the image."""
    vm = await rig.vault.create_vm(vm=SEEDED, disks=[DiskSpec(name="os", size_bytes=SEEDED_BYTES)])
    disk, raw, image = Path(vm.disks[0].path), folder / "seed.raw", folder / "seed.qcow2"

    def prepare() -> None:
        content = bytearray(random.Random(5).randbytes(SEEDED_BYTES))
        for at in range(0, SEEDED_BYTES, 4 << 20):
            content[at : at + len(MARKER)] = MARKER
        raw.write_bytes(content)
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(image)], check=True)
        with disk.open("r+b") as file:
            file.write(content)
            file.seek(33 << 20)
            file.write(MARKER * 10)
            os.fsync(file.fileno())

    await trio.to_thread.run_sync(prepare)
    before = image.stat().st_mtime_ns, hashlib.sha256(image.read_bytes()).hexdigest()
    job = await rig.vault.enable_protection(
        vm=SEEDED, interval_s=INTERVAL_S, seeds=[SeedSource(disk=None, image=str(image))]
    )
    with trio.fail_after(WITHIN_S):
        while True:
            progress = await rig.vault.progress(vm=SEEDED)
            if progress.phase == "OfflineSeed" and progress.disks[0].done_bytes:
                break
            assert (await rig.vault.job(name=job.name)).endTime is None
            await trio.sleep(0.01)
    await assert_no_marker(rig, "while an image is read")
    await kill(rig, "applier")
    await ended(rig, job)
    job = await rig.vault.job(name=job.name)
    assert job.copied is not None
    assert (job.copied.phase, job.copied.total_bytes) == ("Resynchronization", SEEDED_BYTES)
    assert 0 < job.copied.sent_bytes < 1 << 20
    await assert_no_marker(rig, "after a replication from an image")
    assert (await rig.vault.verify(vm=SEEDED)).differing_bytes == 0
    assert (image.stat().st_mtime_ns, hashlib.sha256(image.read_bytes()).hexdigest()) == before
    await ended(rig, await rig.vault.disable_protection(vm=SEEDED))


async def hydrated(rig: Testbed) -> None:
    with trio.fail_after(WITHIN_S):
        while any(disk.promotion for disk in await rig.azure.list_disks()):  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.2)


async def failover_and_failback(rig: Testbed, source: Path) -> None:
    await ended(rig, await rig.vault.cleanup_test_failover(vm=VM))
    for name in ("now", "later"):
        await rig.vault.unmount_point(vm=VM, name=name)
    job = await ended(rig, await rig.vault.planned_failover(vm=VM))
    assert job.result is not None
    disk = Path(job.result.disks[0].path)
    await trio.to_thread.run_sync(write_marker, disk, 5, GUEST)
    await ended(rig, await rig.vault.commit_failover(vm=VM))
    await kill(rig, "azure")
    await trio.to_thread.run_sync(write_marker, disk, 6, GUEST)
    await hydrated(rig)
    await assert_no_marker(rig, "after the hydration")
    await kill(rig, "azure")
    expected = await trio.to_thread.run_sync(disk.read_bytes)
    assert MARKER in expected
    assert GUEST in expected
    await ended(rig, await rig.vault.failback(vm=VM))
    await assert_no_marker(rig, "after the failback")
    await ended(rig, await rig.vault.commit_failover(vm=VM))
    assert await trio.to_thread.run_sync(source.read_bytes) == expected
    await assert_no_marker(rig, "at the end")


async def protected_with_a_spool(rig: Testbed) -> None:
    """Protect the VM, and kill the applier while the spool of the site has a part, which then is in the account, too."""
    await rig.vault.set_bandwidth(limit=SLOWEST)
    job = await rig.vault.enable_protection(vm=VM, interval_s=INTERVAL_S)
    with trio.fail_after(WITHIN_S):
        while not spooled(rig):  # noqa: ASYNC110 (another process changes it)
            await trio.sleep(0.05)
    await rig.supervisor.kill_role(name="applier", hold=True)
    await assert_no_marker(rig, "with a part that is being sent")
    await rig.vault.set_bandwidth(limit=None)
    with trio.fail_after(WITHIN_S):
        while not account_parts(rig):  # noqa: ASYNC110
            await trio.sleep(0.2)
    assert any(has(path, pieces_of([MARKER])) for path in spooled(rig)), "the search does not see into a compressed part"
    await assert_no_marker(rig, "with a spool, a killed applier and its parts in the account")
    await rig.supervisor.start_role(name="applier")
    await ended(rig, job)


def spooled(rig: Testbed) -> list[Path]:
    return [*rig.layout.agent.rglob("*.sync.hrl.zst")]


def account_parts(rig: Testbed) -> list[Path]:
    return [path for path in rig.layout.azurite.rglob("*") if path.is_file() and has(path, [SEALED])]


async def test_a_marker_of_the_guest_is_in_no_file_of_the_recovery_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"SITERIG_SEED={SEED}")
    temporary = tmp_path / "rig" / "tmp"
    monkeypatch.setenv("TMPDIR", str(temporary))
    async with Testbed.up(tmp_path / "rig") as rig:
        temporary.mkdir()
        for pid in await pids_of(rig):
            assert "Max core file size        0                    0 " in Path(f"/proc/{pid}/limits").read_text()
        vm = await rig.vault.create_vm(vm=VM, disks=[DiskSpec(name="os", size_bytes=DISK_BYTES)])
        disk = Path(vm.disks[0].path)
        write_marker(disk, 0)
        await the_search_finds_plaintext(rig)
        await protected_with_a_spool(rig)
        await assert_no_marker(rig, "after the initial replication")
        write_marker(disk, 1)
        await points_come(rig)
        await points_come(rig)
        await assert_no_marker(rig, "after delta cycles")

        mounted = await rig.vault.mount_point(vm=VM, name="now")
        for _ in range(2):
            assert await trio.to_thread.run_sync(has, Path(mounted.disks[0].path), [MARKER])
            await assert_no_marker(rig, "with a mounted point")
            await kill(rig, "azure")
        job = await ended(rig, await rig.vault.test_failover(vm=VM, point="LatestProcessed"))
        assert job.result is not None
        assert await trio.to_thread.run_sync(has, Path(job.result.disks[0].path), [MARKER])
        await assert_no_marker(rig, "with a VM of a test failover")
        await writes_of_a_recovered_vm(rig, Path(job.result.disks[0].path))

        await rig.vault.rotate_key()
        await rig.vault.revoke_key(version=1)
        await points_come(rig)
        await kill(rig, "vault")
        await rig.vault.revoke_key(version=2)
        with pytest.raises(RigError) as caught:
            await rig.vault.mount_point(vm=VM, name="later")
        assert caught.value.code == "KeyRevoked"
        assert "siterig key restore 2" in caught.value.message
        await kill(rig, "azure")
        with pytest.raises(RigError) as caught:  # its VM does not start
            await rig.azure.counters(vm=f"{VM}-test", disk="os")
        assert caught.value.code == "KeyRevoked"
        assert "siterig key restore 2" in caught.value.message
        await rig.vault.restore_key(version=2)
        await opens_again(rig)
        await points_come(rig)
        assert await trio.to_thread.run_sync(has, Path(job.result.disks[0].path), [GUEST])
        await rig.vault.mount_point(vm=VM, name="later")
        secrets = [line.split(b'"')[3] for line in rig.layout.vault_keys.read_bytes().split(b"{") if b"secret_hex" in line]
        for path in files_below(rig.layout.root, mounts(rig)):
            assert path == rig.layout.vault_keys or not has(path, secrets), path
        await failover_and_failback(rig, disk)
        await seeded_protection(rig, tmp_path)
