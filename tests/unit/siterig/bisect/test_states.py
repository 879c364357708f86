"""States of a rig as bisect opens them: what a user may call a point, disks in one order, what is left behind by whom."""

from __future__ import annotations

from typing import Any

import pytest

from siterig.azure_emu.contracts.recovery_side import Change, ChangeStep
from siterig.azure_emu.vault.model.resources import MountedDisk, MountedPoint, Vm, VmDisk
from siterig.bisect.search import ChangeGroup
from siterig.bisect.states import MountedStates
from siterig.blockfs.contracts.control import MountedPointDisk, MountedPointInfo
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.core.host_process import HostProcess


class Rig:
    """Vault, recovery side and recovery host in one; notes what it is asked."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.unmounted: list[str] = []
        self.broken: str | None = None
        self.copies: dict[str, tuple[int, HostProcess]] = {}
        self.remove_fails: RigError | None = None
        self.steps_of: dict[str, list[ChangeStep]] = {}
        self.changes_of: dict[str, list[Change]] = {}
        self.unmount_fails: RigError | None = None

    async def mount_point(self, **wanted: Any) -> MountedPoint:
        self.asked.append({name: value for name, value in wanted.items() if value is not None and name != "vm"})
        disks = [MountedDisk(name=d, size_bytes=512, path=f"/m/{wanted['name']}/{d}.img", vhd=None) for d in ("data", "os")]
        return MountedPoint(
            vm="web01",
            name=wanted["name"],
            position=wanted["position"] or 7,
            time=None,
            recovery_point=None,
            disks=disks,
            broken=self.broken,
        )

    async def unmount_point(self, *, vm: str, name: str) -> None:
        if self.unmount_fails is not None:
            raise self.unmount_fails
        self.unmounted.append(name)

    async def list_mounted_points(self, *, vm: str) -> list[MountedPointInfo]:
        def disk(name: str) -> MountedPointDisk:
            return MountedPointDisk(name=name, disk_id=f"id-{name}", size_bytes=1, path="", vhd_path=None, open_handles=0)

        return [
            MountedPointInfo(vm=vm, name=asked["name"], position=1, disks=[disk("data"), disk("os")], broken=None)
            for asked in self.asked
        ]

    async def open_copy(self, *, vm: str, name: str, position: int, process: HostProcess) -> Vm:
        assert vm == "web01"
        self.copies[name] = (position, process)
        disks = [VmDisk(name=disk, size_bytes=512, path=f"/w/{name}/{disk}.img") for disk in ("data", "os")]
        return Vm(name=name, side="azure", state="Copy", disks=disks)

    async def remove_copy(self, *, vm: str, name: str) -> None:
        assert vm == "web01"
        if self.remove_fails is not None:
            raise self.remove_fails
        self.copies.pop(name, None)

    async def change_steps(self, *, disk_id: str, after: int, upto: int) -> list[ChangeStep]:
        return [step for step in self.steps_of[disk_id] if after < step.position <= upto]

    async def changes(self, *, disk_id: str, after: int, upto: int, limit: int) -> list[Change]:
        return [change for change in self.changes_of[disk_id] if after < change.position <= upto][:limit]


PROCESS = HostProcess(pid=7, started=1)


def states_of(rig: Any, *, keep: bool = True) -> MountedStates:
    return MountedStates(rig, rig, rig, "web01", "bisect-1", process=PROCESS, keep=keep)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("@4711", {"point": "@4711"}),
        ("2026-11-21 22:13:17.5+01:00", {"point": "2026-11-21 22:13:17.5+01:00"}),
        ("latest-app", {"point": "LatestApplicationConsistent"}),
        ("e33bb917-81ef-4bbb-b853-4ee72d1fafee", {"point": "e33bb917-81ef-4bbb-b853-4ee72d1fafee"}),
    ],
)
async def test_a_point_is_selected_as_in_the_other_commands(text: str, asked: dict[str, object]) -> None:
    rig = Rig()
    state = await states_of(rig).open_point(text)
    assert rig.asked == [asked | {"name": "bisect-1-1"}]
    assert {name: str(path) for name, path in state.images.items()} == {
        "data": "/m/bisect-1-1/data.img",
        "os": "/m/bisect-1-1/os.img",
    }


async def test_states_are_leased_to_the_given_process() -> None:
    rig = Rig()
    await states_of(rig, keep=False).open(5, 50)
    assert rig.asked == [{"position": 5, "name": "bisect-1-1", "process": PROCESS}]


async def test_each_state_has_a_name_and_is_closed_by_it() -> None:
    rig = Rig()
    states = states_of(rig)
    first, second = await states.open(5, 50), await states.open(6, 60)
    assert (first.position, first.time_ns, second.name) == (5, 50, "bisect-1-2")
    await states.close(second)
    assert rig.unmounted == ["bisect-1-2"]
    rig.unmount_fails = RigError(Code.RecoveryInUse, "recovery/web01/bisect-1-1/os is in use (open handles: 1)")
    with pytest.raises(RigError, match="open handles: 1"):
        await states.close(first)
    rig.broken = "its base has rotted"
    with pytest.raises(RigError, match="position 9 cannot be opened: its base has rotted") as failed:
        await states.open(9, None)
    assert failed.value.code == "InvalidPosition"


async def test_the_disks_changes_come_in_one_order() -> None:
    rig = Rig()
    rig.steps_of = {
        "id-data": [ChangeStep(position=at, time_ns=at * 10, count=1) for at in (3, 8, 9)],
        "id-os": [ChangeStep(position=6, time_ns=60, count=2), ChangeStep(position=9, time_ns=90, count=1)],
    }
    rig.changes_of = {
        "id-data": [Change(position=8, time_ns=80, kind="WRITE", offset=0, length=1)],
        "id-os": [Change(position=at, time_ns=at * 10, kind="ZERO", offset=0, length=1) for at in (5, 6)],
    }
    states = states_of(rig)
    await states.open(1, None)
    assert await states.steps(3, 9) == [ChangeGroup(6, 60, 2), ChangeGroup(8, 80, 1), ChangeGroup(9, 90, 1)]
    assert [(disk, change.position) for disk, change in await states.changes(1, 9)] == [("os", 5), ("os", 6), ("data", 8)]


@pytest.mark.parametrize("keep", [False, True])
async def test_a_copy_is_a_vm_that_is_leased_to_the_process_whatever_is_kept(keep: bool) -> None:
    rig = Rig()
    states = states_of(rig, keep=keep)
    images = await states.writable(await states.open(5, 50))
    assert {name: str(path) for name, path in images.items()} == {"data": "/w/bisect-1/data.img", "os": "/w/bisect-1/os.img"}
    assert rig.copies == {"bisect-1": (5, PROCESS)}
    rig.remove_fails = RigError(Code.DiskInUse, "VM 'bisect-1': disk os is open")
    with pytest.raises(RigError, match="disk os is open"):
        await states.discard()
    rig.remove_fails = None
    await states.discard()
    assert rig.copies == {}
    await states.discard()
