"""A disk whose folder was restored from an older copy: whole and consistent in itself, and older than the recovery side."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName
from tests.support.rigs.agent_rig import VM, MemoryCache, Rig
from tests.support.threads import without_threads


@pytest.fixture(autouse=True)
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    without_threads(monkeypatch)


class Restored(Rig):
    """Its site can be stopped, copied, and put back."""

    def stop_host(self) -> None:
        self.host.close()

    def start_host(self) -> None:
        self.host = self._open_host()

    def copy(self, *folders: str) -> None:
        for name in folders:
            shutil.copytree(self.folder / name, self.folder / f"{name}.copy")

    def put_back(self, *folders: str) -> None:
        for name in folders:
            shutil.rmtree(self.folder / name)
            (self.folder / f"{name}.copy").rename(self.folder / name)

    def same(self) -> bool:
        """The recovery side has what the site has."""
        self.recovery.apply()
        return all(
            bytes(self.managed(name).data) == self.host.disk(VM, name).read(0, size) for name, size in self.sizes.items()
        )


@pytest.fixture
async def rig(tmp_path: Path) -> Restored:
    rig = Restored(tmp_path)
    await rig.make_vm()
    return rig


async def work(rig: Restored, *, count: int = 5) -> None:
    async with rig.agent() as agent:
        rig.write(count)
        await rig.cycle(agent)


async def protect(rig: Restored) -> None:
    async with rig.agent() as agent:
        await rig.protect(agent)
        await rig.cycle(agent)


@pytest.mark.parametrize("folders", [("site",), ("site", "agent")], ids=["disks", "disks and agent"])
@pytest.mark.parametrize("writes", [0, 1, 40], ids=lambda count: f"{count} writes since")
@pytest.mark.parametrize("applied", [True, False])
async def test_an_older_copy_needs_a_resync_whatever_was_written_since(
    rig: Restored, folders: tuple[str, ...], writes: int, applied: bool, autojump_clock: MockClock
) -> None:
    await protect(rig)
    rig.stop_host()
    rig.copy(*folders)
    rig.start_host()
    rig.recovery.running = applied
    await work(rig)
    rig.stop_host()
    rig.put_back(*folders)
    rig.start_host()
    if writes:
        rig.write(writes)
    async with rig.agent() as agent:
        await trio.sleep(rig.interval_s * 2)
        rig.recovery.running = True
        assert rig.vault.resyncs in (["ImageChanged"], ["LogOverflow"])
        await agent.resync(vm=VM)
        rig.write(3)
        await rig.cycle(agent)
    assert rig.same()


@pytest.mark.slow
async def test_a_copy_of_an_older_generation_gets_a_newer_one_by_a_resync(rig: Restored, autojump_clock: MockClock) -> None:
    await protect(rig)
    rig.stop_host()
    rig.copy("site", "agent")
    rig.start_host()
    async with rig.agent() as agent:
        for _ in range(3):
            await agent.resync(vm=VM)
            rig.write(3)
            await rig.cycle(agent)
    rig.stop_host()
    rig.put_back("site", "agent")
    rig.start_host()
    async with rig.agent() as agent:
        await trio.sleep(rig.interval_s * 2)
        await agent.resync(vm=VM)
        await rig.cycle(agent)
    assert rig.same()


@pytest.mark.parametrize("orderly", [True, False])
async def test_openings_of_the_same_disk_need_no_resync(rig: Restored, orderly: bool, autojump_clock: MockClock) -> None:
    await protect(rig)
    for _ in range(4):
        await work(rig)
        rig.write(2)
        if orderly:
            rig.stop_host()
            rig.start_host()
        else:
            rig.kill_host()
    await work(rig)
    assert rig.vault.resyncs == []
    assert rig.same()


async def test_a_disk_opened_again_sends_nothing_before_the_recovery_side_answered(
    rig: Restored, autojump_clock: MockClock
) -> None:
    await protect(rig)
    rig.stop_host()
    rig.start_host()
    async with rig.agent() as agent:
        await trio.sleep(rig.interval_s * 2)
        rig.stop_host()
        rig.start_host()
        rig.vault.trouble = RigError(Code.RoleUnavailable, "vault away", recoverable=True)
        rig.write(3)
        before = list(rig.cache.puts)
        with pytest.raises(RigError, match="vault away"):
            await rig.cycle(agent)
        assert rig.cache.puts == before
        rig.vault.trouble = None
        await rig.cycle(agent)
    assert rig.same()


class SlowPuts(MemoryCache):
    """An account that takes 2 s for a put, so that another pass waits meanwhile."""

    async def put(self, part: PartName, data: bytes, *, replace: bool = False) -> bool:
        await trio.sleep(2)
        return await super().put(part, data, replace=replace)


async def test_a_pass_that_waited_while_another_sent_a_new_opening_needs_no_resync(
    rig: Restored, autojump_clock: MockClock
) -> None:
    await protect(rig)
    rig.stop_host()  # as a killed role: the disks are whole
    rig.start_host()
    rig.cache.__class__ = SlowPuts
    async with rig.agent() as agent:
        rig.write(5)
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(lambda: agent.send_again(vm=VM, parts=[]))
            await rig.cycle(agent)
        await rig.cycle(agent)
    assert rig.vault.resyncs == []
    assert rig.same()
