"""VMs whose cycles begin together put their tags together, and none waits long for another."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from siterig.blockfs.core.clock import SYSTEM_CLOCK
from siterig.blockfs.core.errors import Code, RigError
from siterig.blockfs.transfer.part_name import PartName
from siterig.replication.parts.joint_puts import QUIET_S, WAIT_S_MAX, JointPuts
from siterig.replication.replicas.cycle_times import CycleTimes
from tests.support.rigs.agent_rig import VM, ManagedDisk, MemoryCache, Rig
from tests.support.threads import without_threads


@pytest.fixture
def account() -> MemoryCache:
    return MemoryCache()


@pytest.fixture
def joint(account: MemoryCache, nursery: trio.Nursery) -> JointPuts:
    made = JointPuts(account, trio.CapacityLimiter(2), SYSTEM_CLOCK)
    nursery.start_soon(made.run)
    return made


def sizes(account: MemoryCache) -> list[int]:
    return [len(parts) for parts in account.together]


def parts(vm: int, count: int = 1) -> dict[PartName, bytes]:
    return {PartName(f"{vm:08d}-0000-4000-8000-{disk:012d}", 1, "log", 1, 1): b"tag" for disk in range(count)}


async def cycle(joint: JointPuts, vm: int, results: list[object], *, after_s: float = 0.0, leaves: bool = False) -> None:
    with joint.expecting(str(vm)):
        await trio.sleep(after_s)
        if leaves:
            return
        try:
            results.append(await joint.put(str(vm), parts(vm)))
        except RigError as error:
            results.append(error.code)


async def test_cycles_that_begin_together_make_one_blob(
    account: MemoryCache, joint: JointPuts, autojump_clock: trio.testing.MockClock
) -> None:
    results: list[object] = []
    async with trio.open_nursery() as cycles:
        for vm in range(5):
            cycles.start_soon(lambda vm=vm: cycle(joint, vm, results, after_s=vm / 10, leaves=vm == 3))  # type: ignore[misc]
    assert sizes(account) == [4]
    assert results == [True] * 4
    assert trio.current_time() == pytest.approx(autojump_clock.current_time())


async def test_a_slow_cycle_is_not_waited_for(
    account: MemoryCache, joint: JointPuts, autojump_clock: trio.testing.MockClock
) -> None:
    results: list[object] = []
    begun_s = trio.current_time()
    async with trio.open_nursery() as cycles:
        cycles.start_soon(lambda: cycle(joint, 1, results))
        cycles.start_soon(lambda: cycle(joint, 2, results))
        cycles.start_soon(lambda: cycle(joint, 3, results, after_s=60.0))
        while len(results) < 2:  # noqa: ASYNC110 (the results are the condition)
            await trio.sleep(0.1)
        assert trio.current_time() - begun_s < QUIET_S + 0.2
    assert sizes(account) == [2]
    assert results == [True, True, False], "the slow one puts its only part itself"
    begun_s = trio.current_time()
    async with trio.open_nursery() as cycles:
        for vm in range(10):
            cycles.start_soon(lambda vm=vm: cycle(joint, vm, results, after_s=vm * 0.9))  # type: ignore[misc]
        while len(account.together) < 2:  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert trio.current_time() - begun_s < WAIT_S_MAX + 0.2
    assert sizes(account) == [2, 6, 4]


async def test_the_disks_of_one_vm_go_together_at_once(account: MemoryCache, joint: JointPuts) -> None:
    assert not joint.can_join("1", 1)
    assert joint.can_join("1", 2)
    assert await joint.put("1", parts(1, 2))
    assert sizes(account) == [2]


@pytest.mark.parametrize(
    ("code", "results"),
    [(Code.CacheUnreachable, [Code.CacheUnreachable] * 2), (Code.KeyRevoked, [False] * 2), (Code.CacheError, [False] * 2)],
)
async def test_an_error_of_one_part_is_not_that_of_the_others(
    account: MemoryCache, joint: JointPuts, autojump_clock: trio.testing.MockClock, code: Code, results: list[object]
) -> None:
    account.trouble = RigError(code, "no")
    found: list[object] = []
    async with trio.open_nursery() as cycles:
        cycles.start_soon(lambda: cycle(joint, 1, found))
        cycles.start_soon(lambda: cycle(joint, 2, found))
    assert found == results


def test_idle_vms_have_their_cycles_together_and_no_interval_is_longer() -> None:
    one, two = CycleTimes("web01"), CycleTimes("web02")
    assert (one.following(1007.0, 300.0, is_idle=False), one.joins) == (1307.0, False)
    assert (one.following(1007.0, 300.0, is_idle=True), one.joins) == (1200.0, True)
    assert two.following(1199.0, 300.0, is_idle=True) == 1200.0
    assert one.following(1200.01, 300.0, is_idle=True) == 1500.0
    assert two.following(1199.96, 300.0, is_idle=True) == 1500.0, "a cycle that was a little early is not repeated"
    for busy in (1500.0, 1800.0):
        assert [each.following(busy, 300.0, is_idle=False) for each in (one, two)] == [busy + 300.0] * 2
    first, second = (each.following(2100.0, 300.0, is_idle=False) for each in (one, two))
    assert first != second and all(2100.0 < each <= 2400.0 for each in (first, second))
    assert one.following(first, 300.0, is_idle=False) == first + 300.0


async def test_tags_of_idle_vms_are_one_blob_and_a_busy_vm_is_not_waited_for(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_threads(monkeypatch)
    rig = Rig(tmp_path)
    await rig.make_vm()
    for vm in ("web02", "web03"):
        info = await rig.host.create_disk(vm=vm, name="os", size_bytes=64 << 10)
        rig.recovery.disks[info.disk_id] = ManagedDisk(bytearray(64 << 10))
    async with rig.agent() as agent:
        for vm in (VM, "web02", "web03"):
            await agent.create_relationship(vm=vm, interval_s=rig.interval_s, app_consistent_every_s=None)
            await agent.initial_replication(vm=vm)
            await trio.sleep(7)
        await trio.sleep(2 * rig.interval_s)
        rig.cache.together.clear()
        points = len(rig.vault.points)
        await trio.sleep(3 * rig.interval_s)
        assert sizes(rig.cache) == [4, 4, 4]
        assert len(rig.vault.points) == points + 9
        rig.cache.together.clear()
        for _ in range(2):
            for name in rig.sizes:
                rig.host.disk(VM, name).write(0, b"x" * 8192)
            await trio.sleep(rig.interval_s)
        assert sizes(rig.cache) == [2, 2]
        assert len(rig.vault.points) == points + 15
        cut = await rig.cycle(agent)
    rig.recovery.apply()
    assert rig.managed("os").points[cut.position][:8192] == b"x" * 8192
