"""Retention while failover VMs lie on positions between points: vault, applier and disk host as processes, a real mount."""

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
"""The policy's."""
DAY = 8
"""Hours that pass while a VM is there."""


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a short name, for there are sockets in it."""
    folder = tmp_path_factory.mktemp("r")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def between(rig: Rig) -> tuple[int, Images]:
    """Writes on both disks that no point follows at once; the position of the last, and what the disks are there."""
    for name in rig.source.disks:
        rig.source.write(name, 4)
    position = rig.source.position
    for name in rig.source.disks:
        rig.source.write(name, 4)
    return position, rig.source.images(position)


async def an_hour(rig: Rig) -> None:
    """Three points, as applied, and a round of the policies."""
    for _ in range(3):
        rig.source.advance(HOUR // 3)
        for name in rig.source.disks:
            rig.source.write(name, 6)
        rig.source.tag("CrashConsistent")
    await rig.source.deliver_all()
    await rig.settled()
    await rig.policies()


async def failed_over(rig: Rig, position: int) -> dict[str, Path]:
    """The disks of a test failover's VM over a position."""
    job = await rig.ended(await rig.vault.test_failover(vm=VM, point=f"@{position}"))
    assert (job.state, job.recovery_point and job.recovery_point.position) == ("Succeeded", position)
    assert job.result is not None
    return {disk.name: Path(disk.path) for disk in job.result.disks}


async def test_retention_goes_on_around_vms_between_points_and_the_space_comes_back(folder: Path) -> None:
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

        # Points went as if there were no VM; of the journal nothing went that the VM lies on.
        source = rig.source
        left = [point.tag_id for point in kept(source.points(), source.position, HOURS, set())]
        points = await rig.vault.points(vm=VM)
        assert sorted(point.id for point in points) == sorted(left)
        oldest = points[-1].position
        assert oldest > position + (DAY - HOURS - 1) * HOUR
        held = await rig.folded(position)
        assert [[pin.position for pin in state.pins] for state in held] == [[position]] * 2
        assert [state.retain for state in held] == [oldest] * 2

        # Behind the VM it goes, and its space with it.
        job = await rig.ended(await rig.vault.cleanup_test_failover(vm=VM))
        assert job.state == "Succeeded"
        after = await rig.folded(oldest)
        for before, state in zip(held, after, strict=True):
            assert state.pins == []
            assert state.journal_bytes < before.journal_bytes / 2
        for point in points:
            mounted = await rig.vault.mount_point(vm=VM, point=point.id)
            for disk in mounted.disks:
                same(Path(disk.path).read_bytes(), source.images(point.position)[disk.name], f"{disk.name} at {point.id}")
            await rig.vault.unmount_point(vm=VM, name=mounted.name)
        assert rig.unexpected() == []
