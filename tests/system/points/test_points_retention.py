"""Tests of retention while failover VMs lie on positions between points, with real processes and a real mount."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.points.points_rig import Rig, recovery_side
from tests.system.points.points_source import HOUR, VM, Images, kept, same

pytestmark = pytest.mark.system

HOURS = 2
"""Hours of history in the policy."""
DAY = 8
"""Hours that pass while the VM exists."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a short name, because it contains sockets."""
    folder = tmp_path_factory.mktemp("r")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def between(rig: Rig) -> tuple[int, Images]:
    """Write to both disks without a point at once, and return a position in between and the disks' contents there."""
    for name in rig.source.disks:
        rig.source.write(name, 4)
    position = rig.source.position
    for name in rig.source.disks:
        rig.source.write(name, 4)
    return position, rig.source.images(position)


async def an_hour(rig: Rig) -> None:
    """Let an hour pass: apply three points, and run the policies."""
    for _ in range(3):
        rig.source.advance(HOUR // 3)
        for name in rig.source.disks:
            rig.source.write(name, 6)
        rig.source.tag("CrashConsistent")
    await rig.source.deliver_all()
    await rig.settled()
    await rig.policies()


async def failed_over(rig: Rig, position: int) -> dict[str, Path]:
    """Return the disks of a test failover's VM at a position."""
    job = await rig.ended(await rig.vault.test_failover(vm=VM, point=f"@{position}"))
    assert (job.state, job.recovery_point and job.recovery_point.position) == ("Succeeded", position)
    assert job.result is not None
    return {disk.name: Path(disk.path) for disk in job.result.disks}


async def test_retention_continues_around_vms_and_their_space_is_freed(folder: Path) -> None:
    async with recovery_side(folder / "rig", random.Random(20261122)) as rig:
        await rig.protect(HOURS)
        await an_hour(rig)
        position, images = between(rig)
        await an_hour(rig)
        assert position not in {point.position for point in await rig.vault.points(vm=VM)}
        disks = await failed_over(rig, position)
        written = {name: bytearray(data) for name, data in images.items()}
        for hour in range(DAY):
            await an_hour(rig)
            for name, path in disks.items():
                at, piece = hour * 5000, b"hour %02d" % hour
                with path.open("r+b") as file:
                    file.seek(at)
                    file.write(piece)
                written[name][at : at + len(piece)] = piece
                same(path.read_bytes(), bytes(written[name]), f"{name} over position {position} after {hour + 1} hours")
            if hour == DAY // 2:
                await rig.kill("applier", "vault", "azure")
                await rig.start("azure", "applier", "vault")

        # Points were removed as if there were no VM.  The part of the journal that the VM needs was kept.
        source = rig.source
        left = [point.tag_id for point in kept(source.points(), source.position, HOURS, set())]
        points = await rig.vault.points(vm=VM)
        assert sorted(point.id for point in points) == sorted(left)
        oldest = points[-1].position
        assert oldest > position + (DAY - HOURS - 1) * HOUR
        held = await rig.compacted(position)
        assert [[pin.position for pin in state.pins] for state in held] == [[position]] * 2
        assert [state.retain for state in held] == [oldest] * 2

        # After the VM's end that part is compacted, and its space is free.
        job = await rig.ended(await rig.vault.cleanup_test_failover(vm=VM))
        assert job.state == "Succeeded"
        after = await rig.compacted(oldest)
        for before, state in zip(held, after, strict=True):
            assert state.pins == []
            assert state.journal_bytes < before.journal_bytes / 2
        for point in points:
            mounted = await rig.vault.mount_point(vm=VM, point=point.id)
            for disk in mounted.disks:
                same(Path(disk.path).read_bytes(), source.images(point.position)[disk.name], f"{disk.name} at {point.id}")
            await rig.vault.unmount_point(vm=VM, name=mounted.name)
        assert rig.unexpected() == []
