"""Uploads stay within the limit of their host, in work hours and outside them; the limit survives restarts."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from siterig.blockfs.contracts.bandwidth import BandwidthLimit
from siterig.blockfs.core.clock import SystemClock
from siterig.blockfs.core.errors import RigError
from siterig.blockfs.core.waits import Waits
from siterig.replication.parts.bandwidth import Bandwidth
from tests.support.rigs.agent_rig import VM, ManagedDisk, Rig
from tests.support.threads import without_threads

MIB = 1 << 20
HOUR_S = 3600


def limit(work: int | None = MIB, other: int | None = 4 * MIB, begin_h: float = 9, end_h: float = 18) -> BandwidthLimit:
    return BandwidthLimit(
        work_days=["mon", "tue", "wed", "thu", "fri"],
        work_begin_s=int(begin_h * HOUR_S),
        work_end_s=int(end_h * HOUR_S),
        work_bytes_s=work,
        other_bytes_s=other,
    )


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 10**9


@pytest.mark.parametrize(
    ("when", "hours", "is_work"),
    [
        ("2026-11-30T09:00:00", (9, 18), True),  # a Monday
        ("2026-11-30T08:59:59", (9, 18), False),
        ("2026-11-30T17:59:59", (9, 18), True),
        ("2026-11-30T18:00:00", (9, 18), False),
        ("2026-11-29T12:00:00", (9, 18), False),  # a Sunday
        ("2026-11-30T23:59:59", (9, 24), True),
        ("2026-11-30T23:00:00", (22, 6), True),
        ("2026-12-01T05:59:59", (22, 6), True),
        ("2026-12-01T06:00:00", (22, 6), False),
        ("2026-11-28T05:59:59", (22, 6), True),  # the Saturday morning of Friday's hours
        ("2026-11-30T05:59:59", (22, 6), False),  # the Monday morning of Sunday's
    ],
)
def test_work_hours_are_those_of_the_day_on_which_they_begin(when: str, hours: tuple[int, int], *, is_work: bool) -> None:
    assert limit(begin_h=hours[0], end_h=hours[1]).is_work(at(when)) == is_work


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"work_begin_s": -1}, "work_begin_s is -1; allowed: 0 to 86400"),
        ({"work_end_s": 86401}, "work_end_s is 86401; allowed: 0 to 86400"),
        ({"work_bytes_s": 0}, r"work_bytes_s is 0; allowed: 65536 to \d+ bytes a second, or none"),
        ({"other_bytes_s": 65535}, "other_bytes_s is 65535; allowed: 65536"),
        ({"work_days": []}, "work_days is empty; allowed: at least one of mon, tue"),
    ],
)
def test_a_value_that_is_not_allowed_is_named(wrong: dict[str, object], message: str) -> None:
    limit().check()
    with pytest.raises(RigError, match=message) as caught:
        limit().model_copy(update=wrong).check()
    assert caught.value.code == "InvalidLimit"


class WallClock(SystemClock):
    """A clock whose wall time begins at a moment."""

    def __init__(self, begin: str) -> None:
        super().__init__()
        self._begin_ns = at(begin)

    def wall_ns(self) -> int:
        return self._begin_ns + int(trio.current_time() * 1e9)


async def sent_until(bandwidth: Bandwidth, seconds: float, part_bytes: int = MIB, tasks: int = 3) -> int:
    """Return the bytes that several tasks may send within a time."""
    sent = 0

    async def send(vm: str) -> None:
        nonlocal sent
        while True:
            await bandwidth.take(part_bytes, vm)
            sent += part_bytes
            await trio.sleep(0.01)

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for number in range(tasks):
                nursery.start_soon(send, f"vm{number}")
    return sent


async def test_the_rate_holds_over_several_parts_and_vms(autojump_clock: MockClock) -> None:
    waits = Waits()
    bandwidth = Bandwidth(limit, WallClock("2026-11-30T10:00:00"), waits)
    assert 99 * MIB <= await sent_until(bandwidth, 100) <= 103 * MIB, "one part of each of the three VMs may go ahead"
    assert waits.list() == []


async def test_the_limit_changes_with_the_hours_and_by_order(autojump_clock: MockClock) -> None:
    now = limit()
    bandwidth = Bandwidth(lambda: now, WallClock("2026-11-30T17:59:00"), Waits())
    assert 60 * MIB <= await sent_until(bandwidth, 60) <= 63 * MIB
    assert 238 * MIB <= await sent_until(bandwidth, 60) <= 242 * MIB
    now = limit(other=64 << 10)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            await bandwidth.take(MIB, VM)
        nursery.start_soon(bandwidth.take, MIB, VM)
        await trio.sleep(1)
        now = limit(other=None)
        with trio.fail_after(1.1):  # a part that waits does not wait for the former rate
            await bandwidth.take(MIB, VM)


async def test_vms_share_the_limit_and_a_small_delta_does_not_wait_for_a_copy(autojump_clock: MockClock) -> None:
    bandwidth = Bandwidth(lambda: limit(work=64 << 10), WallClock("2026-11-30T10:00:00"), Waits())
    sent = {"copy": 0, "busy": 0, "quiet": 0}
    waited_s: list[float] = []

    async def send(vm: str, part_bytes: int, pause_s: float) -> None:
        while True:
            begun_s = trio.current_time()
            await bandwidth.take(part_bytes, vm)
            sent[vm] += part_bytes
            if vm == "quiet":
                waited_s.append(trio.current_time() - begun_s)
            await trio.sleep(pause_s)

    seconds = 2000
    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send, "copy", 8 * MIB, 0)
            nursery.start_soon(send, "busy", 256 << 10, 0)
            nursery.start_soon(send, "quiet", 200 << 10, 30)
    assert max(waited_s) == 0, "it sends less than a third of the limit"
    allowed = seconds * (64 << 10)
    assert allowed - MIB <= sum(sent.values()) <= allowed + 8 * MIB + (456 << 10)
    left = allowed - sent["quiet"]
    assert abs(sent["busy"] - left / 2) <= MIB and abs(sent["copy"] - left / 2) <= 9 * MIB


async def test_cycles_of_a_vm_are_not_delayed_by_the_copy_of_another_one(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_threads(monkeypatch)
    monkeypatch.setattr("siterig.replication.hyperv.agent.MEMORY_BYTES", 4 * MIB)
    monkeypatch.setattr("siterig.replication.engine.disk_copy.PART_BYTES_MAX", MIB)
    rig, other = Rig(tmp_path, sizes={"os": MIB}), "db01"
    rig.interval_s = 10.0
    await rig.make_vm()
    big = await rig.host.create_disk(vm=other, name="data", size_bytes=6 * MIB)
    rig.recovery.disks[big.disk_id] = ManagedDisk(bytearray(6 * MIB))
    for offset in range(0, 6 * MIB, MIB):
        rig.host.disk(other, "data").write(offset, rig.random.randbytes(MIB))
    async with rig.agent() as agent:
        await rig.protect(agent)
        await agent.set_bandwidth(limit=limit(work=64 << 10, other=64 << 10))
        await agent.create_relationship(vm=other, interval_s=rig.interval_s, app_consistent_every_s=None)
        begun_s, points = trio.current_time(), len(rig.vault.points)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(agent.initial_replication, vm=other))
            for _ in range(6):
                rig.write(20)
                await trio.sleep(rig.interval_s)
            assert (await agent.progress(vm=other)).phase == "InitialReplication"
            assert len(rig.vault.points) >= points + 5
            assert max(rig.vault.ages_s) < 1, "the longest time from a cut until its data is in the account"
        assert trio.current_time() - begun_s > 5 * MIB / (64 << 10) - 20, "the copy stays within the limit"
    rig.check_point(rig.vault.points[-1])


async def test_an_upload_that_waits_is_shown_and_can_be_cancelled(autojump_clock: MockClock) -> None:
    waits = Waits()
    bandwidth = Bandwidth(lambda: limit(work=64 << 10), WallClock("2026-11-30T10:00:00"), waits)
    await bandwidth.take(8 * MIB, VM)
    with trio.move_on_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bandwidth.take, MIB, VM)
            await trio.sleep(5)
            (wait,) = waits.list()
            assert (wait.code, wait.vm) == ("BandwidthLimited", VM)
    assert waits.list() == []


async def test_an_agent_keeps_its_limit_over_a_restart(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_threads(monkeypatch)
    rig = Rig(tmp_path, sizes={"os": 4 * MIB})
    await rig.make_vm()
    rig.write(800)
    slow = limit(work=64 << 10, other=64 << 10)
    async with rig.agent() as agent:
        await agent.set_bandwidth(limit=slow)
        with pytest.raises(RigError, match="work_bytes_s is 1"):
            await agent.set_bandwidth(limit=limit(work=1))
        assert await agent.bandwidth() == slow
    async with rig.agent() as agent:
        assert await agent.bandwidth() == slow
        begun = trio.current_time()
        await rig.protect(agent)
        cut = await rig.cycle(agent)
        seconds = trio.current_time() - begun
        sent, largest = sum(rig.cache.put_bytes), max(rig.cache.put_bytes)
        assert sent > MIB
        assert seconds >= (sent - largest) / (64 << 10) - 1
        await agent.set_bandwidth(limit=None)
        assert await agent.bandwidth() is None
    rig.check_point(cut.position)


@pytest.mark.parametrize("phase", ["initial", "resync"])
async def test_a_stopped_copy_leaves_no_snapshot_and_continues(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    without_threads(monkeypatch)
    rig = Rig(tmp_path, sizes={"os": 4 * MIB, "data": 4 * MIB})
    await rig.make_vm()
    rig.write(800)
    async with rig.agent() as agent:
        if phase == "resync":
            await rig.protect(agent)
        else:
            await agent.create_relationship(vm=VM, interval_s=rig.interval_s, app_consistent_every_s=None)
        await agent.set_bandwidth(limit=limit(work=64 << 10, other=64 << 10))
        start = agent.resync if phase == "resync" else agent.initial_replication
        stopped = []

        async def copy() -> None:
            with pytest.raises(RigError) as caught:
                await start(vm=VM)
            stopped.append(caught.value.code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(copy)
            while not (await rig.host.list_disks(vm=VM))[0].snapshot:  # noqa: ASYNC110
                await trio.sleep(0.01)
            await agent.stop_copy(vm=VM)
            assert not (await rig.host.list_disks(vm=VM))[0].snapshot
        assert stopped == ["Interrupted"]
        await agent.set_bandwidth(limit=None)
        await start(vm=VM)
        cut = await rig.cycle(agent)
    rig.check_point(cut.position)
