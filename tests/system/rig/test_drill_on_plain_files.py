"""Tests of the drill's own logic without the engine, and with an engine whose errors the drill must find.

A stand-in replaces the rig: its disks are plain files, and a recovery point is a copy of the frozen disks.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from siterig.azure_emu.vault.model.resources import Job, ProtectedItem, RecoveryPoint, Vm, VmDisk
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.progress import VmProgress
from siterig.blockfs.guests import loop_devices
from siterig.scenarios.contracts.results import DrillResult
from siterig.scenarios.drill.drill import run_drill
from siterig.scenarios.drill.drill_run import DrillSettings
from siterig.scenarios.drill.narrator import Narrator
from tests.support.screens import TextScreen

pytestmark = [pytest.mark.system, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]
MIB = 1024 * 1024
FS_SHUTDOWN = 0x8004587D
NOW = "2026-11-21T22:00:00Z"
SETTINGS = DrillSettings(
    os_bytes=96 * MIB, data_bytes=300 * MIB, corpus_bytes=8 * MIB, load=20, rate_per_s=200, step_timeout_s=60
)


class PlainRig:
    """A rig, vault and both disk hosts in one object.

    ``lie`` is called with the name of each recovered copy's folder and may damage the copy.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "drill"
        self.folder.mkdir()
        self.site_position = self.azure_position = root / "position"
        self.vault: Any = self
        self.site: Any = self
        self.azure: Any = self
        self.state = "Unprotected"
        self.point_list: list[RecoveryPoint] = []
        self.job_list: list[Job] = []
        self.vms: dict[str, Vm] = {}
        self.lie: Callable[[str], None] = lambda _name: None
        self.mixed = False
        self.lost = False
        self._count(0)

    def _count(self, step: int = 1) -> int:
        value = struct.unpack("<Q", self.site_position.read_bytes())[0] + step if self.site_position.exists() else 1
        with self.site_position.open("r+b" if self.site_position.exists() else "w+b") as file:
            file.write(struct.pack("<Q", value))
        return int(value)

    def _vm(self, name: str, side: Any, folder: str) -> Vm:
        disks = [
            VmDisk(name=disk.stem, size_bytes=disk.stat().st_size, path=str(disk))
            for disk in sorted((self.root / folder).glob("*.img"), reverse=True)
        ]
        self.vms[folder] = Vm(name=name, side=side, state="", disks=disks)
        return self.vms[folder]

    def _mounts(self) -> list[str]:
        return [str(self.folder / "mnt" / "source" / disk) for disk in ("os", "data")]

    async def _copy(self, folder: str) -> int:
        """Copy the source's disks at one position.

        If ``mixed`` is set, the second disk is not frozen together with the first: an error that the drill must find.
        """
        (self.root / folder).mkdir()
        for name in ["os", "data"] if self.mixed else [""]:
            mounts = [mount for mount in self._mounts() if mount.endswith(name)]
            async with loop_devices.frozen(mounts, timeout_s=30):
                position = self._count()
                for disk in self.vms["web01"].disks:
                    if name in disk.name:
                        await trio.run_process(["cp", "--sparse=always", disk.path, str(self.root / folder)])
                self._count()
            if self.mixed:
                await trio.sleep(0.3)
        return position

    def _job(self, scenario: str, vm: Vm | None = None, point: RecoveryPoint | None = None) -> Job:
        job = Job(
            name=f"job-{len(self.job_list)}",
            scenarioName=scenario,
            friendlyName=scenario,
            state="Succeeded",
            stateDescription="Completed",
            targetObjectName="web01",
            vm="web01",
            startTime=NOW,
            endTime=NOW,
            tasks=[],
            errors=[],
            result=vm,
            recovery_point=point,
        )
        self.job_list.append(job)
        return job

    async def create_vm(self, *, vm: str, disks: list[Any]) -> Vm:
        (self.root / vm).mkdir()
        for disk in disks:
            path = self.root / vm / f"{disk.name}.img"
            path.touch()
            os.truncate(path, disk.size_bytes)
            loop = await loop_devices.attach(path)
            await loop_devices.mkfs(loop, disk.filesystem, disk.name)
            await loop_devices.detach(loop)
            (self.root / vm / f"{disk.name}.000001.hrl").symlink_to("/proc/version")
        return self._vm(vm, "site", vm)

    async def enable_protection(self, *, vm: str, interval_s: float) -> Job:
        self.state = "Protected"
        self._job("Finalize protection on the virtual machine")
        await self.create_point(vm=vm, kind="CrashConsistent", name="")
        await self.create_point(vm=vm, kind="CrashConsistent", name="")
        return self._job("EnableDr")

    async def create_point(self, *, vm: str, kind: Any, name: str) -> RecoveryPoint:
        number = len(self.point_list) + 1
        position = await self._copy(f"point-{number}-{len(self.job_list)}")
        point = RecoveryPoint(
            id=f"point-{number}-{len(self.job_list)}",
            name=name,
            type=kind,
            time=NOW,
            position=position,
            time_ns=number,
        )
        self.point_list.append(point)
        return point

    async def items(self) -> list[ProtectedItem]:
        return [
            ProtectedItem(
                name="web01",
                policy_interval_s=5,
                app_consistent_every_s=None,
                pinned_points=0,
                recovery_vm_name="web01",
                test_vm_name="web01-test",
                acknowledged_errors=[],
                replication_state="Replicating",
                recoveryPointHistoryDuration=24,
                protectionState=self.state,
                testFailoverState="None",
                replicationHealth="Normal",
                healthErrors=[],
                lastRpoInSeconds=1.0,
                applied_lag_s=0.0,
                newest_point_age_s=1.0,
                unapplied_bytes=0,
                activeLocation="Primary",
                resynchronizationRequired=None,
            )
        ]

    async def points(self, *, vm: str) -> list[RecoveryPoint]:
        return list(self.point_list)

    async def progress(self, *, vm: str) -> VmProgress:
        return VmProgress(vm=vm, phase=None, disks=[])

    async def jobs(self) -> list[Job]:
        return self.job_list

    async def job(self, *, name: str) -> Job:
        return next(job for job in self.job_list if job.name == name)

    async def list_vms(self) -> list[Vm]:
        return list(self.vms.values())

    async def list_disks(self, *, vm: str) -> list[Any]:
        return [SimpleNamespace(disk_id="os", name="os", last_seq=2, snapshot=False)]

    async def segments(self, *, vm: str) -> list[Any]:
        return [SimpleNamespace(disk_id="os", last_seq=1, path=str(self.root / vm / "os.000001.hrl"))]

    async def test_failover(self, *, vm: str, point: str) -> Job:
        shutil.copytree(self.root / point, self.root / "web01-test")
        self.lie("web01-test")
        return self._job("TestFailover", self._vm("web01-test", "azure", "web01-test"))

    async def cleanup_test_failover(self, *, vm: str) -> Job:
        del self.vms["web01-test"]
        return self._job("TestFailoverCleanup")

    async def kill_site(self) -> None:
        if self.lost:
            raise RigError(Code.of("RigDown"), "the rig is gone")
        position = await self._copy("latest")
        self._latest = RecoveryPoint(id="latest", name="", type="CrashConsistent", time=NOW, position=position, time_ns=99)
        for mount in self._mounts():
            fd = os.open(mount, os.O_RDONLY)
            try:
                fcntl.ioctl(fd, FS_SHUTDOWN, struct.pack("<I", 2))
            finally:
                os.close(fd)

    async def restart_site(self) -> None:
        pass

    async def unplanned_failover(self, *, vm: str, point: str) -> Job:
        self.lie("latest")
        return self._job("UnplannedFailover", self._vm("web01", "azure", "latest"), self._latest)

    async def commit_failover(self, *, vm: str) -> Job:
        self.point_list.clear()
        return self._job("CommitFailover")

    async def failback(self, *, vm: str) -> Job:
        for disk in ("os", "data"):
            shutil.copy(self.root / "latest" / f"{disk}.img", self.root / "web01" / f"{disk}.img")
        self.lie("web01")
        return self._job("PlannedFailover", self._vm("web01", "site", "web01"))

    async def reprotect(self, *, vm: str) -> Job:
        await self.create_point(vm=vm, kind="CrashConsistent", name="")
        return self._job("ReprotectReplicationGroup")


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[PlainRig]:
    yield PlainRig(tmp_path)
    with trio.CancelScope(shield=True):
        await loop_devices.release_below(tmp_path)


async def drill(rig: PlainRig) -> DrillResult:
    result = await run_drill(rig, SETTINGS, Narrator(TextScreen()))
    assert [use.loop for use in loop_devices.loop_uses() if use.disk.startswith(str(rig.root))] == []
    return result


def failures(result: DrillResult) -> dict[str, str]:
    return {f"{check.step}: {check.name}": check.evidence for check in result.checks if not check.ok}


async def test_a_correct_rig_passes_every_check(rig: PlainRig) -> None:
    result = await drill(rig)
    assert result.error is None
    # Only a real disk host has change logs that cannot be written to.
    assert set(failures(result)) <= {"protect: change logs are read-only"}, failures(result)
    assert {check.step for check in result.checks} == {*result.steps}
    assert result.measures.rpo_s is not None
    assert result.measures.rpo_transactions is not None
    assert result.measures.rto_s is not None


def _flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


async def test_a_wrong_byte_after_failback_is_found(rig: PlainRig) -> None:
    rig.lie = lambda name: _flip(rig.root / name / "data.img", 299 * MIB) if name == "web01" else None
    found = failures(await drill(rig))
    assert found["failback: disk data is byte for byte the recovery side's"] == f"first difference at offset {299 * MIB}"


async def test_disks_of_different_moments_are_found(rig: PlainRig) -> None:
    rig.mixed = True
    found = failures(await drill(rig))
    assert any(name.startswith("test: ") for name in found), found


async def test_an_old_state_in_place_of_the_latest_is_found(rig: PlainRig) -> None:
    def old(name: str) -> None:
        if name == "latest":
            first = min(rig.root.glob("point-1-*"))
            for disk in ("os", "data"):
                shutil.copy(first / f"{disk}.img", rig.root / name)

    rig.lie = old
    found = failures(await drill(rig))
    assert "loss: every transaction acknowledged before the point" in found, found


async def test_an_error_ends_the_drill_with_a_result_and_leaves_nothing(rig: PlainRig) -> None:
    rig.lost = True
    result = await drill(rig)
    assert not result.ok
    assert result.error == "RigDown: the rig is gone"


async def test_a_cancelled_drill_under_load_leaves_nothing(rig: PlainRig) -> None:
    with trio.move_on_after(3) as scope:
        await run_drill(rig, SETTINGS, Narrator(TextScreen()))
    assert scope.cancelled_caught
    assert [use.loop for use in loop_devices.loop_uses() if use.disk.startswith(str(rig.root))] == []
