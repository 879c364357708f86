"""Disks of new VMs and attached disks are made completely or not at all, whatever is killed or fails meanwhile."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.contracts.control import DiskInfo
from siterig.blockfs.contracts.disk_spec import DiskSpec
from siterig.blockfs.core.errors import Code, RigError
from siterig.replication.hyperv.agent import HyperVAgent
from tests.support.rigs.agent_rig import VM, Rig
from tests.support.threads import without_threads

NEW_VM = "db01"
IMAGE = DiskSpec(name="os", size_bytes=1 << 20, image="/images/os.vhdx")
FORMATTED = DiskSpec(name="logs", size_bytes=1 << 20, filesystem="ext4")


@pytest.fixture(autouse=True)
def in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


async def ready(folder: Path) -> Rig:
    rig = Rig(folder, sizes={"os": 64 << 10, "data": 64 << 10})
    await rig.make_vm()
    return rig


async def create(agent: HyperVAgent) -> list[DiskInfo]:
    return await agent.create_vm(vm=NEW_VM, disks=[IMAGE, FORMATTED])


async def attach(agent: HyperVAgent) -> list[DiskInfo]:
    return await agent.attach_disk(vm=VM, disk=FORMATTED)


async def not_busy(call: Callable[[], Awaitable[list[DiskInfo]]]) -> list[DiskInfo]:
    """Repeat a call as long as the VM is busy with the removal of an unfinished disk."""
    with trio.fail_after(100):
        while True:
            try:
                return await call()
            except RigError as error:
                if error.code != Code.VmBusy:
                    raise
            await trio.sleep(1)


def kill_at_call(rig: Rig, number: int) -> None:
    """Kill the agent before this call to its peers, counted from 1; no later call has an effect, as with SIGKILL."""
    calls = count(1)

    def before(_name: str) -> None:
        if next(calls) == number:
            rig.interceptor.dead = True
            assert rig.interceptor.scope is not None
            rig.interceptor.scope.cancel()

    rig.interceptor.before = before


def names(rig: Rig, vm: str) -> list[str]:
    return sorted(rig.host.registry.vms.get(vm, {}))


@pytest.mark.parametrize(
    ("call", "vm", "whole"),
    [(create, NEW_VM, ["logs", "os"]), (attach, VM, ["data", "logs", "os"])],
    ids=["create", "attach"],
)
async def test_an_agent_killed_at_each_call_leaves_nothing_half_made(
    tmp_path: Path,
    autojump_clock: MockClock,
    call: Callable[[HyperVAgent], Awaitable[list[DiskInfo]]],
    vm: str,
    whole: list[str],
) -> None:
    kills = 0
    for kill_at in count(1):
        rig = await ready(tmp_path / str(kill_at))
        before = names(rig, vm)
        kill_at_call(rig, kill_at)
        done = False
        async with rig.agent() as agent:
            try:
                await call(agent)
            except RigError:
                assert rig.interceptor.dead
            else:
                done = True
        rig.interceptor.before, rig.interceptor.dead = lambda _name: None, False
        async with rig.agent() as agent:
            if done:
                assert names(rig, vm) == whole
            else:
                await trio.sleep(1)
                assert names(rig, vm) == before
                await not_busy(lambda: call(agent))
                kills += 1
            assert names(rig, vm) == whole
        assert list((tmp_path / str(kill_at)).rglob("unfinished/*")) == []
        rig.host.close()
        if done:
            break
    assert kills >= 3


async def test_unfinished_disks_are_removed_when_the_disk_host_is_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await ready(tmp_path)
    away = RigError(Code.RoleUnavailable, "away for the test", recoverable=True, role="site")
    is_away = True

    def before(name: str) -> None:
        if name == "remove_disk" and is_away:
            raise away

    rig.interceptor.before = before
    rig.guests.refusal = RigError(Code.MkfsFailed, "no")
    async with rig.agent() as agent:
        with pytest.raises(RigError, match="no"):
            await create(agent)
        assert names(rig, NEW_VM) == ["logs", "os"]
        for busy in (create, lambda agent: agent.delete_vm(vm=NEW_VM)):
            with pytest.raises(RigError) as caught:
                await busy(agent)
            assert caught.value.code == Code.VmBusy
    async with rig.agent() as agent:  # the agent is killed and started again, and the disk host is still away
        await trio.sleep(100)
        assert names(rig, NEW_VM) == ["logs", "os"]
        is_away = False
        await trio.sleep(1)
        assert names(rig, NEW_VM) == []
        rig.guests.refusal = None
        assert [disk.name for disk in await create(agent)] == ["os", "logs"]
    rig.host.close()


async def test_a_disk_whose_name_is_taken_stays(tmp_path: Path, autojump_clock: MockClock) -> None:
    rig = await ready(tmp_path)
    taken = DiskSpec(name="data", size_bytes=1 << 20)
    async with rig.agent() as agent:
        await rig.protect(agent)
        rig.write(5)
        for _ in range(2):
            with pytest.raises(RigError, match="VM 'web01' has a disk 'data' already"):
                await agent.attach_disk(vm=VM, disk=taken)
        with pytest.raises(RigError, match="allowed: 1 to 63 letters"):
            await agent.attach_disk(vm=VM, disk=DiskSpec(name="../data", size_bytes=1 << 20))
        with pytest.raises(RigError, match="there is no VM"):
            await agent.attach_disk(vm="nobody", disk=taken)
        # A disk that cannot be opened is not listed, and its name is taken nevertheless.
        broken = rig.host.registry.vms[VM].pop("data")
        rig.host.registry.broken[f"{VM}/data"] = "it is damaged"
        listed = [rig.host.registry.describe([rig.host.disk(VM, "os")])[0]]
        agent_host_lists = rig.interceptor.through

        async def through(name: str, find: Callable[[], object], args: object, kwargs: object) -> object:
            return listed if name == "list_disks" else await agent_host_lists(name, find, args, kwargs)

        rig.interceptor.through = through  # type: ignore[method-assign]
        with pytest.raises(RigError) as caught:
            await agent.attach_disk(vm=VM, disk=taken)
        assert caught.value.code == Code.DiskExists
        rig.interceptor.through = agent_host_lists  # type: ignore[method-assign]
        del rig.host.registry.broken[f"{VM}/data"]
        rig.host.registry.vms[VM]["data"] = broken
        rig.write(5)
        rig.check_point((await rig.cycle(agent)).position)
    assert list(tmp_path.rglob("unfinished/*")) == []
    rig.host.close()


@pytest.mark.parametrize("fails", ["mkfs", "create", "full"])
async def test_a_failed_attachment_leaves_the_vm_as_it_was(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    rig = await ready(tmp_path)
    full = RigError(Code.DiskFull, "no space left", recoverable=True)

    def no_room(_path: Path, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    def before(name: str) -> None:
        if name == "create_disk":
            raise full

    async with rig.agent() as agent:
        await rig.protect(agent)
        with monkeypatch.context() as patch:
            if fails == "mkfs":
                rig.guests.refusal = full
            elif fails == "create":
                rig.interceptor.before = before
            else:
                patch.setattr("siterig.replication.hyperv.disk_creation.write_synced", no_room)
            with pytest.raises(RigError) as caught:
                await attach(agent)
            assert caught.value.code == Code.DiskFull
        rig.guests.refusal, rig.interceptor.before = None, lambda _name: None
        assert names(rig, VM) == ["data", "os"]
        rig.write(5)
        rig.check_point((await rig.cycle(agent)).position)
        assert [disk.name for disk in await attach(agent)] == ["os", "data", "logs"]
        rig.write(5)
        rig.check_point((await rig.cycle(agent)).position)
    assert rig.vault.resyncs == []
    rig.host.close()
